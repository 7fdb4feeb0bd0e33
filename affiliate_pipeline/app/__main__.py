"""`affiliate-pipeline`: commands for people on one machine. They hold no landing logic."""

from affiliate_pipeline.app import check, reading, sandbox, up
from affiliate_pipeline.app.cli import app, main

__all__ = ["app", "check", "main", "reading", "sandbox", "up"]

if __name__ == "__main__":
    main()
