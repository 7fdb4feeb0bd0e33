"""The command `sandbox`, and the sandbox that `up` serves while no exchange is configured."""

import signal
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime
from typing import Annotated

import typer

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.cli import CommandError, app, console
from affiliate_pipeline.domain.days import DAY
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.faults import KINDS
from affiliate_pipeline.sandbox.server import HOST, WILDCARDS

RATE_SCALE = 20
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}
FailDays = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-day",
        metavar="DAY[=STATUS]",
        help="A day, 2026-10-01 or yesterday, that the sandbox fails every request for: at Binance with this HTTP status, by "
        "default 500; at LBank with an error code. May be repeated.",
    ),
]


@app.command()
def sandbox(
    account: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ALIAS",
            help="A further account at every exchange, with its own keys and data. May be repeated.",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="The address that the sandbox listens on; 0.0.0.0 for all, so that other hosts can use it."),
    ] = HOST,
    port: Annotated[int, typer.Option(help="The port; 0 selects a free one.", min=0, max=65535)] = 0,
    rows_per_day: Annotated[int, typer.Option(help="About how many rebates Binance has per day.", min=1)] = 3000,
    users: Annotated[int, typer.Option(help="The number of users under LBank's affiliate.", min=1)] = 60,
    rate_scale: Annotated[
        float,
        typer.Option(help="Permit this many times the requests of the real exchanges.", min=0.01, max=1000),
    ] = 1.0,
    fail_day: FailDays = None,
    error_rate: Annotated[
        float,
        typer.Option(
            help="The share of responses, chosen at random, that are faulty: an error, a web page, a closed connection.",
            min=0,
            max=1,
        ),
    ] = 0.0,
) -> None:
    """Serve exchanges with generated data, and print the variables of their accounts for `.env`."""
    try:
        server = Sandbox(
            accounts=account or [],
            host=host,
            port=port,
            rows_per_day=rows_per_day,
            users=users,
            rate_scale=rate_scale,
        )
    except ValueError as error:
        raise CommandError(f"{error}") from None
    _set_failing_days(server, failing_days(fail_day))
    rates = dict.fromkeys(KINDS, error_rate / len(KINDS))
    for served_account in server.accounts.values():
        served_account.faults.mix(**rates)

    # Block the signals before the threads start and inherit the mask, so that only sigwait receives them.
    previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        with _started(server):
            variables = server.variables
            if rate_scale != 1:
                variables["AFFILIATE_RATE_SCALE"] = f"{rate_scale:g}"
            console.print(f"# The sandbox listens on {server.url}. Its accounts, as lines for .env:")
            if host in WILDCARDS:
                console.print("# On other hosts, use an address of this machine in the URLs.")
            for name, value in variables.items():
                console.print(f"{name}={value}", markup=False)
            signal.sigwait(STOP_SIGNALS)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)


@contextmanager
def _started(server: Sandbox) -> Generator[None, None, None]:
    try:
        server.start()
    except OSError as error:
        raise CommandError(
            f"port {server.port} of {server.host} cannot be used ({error.strerror})",
            "Choose another one with --port, or another address with --host",
        ) from None
    try:
        yield
    finally:
        server.stop()


def failing_days(texts: Sequence[str] | None) -> dict[date, int]:
    """The HTTP status of each day that `--fail-day` names; raises `CommandError`."""
    statuses: dict[date, int] = {}
    for text in texts or ():
        day_text, _, status_text = text.partition("=")
        try:
            day = datetime.now(UTC).date() - DAY if day_text == "yesterday" else date.fromisoformat(day_text)
            status = int(status_text or 500)
        except ValueError:
            raise CommandError(
                f"--fail-day {text} is neither a day nor a day with an HTTP status",
                "Write 2026-10-01, yesterday or 2026-10-01=503",
            ) from None
        if not 400 <= status <= 599:
            raise CommandError(f"--fail-day {text} names no error", "Use an HTTP status from 400 to 599")
        statuses[day] = status
    return statuses


def _set_failing_days(server: Sandbox, days: Mapping[date, int]) -> None:
    for account in server.accounts.values():
        for day, status in days.items():
            account.faults.fail_day(day, status=status)


@contextmanager
def serving(failing: Mapping[date, int]) -> Generator[None, None, None]:
    """Serve the sandbox, on its previous port if possible, and save its variables for all commands.

    Requests that cover a day of `failing` get an error: at Binance with this HTTP status, at LBank with an error code.
    """
    saved = settings.sandbox_variables()
    # One port serves all exchanges, so the base URL of any of them has it.
    port = saved.get(ENDPOINTS[0].exchange.base_url_variable, "").rpartition(":")[2]
    try:
        server = Sandbox(port=int(port or 0), rate_scale=RATE_SCALE).start()
    except OSError:
        server = Sandbox(rate_scale=RATE_SCALE).start()
    _set_failing_days(server, failing)

    try:
        settings.save_sandbox_variables({"AFFILIATE_RATE_SCALE": str(RATE_SCALE), **server.variables})
        console.print(
            "No exchange is configured, so [bold]the sandbox[/bold] serves generated data on this machine. It has its own "
            f"database and {RATE_SCALE} times the real rate limits.\n"
            f"For real accounts, set {_credential_variables()} in .env and start again."
        )
        for day, status in failing.items():
            console.print(
                f"--fail-day: the sandbox fails every request for {day} (at Binance with HTTP {status}, at LBank with an "
                "error code)."
            )
        yield
    finally:
        server.stop()


def _credential_variables() -> str:
    """The variables of each exchange's credentials, as text: those of the role of its first endpoint."""
    by_exchange: dict[str, Sequence[str]] = {}
    for endpoint in ENDPOINTS:
        by_exchange.setdefault(endpoint.exchange.name, endpoint.credentials)
    return ", or ".join(" and ".join(names) for names in by_exchange.values())
