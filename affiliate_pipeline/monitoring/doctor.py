"""What is wrong with a set-up, and what to do about it. Changes nothing: starts no server, writes no row, takes no slot of a
rate limit. So each account gets one or two requests only."""

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import date

from affiliate_pipeline.domain.days import fold
from affiliate_pipeline.domain.environment import Environment
from affiliate_pipeline.domain.problem import AffiliateError, SettingsError
from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.exchanges.fetching import Session
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.http.errors import (
    AccessRefused,
    ClockOff,
    ExchangeError,
    ProxyFailed,
    RateLimited,
    Refused,
    UnusableNetwork,
)
from affiliate_pipeline.landing.ledger import LedgerEntry
from affiliate_pipeline.monitoring.configuration import Alerts
from affiliate_pipeline.monitoring.database_state import Examination
from affiliate_pipeline.monitoring.overdue import described, overdue_days

# What Binance tolerates of a clock that is ahead.
MAX_CLOCK_OFFSET_MS = 1000
START = "Start it: `make up`, or on a server the Dagster daemon"
# What to do first about an account that does not answer; the first kind that fits counts.
ACTIONS: dict[type[ExchangeError], str] = {
    ClockOff: "Set this machine's clock by NTP",
    RateLimited: "Wait a minute and check again; see what else uses this key or IP address",
    AccessRefused: "Correct {variables} in .env, or the key's settings at the exchange",
    Refused: "See what the exchange says; the runbook has what to do about it",
    ProxyFailed: "Check the proxy, or correct or unset its variable if none is needed",
    ExchangeError: "Check the network, the base URL and the exchange's status page",
}


@dataclass(frozen=True)
class Finding:
    """What was found; with nothing `to_do`, nothing is wrong."""

    about: str
    found: str
    to_do: str = ""


def alerts(environment: Environment) -> Iterator[Finding]:
    """What is wrong with the settings of alerts."""
    try:
        Alerts.load(environment.variables).urls()
    except SettingsError as error:
        yield Finding("alerts", error.problem.what, "Correct it in the environment or in .env")


def database(environment: Environment) -> Iterator[Finding]:
    """The database and what it holds; if it is the embedded one, it runs."""
    try:
        with Examination(environment.database_url()) as examination:
            yield from _held(examination, environment)
    except SettingsError as error:
        yield Finding("database", error.problem.what, "Set it to postgresql://user:password@host:port/database in .env")
    except AffiliateError as error:
        yield Finding("database", error.problem.what, error.problem.action)


def _held(examination: Examination, environment: Environment) -> Iterator[Finding]:
    yield Finding("database", f"PostgreSQL {examination.version} answers")
    configured = [endpoint.key for endpoint in ENDPOINTS if environment.is_any_set(endpoint.credentials)]
    for error in examination.problems(configured):
        yield Finding("database", error.problem.what, error.problem.action)
    daemon = examination.daemon()
    if daemon.silent:
        yield Finding("daemon", f"Dagster's daemon does not run ({', '.join(daemon.silent).lower()})", START)
    else:
        yield Finding("daemon", "Dagster's daemon runs")
        if not daemon.any_schedule:
            yield Finding("schedules", "none runs", "Set AFFILIATE_SCHEDULES=true, or start them in the UI, Automation")
    if daemon.stopped:
        yield Finding(
            "sensors", f"stopped: {', '.join(daemon.stopped)}", "Start them again in Dagster's UI, under Automation"
        )
    if daemon.failing:
        yield Finding(
            "sensors",
            f"the last turn failed of {', '.join(daemon.failing)}",
            "See its error in the UI, under Automation",
        )
    ledgers = examination.ledgers()
    yield from _days(ledgers, environment)
    yield from _sources(ledgers, environment)


def _days(ledgers: Mapping[str, Mapping[date, LedgerEntry]], environment: Environment) -> Iterator[Finding]:
    """The overdue days: at risk while they can be fetched, and lost after that."""
    start, now_ms = environment.start_date, _now_ms()
    fine = 0
    for endpoint in ENDPOINTS:
        if days := overdue_days(endpoint, ledgers, start, now_ms):
            found = f"{fold(each.day for each in days)} missing or not final. {described(days[0], now_ms)}"
            yield Finding(f"days of {endpoint.key}", found, "Materialize these days; if a run fails, it says why")
        else:
            fine += endpoint.key in ledgers
    if fine:
        yield Finding("days", f"none that is due is missing, of {fine} assets")
    elif not any(ledgers.values()):
        yield Finding("days", "nothing has landed yet", "Start it (`make up`), or materialize days in the UI")


