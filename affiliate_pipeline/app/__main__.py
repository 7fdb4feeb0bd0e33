"""`affiliate-pipeline`: commands for people on one machine. They decide nothing about data."""

from affiliate_pipeline.app import checking, reporting, running
from affiliate_pipeline.app.cli import app, main

__all__ = ["app", "checking", "main", "reporting", "running"]

if __name__ == "__main__":
    main()
