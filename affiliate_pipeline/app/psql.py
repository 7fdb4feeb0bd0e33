"""PostgreSQL's own programs on the database: `psql` and `pg_dump`."""

import os
from collections.abc import Sequence

import typer

from affiliate_pipeline.app.cli import app
from affiliate_pipeline.app.database import started
from affiliate_pipeline.app.embedded_server.programs import program
from affiliate_pipeline.environment import application, process_environment
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.urls import libpq_environment


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def psql(context: typer.Context) -> None:
    """Open the database in psql; further arguments are psql's."""
    _become("psql", context.args)


@app.command("pg_dump", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def pg_dump(context: typer.Context) -> None:
    """Back the database up with pg_dump; further arguments are pg_dump's (see the runbook)."""
    _become("pg_dump", context.args)


def _become(name: str, arguments: Sequence[str]) -> None:
    """Replaces this process by the program, connected to the database."""
    url = started(application()).database_url()
    # Connect first: PostgreSQL's programs detect no pooler, and their errors suggest no fix for a wrong address.
    connect(url).close()
    path = str(program(name))
    os.execve(path, [path, *arguments], process_environment(**libpq_environment(url)))
