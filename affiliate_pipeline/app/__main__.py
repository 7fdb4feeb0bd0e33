"""The entry point of `affiliate-pipeline`. Importing the modules registers their commands."""

from affiliate_pipeline.app import alert, check, land, reading, rotate_key, sandbox, up
from affiliate_pipeline.app.cli import app, main

__all__ = ["alert", "app", "check", "land", "main", "reading", "rotate_key", "sandbox", "up"]

if __name__ == "__main__":
    main()