def _sources(ledgers: Mapping[str, Mapping[date, LedgerEntry]], environment: Environment) -> Iterator[Finding]:
    for endpoint in ENDPOINTS:
        held = {row.source for row in ledgers.get(endpoint.key, {}).values()}
        with suppress(SettingsError):  # reported already
            session = endpoint.exchange.connect(endpoint, SharedState(), environment.variables)
            with session.client:
                configured = session.source
            if others := sorted(held - {configured}):
                yield Finding(
                    f"source of {endpoint.key}",
                    f"days were landed from {', '.join(others)}, and what is configured is {configured}",
                    "Use the credentials and the base URL of then, or another database; after rotating a key see the runbook",
                )


def accounts(environment: Environment) -> Iterator[Finding]:
    """The accounts: whether each is configured, can be reached and has the right credentials."""
    endpoints_of: dict[tuple[str, str], list[Endpoint]] = {}
    for endpoint in ENDPOINTS:
        endpoints_of.setdefault((endpoint.exchange.name, endpoint.account), []).append(endpoint)
    if not any(environment.is_any_set(endpoint.credentials) for endpoint in ENDPOINTS):
        yield Finding(
            "accounts",
            "no exchange is configured",
            "Set the keys of one in .env (README, Real accounts), or let `make up` play them",
        )
        return
    for (exchange, account), endpoints in endpoints_of.items():
        about = f"{exchange} {account}"
        if not environment.is_any_set(endpoints[0].credentials):
            yield Finding(about, "not configured: its assets do not land")
        else:
            yield from _account(about, [endpoint for endpoint in endpoints if endpoint.probe], environment)


def _account(about: str, endpoints: list[Endpoint], environment: Environment) -> Iterator[Finding]:
    for endpoint in endpoints:
        assert endpoint.probe
        try:
            session = endpoint.exchange.connect(endpoint, SharedState(), environment.variables)
        except SettingsError as error:
            yield Finding(
                about,
                error.problem.what,
                f"Set {', '.join((*endpoint.credentials, *endpoint.requires))} in .env, all of them",
            )
            return
        with session.client:
            offset = _clock(f"clock of {endpoint.exchange.name}", session)
            if offset and endpoint is endpoints[0]:
                yield offset
            try:
                session.client.attempt(endpoint.path, endpoint.probe.params(session, _now_ms()))
            except ExchangeError as error:
                yield _refusal(endpoint.probe.about or about, endpoint, error, session.client.host)
                return
    yield Finding(about, "answers, and accepts the credentials")


def _clock(about: str, session: Session) -> Finding | None:
    """The offset of the exchange's clock, to which the session is set; None if only a refusal shows it."""
    try:
        offset_ms = session.client.clock_offset_ms()
    except ExchangeError:  # the request that follows reports it
        return None
    return None if offset_ms is None else _offset(about, offset_ms)


def _offset(about: str, offset_ms: int) -> Finding:
    action = ACTIONS[ClockOff] if abs(offset_ms) > MAX_CLOCK_OFFSET_MS else ""
    return Finding(about, f"{offset_ms / 1000:+.1f} s against this machine's", action)


def _refusal(about: str, endpoint: Endpoint, error: ExchangeError, host: str) -> Finding:
    """What is wrong with the account."""
    if isinstance(error, ClockOff) and error.server_ms is not None:
        return _offset(f"clock of {endpoint.exchange.name}", error.server_ms - _now_ms())
    if isinstance(error, UnusableNetwork):
        return Finding(about, error.problem.what, error.problem.action)
    kind = next(kind for kind in ACTIONS if isinstance(error, kind))
    variables = (endpoint.probe and endpoint.probe.about) or ", ".join(endpoint.credentials)
    found = f"{host}: {error}" if kind is ExchangeError else f"{error}"
    return Finding(about, found, ACTIONS[kind].format(variables=variables))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
