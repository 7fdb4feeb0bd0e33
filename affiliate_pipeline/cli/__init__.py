"""`affiliate-pipeline`: commands for people on one machine. They decide nothing about data."""

from affiliate_pipeline.cli import checking, running, telling
from affiliate_pipeline.cli.app import main

__all__ = ["checking", "main", "running", "telling"]
