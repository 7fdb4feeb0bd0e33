"""`affiliate-pipeline`: commands for people on one machine. They decide nothing about data."""

from affiliate_pipeline.cli import running, telling
from affiliate_pipeline.cli.app import main

__all__ = ["main", "running", "telling"]
