"""The sensors: they request the runs and add the alerts that `monitoring` and `exchanges` decide on."""
