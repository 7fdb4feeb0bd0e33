"""The command `alert`: send a test message to each channel of ALERT_URLS."""

import socket
from typing import Annotated

import typer
from rich.markup import escape

from affiliate_pipeline.app.cli import CommandError, app, console
from affiliate_pipeline.domain.settings import unset_error
from affiliate_pipeline.environment import application, exclude_loopback_from_proxies, export_network_variables
from affiliate_pipeline.monitoring import delivery
from affiliate_pipeline.monitoring.alerts import Alert, Kind


@app.command()
def alert(
    test: Annotated[bool, typer.Option("--test", help="Send a test message to each channel of ALERT_URLS.")] = False,
) -> None:
    """Test the alerts: send a message to each channel and report which failed; exits with 1 if any did."""
    if not test:
        raise CommandError("nothing to send", "Add --test to send a test message to each channel of ALERT_URLS")
    environment = application()
    channels = delivery.channels(delivery.AlertSettings.load(environment.variables).urls())
    if not channels:
        raise unset_error("ALERT_URLS")

    export_network_variables(environment)
    exclude_loopback_from_proxies()
    text = (
        f"Sent by `affiliate-pipeline alert --test` on {socket.gethostname()}. Nothing is wrong: failed days, checks, "
        "sensors and schedules are reported here."
    )
    # Services show a recovery as a success, and not as a failure.
    [message] = delivery.messages([Alert("test", "Test of the alerts", text, kind=Kind.RECOVERY)])

    any_failed = False
    for name, url in channels.items():
        problem = delivery.send(url, message)
        outcome = "sent"
        if problem:
            outcome = f"[bold red]failed[/]: it {problem}"
            any_failed = True
        console.print(f"ALERT_URLS, {escape(name)}: {outcome}")
    raise typer.Exit(1 if any_failed else 0)
