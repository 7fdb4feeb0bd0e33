"""The sensors. What to report or request is decided in `monitoring` and `exchanges`; here it becomes alerts and runs."""
