"""The command `sandbox`, and the sandbox that `up` serves while no exchange is configured."""

from collections.abc import Generator
from contextlib import contextmanager

import typer

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.cli import app, console
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox import __main__ as foreground

RATE_SCALE = 20


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def sandbox(context: typer.Context) -> None:
    """Serve the sandbox exchange in the foreground (see `sandbox --help`)."""
    raise typer.Exit(foreground.main(context.args))


@contextmanager
def serving() -> Generator[None, None, None]:
    """Serve the sandbox, on its previous port if possible, and save its variables for all commands."""
    saved = settings.sandbox_variables()
    port = saved.get(ENDPOINTS[0].exchange.base_url_variable, "").rpartition(":")[2]
    try:
        exchange = Sandbox(port=int(port or 0), rate_scale=RATE_SCALE).start()
    except OSError:
        exchange = Sandbox(rate_scale=RATE_SCALE).start()
    try:
        settings.save_sandbox_variables({"AFFILIATE_RATE_SCALE": str(RATE_SCALE), **exchange.variables})
        # By exchange, the variables of its first endpoint's account.
        accounts = {endpoint.exchange.name: endpoint.credentials for endpoint in reversed(ENDPOINTS)}
        console.print(
            "No exchange is configured, so [bold]the sandbox[/bold] serves generated data on this machine. It has its own "
            f"database and {RATE_SCALE} times the real rate limits.\nFor real accounts, set "
            f"{', or '.join(' and '.join(names) for names in reversed(accounts.values()))} in .env and start again."
        )
        yield
    finally:
        exchange.stop()
