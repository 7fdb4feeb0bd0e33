"""Benchmarks, run by `make bench`: they start real servers and processes.

Values that are compared with each other are measured in the same run.
"""
