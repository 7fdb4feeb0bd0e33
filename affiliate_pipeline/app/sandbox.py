"""The sandbox: the command `sandbox`, and how `up` serves it while no exchange is configured."""

from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import typer

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.cli import app, console
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox import __main__ as foreground

START_DAYS = 35
RATE_SCALE = 20


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, add_help_option=False)
def sandbox(context: typer.Context) -> None:
    """Serve the sandbox exchange in the foreground (see `sandbox --help`)."""
    raise typer.Exit(foreground.main(context.args))


@contextmanager
def serving() -> Generator[None, None, None]:
    """Serves the sandbox and points `.affiliate/settings.env` at it, on the same port as before if possible."""
    chosen = settings.chosen()
    port = int(chosen.get("BINANCE_BASE_URL", "").rpartition(":")[2] or 0)
    try:
        exchange = Sandbox(port=port, rate_scale=RATE_SCALE).start()
    except OSError:
        exchange = Sandbox(rate_scale=RATE_SCALE).start()
    try:
        first = datetime.now(UTC).date() - timedelta(days=START_DAYS)
        own = {
            "AFFILIATE_START_DATE": chosen.get("AFFILIATE_START_DATE", first.isoformat()),
            "AFFILIATE_RATE_SCALE": str(RATE_SCALE),
        }
        settings.choose(own | exchange.variables)
        console.print(
            "No exchange is configured, so [bold]the sandbox[/bold] plays them on this machine: made-up data, in a "
            f"database of its own, and {RATE_SCALE} times the real rate limits.\n"
            "For real accounts set BINANCE_PARTNER_API_KEY and BINANCE_PARTNER_API_SECRET, or LBANK_API_KEY, "
            "LBANK_API_SECRET and LBANK_OPEN_ID, in .env and start again."
        )
        yield
    finally:
        exchange.stop()
