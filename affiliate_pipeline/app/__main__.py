"""The entry point of `affiliate-pipeline`. Importing the modules registers their commands."""

from affiliate_pipeline.app import alert, check, export, land, migrate, reading, rotate_key, sandbox, up, who
from affiliate_pipeline.app.cli import app, main

__all__ = [
    "alert",
    "app",
    "check",
    "export",
    "land",
    "main",
    "migrate",
    "reading",
    "rotate_key",
    "sandbox",
    "up",
    "who",
]

if __name__ == "__main__":
    main()
