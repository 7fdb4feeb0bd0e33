"""Benchmarks: ratios measured in one run. They start real servers and processes; `make bench` runs them."""
