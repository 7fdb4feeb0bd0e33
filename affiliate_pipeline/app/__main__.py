"""The entry point of `affiliate-pipeline`. Importing the modules registers their commands."""

from affiliate_pipeline.app import check, reading, sandbox, up
from affiliate_pipeline.app.cli import app, main

__all__ = ["app", "check", "main", "reading", "sandbox", "up"]

if __name__ == "__main__":
    main()
