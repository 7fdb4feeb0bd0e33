"""The sensors. `monitoring` and `exchanges` decide; here runs are requested and alerts added."""
