"""The application for one machine: the `affiliate-pipeline` commands and everything they start.

Commands start processes, read tables and print. Landing is left to Dagster runs.
"""
