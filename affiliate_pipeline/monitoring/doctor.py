"""What is wrong with a set-up, and what to do about it.

The checks change nothing: they start no server and write no row. They bypass the rate limiter, so they send each
account only a few requests.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from typing import Any, Final

import psycopg

from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.domain.problem import AffiliateError, SettingsError
from affiliate_pipeline.domain.settings import Environment, Mode, Project, Settings, execution_in, malformed
from affiliate_pipeline.domain.wording import command, count_of, up_command
from affiliate_pipeline.exchanges.endpoint import Endpoint, Probe
from affiliate_pipeline.exchanges.fetching import Session
from affiliate_pipeline.exchanges.registry import StartDates, configured_catalog, first_day, unusable_variables
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.http.errors import (
    AccessRefused,
    ExchangeError,
    RateLimited,
    Refused,
    TimestampRejected,
)
from affiliate_pipeline.http.network import require_sandbox
from affiliate_pipeline.landing import ledger
from affiliate_pipeline.landing.pipeline import now_ms
from affiliate_pipeline.landing.store import privileges
from affiliate_pipeline.monitoring.delivery import AlertSettings, channels, problem_of
from affiliate_pipeline.monitoring.overdue import described, overdue_days
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import as_store_unavailable
from affiliate_pipeline.postgres.readiness import problems

# Binance rejects timestamps that are further ahead of its clock.
MAX_CLOCK_OFFSET_MS = 1000
# What to do about a failing account, unless the error has an action; the first error class that matches counts.
ACTIONS: dict[type[ExchangeError], str] = {
    TimestampRejected: "Set this machine's clock by NTP",
    RateLimited: "Wait a minute and check again; see what else uses this key or IP address",
    AccessRefused: "Correct {variables} in .env, or the key's settings at the exchange",
    Refused: "Look up the exchange's message in the runbook",
    ExchangeError: "Check the network, {base_url} and the exchange's status page",
}
# The number of unusable lines of a file that are quoted.
MAX_LINES = 5
# Daemons write a heartbeat every 30 seconds, the scheduler every minute.
MAX_SILENCE = timedelta(seconds=150)
# What Dagster has recorded: which daemons have written no heartbeat since an instant, whether any schedule runs, and
# the sensors and schedules that are stopped or whose last tick failed.
_AUTOMATION: Final = """
select
    array(
        select lower(type)
        from unnest('{SENSOR,SCHEDULER}'::text[]) type
        where not exists (select from public.daemon_heartbeats where daemon_type = type and timestamp > %s)
    ) as silent_daemons,
    exists (
        select from public.instigators where instigator_type = 'SCHEDULE' and status <> 'STOPPED'
    ) as has_running_schedule,
    array(
        select instigator_body::json -> 'origin' ->> 'job_name'
        from public.instigators
        where status = 'STOPPED'
        order by 1
    ) as stopped,
    array(
        select tick_body::json ->> 'job_name'
        from (
            select distinct on (selector_id) status, tick_body
            from public.job_ticks
            where status <> 'STARTED'
            order by selector_id, id desc
        ) last_tick
        where status = 'FAILURE'
        order by 1
    ) as failing
"""


@dataclass(frozen=True)
class Finding:
    """One finding; it is a problem only if there is something `to_do`."""

    about: str
    found: str
    to_do: str = ""


def of_settings(about: str, error: SettingsError) -> Iterator[Finding]:
    """One finding for each error, with its action; it is about `about` if the error names no variable."""
    for each in error.errors:
        yield Finding(each.variable or about, each.problem.what, each.problem.action)


def settings(environment: Environment) -> Iterator[Finding]:
    """Findings about ignored variables and general settings; `accounts` checks the exchanges'."""
    variables = environment.variables
    for unusable in unusable_variables(variables):
        yield Finding(unusable.name, unusable.problem, unusable.action)
    for kind in (Project, StartDates):
        yield from _errors_of(partial(_check_dates, kind, variables))
    yield from _errors_of(lambda: execution_in(variables))
    yield from _errors_of(lambda: AlertSettings.load(variables).heartbeat())
    yield from _errors_of(lambda: _check_channels(AlertSettings.load(variables)))

    has_targets = "ALERT_URLS" in variables
    if has_targets:
        yield Finding("ALERT_URLS", "set; `affiliate-pipeline alert --test` sends a message to each")
    else:
        yield Finding("ALERT_URLS", "not set: failures are reported only in Dagster's UI and in logs")
    with suppress(SettingsError):  # reported above
        if environment.digest != "off" and not has_targets:
            found = f"the {environment.digest} digest is only logged: ALERT_URLS is not set"
            yield Finding("AFFILIATE_DIGEST", found, "Set ALERT_URLS, or remove AFFILIATE_DIGEST")


def _errors_of(run_check: Callable[[], object]) -> Iterator[Finding]:
    try:
        run_check()
    except SettingsError as error:
        yield from of_settings("settings", error)


def _check_dates(kind: type[Settings], variables: Mapping[str, str]) -> None:
    """Raise `SettingsError` for malformed settings, and for a day in the future."""
    # The first time zone in which a day begins is UTC+14.
    today = (datetime.now(UTC) + timedelta(hours=14)).date()
    for name, value in kind.load(variables):
        if isinstance(value, date) and value > today:
            raise malformed(name.upper(), f"is {value}, which is in the future: no day would land")


def _check_channels(alerts: AlertSettings) -> None:
    """Raise `SettingsError` for the first URL that Apprise cannot use."""
    for name, url in channels(alerts.urls()).items():
        if problem := problem_of(url):
            raise malformed("ALERT_URLS", f"cannot be used: {name} {problem}")


def database(environment: Environment, daemon_stopped_at: datetime | None = None) -> Iterator[Finding]:
    """Findings about the database, Dagster's daemon and the landed days; an embedded server must be running.

    Args:
        daemon_stopped_at: When Dagster's daemon is known to have stopped, so that earlier heartbeats do not count.
    """
    try:
        with as_store_unavailable(), connect(environment.database_url(), autocommit=True) as connection:
            connection.execute("set default_transaction_read_only = on")
            major_version = connection.info.server_version // 10000
            yield Finding("database", f"PostgreSQL {major_version} responds")

            endpoints = configured_catalog(environment.variables).endpoints
            configured = [endpoint for endpoint in endpoints if environment.is_any_set(endpoint.credentials)]
            for error in problems(connection, privileges(configured)):
                yield Finding("database", error.problem.what, error.problem.action)

            yield from _automation(connection, daemon_stopped_at, starts_schedules=environment.runs_schedules)

            ledgers: ledger.Ledgers = ledger.entries_since(connection) if ledger.exists(connection) else {}
            yield from _days(endpoints, ledgers, environment)
            yield from _sources(connection, endpoints, ledgers, environment)
    except SettingsError as error:
        yield from of_settings("database", error)
    except AffiliateError as error:
        yield Finding("database", error.problem.what, error.problem.action)


def _automation(
    connection: psycopg.Connection[Any], daemon_stopped_at: datetime | None, *, starts_schedules: bool
) -> Iterator[Finding]:
    """Dagster's daemon, schedules and sensors.

    Args:
        starts_schedules: Whether schedules run without being started in the UI. Needed because, after its start, the
            daemon takes up to a minute to record which schedules run.
    """
    # A daemon runs if it has written a heartbeat after this time.
    alive_after = datetime.now(UTC) - MAX_SILENCE
    if daemon_stopped_at:
        alive_after = max(alive_after, daemon_stopped_at)
    [(has_dagster_started,)] = connection.execute(
        "select to_regclass('public.daemon_heartbeats') is not null"
    ).fetchall()
    if has_dagster_started:
        # Dagster stores times in UTC, without a zone.
        rows = connection.execute(_AUTOMATION, (alive_after.replace(tzinfo=None),)).fetchall()
        [(silent_daemons, has_running_schedule, stopped, failing)] = rows
    else:
        silent_daemons, has_running_schedule, stopped, failing = ["sensor", "scheduler"], False, (), ()

    if silent_daemons:
        action = (
            f"Once no landing is in progress, start it again: `{command('down')}`, then `{up_command()}`; on a server, "
            "start the Dagster daemon"
        )
        yield Finding("daemon", f"Dagster's daemon is not running ({', '.join(silent_daemons)})", action)
    else:
        yield Finding("daemon", "Dagster's daemon is running")
        if not has_running_schedule and not starts_schedules:
            action = "Set AFFILIATE_SCHEDULES=true, or start them in the UI, Automation"
            yield Finding("schedules", "none is running", action)

    if stopped:
        action = "Start them again in Dagster's UI, under Automation"
        yield Finding("schedules and sensors", f"stopped: {', '.join(stopped)}", action)
    if failing:
        action = "See its error in the UI, under Automation"
        yield Finding("schedules and sensors", f"the last tick failed: {', '.join(failing)}", action)


def _days(endpoints: Sequence[Endpoint], ledgers: ledger.Ledgers, environment: Environment) -> Iterator[Finding]:
    """The overdue days of each asset, and the number of assets with landed but no overdue days."""
    now = now_ms()
    up_to_date = 0
    for endpoint in endpoints:
        overdue = overdue_days(endpoint, ledgers, first_day(endpoint, environment), now)
        if overdue:
            found = f"{format_days(each.day for each in overdue)} missing or not final. {described(overdue[0], now)}"
            action = "Materialize these days; if a run fails, it gives the reason"
            yield Finding(f"days of {endpoint.key}", found, action)
        elif endpoint.key in ledgers:
            up_to_date += 1

    if up_to_date:
        yield Finding("days", f"no day of {count_of(up_to_date, 'asset')} is overdue")
    elif not any(ledgers.values()):
        yield Finding("days", "nothing has landed yet", f"Run `{up_command()}`, or materialize days in the UI")


def _sources(
    connection: psycopg.Connection[Any],
    endpoints: Sequence[Endpoint],
    ledgers: ledger.Ledgers,
    environment: Environment,
) -> Iterator[Finding]:
    """The assets with days from another account or host than the one that is configured."""
    for endpoint in endpoints:
        landed_from = {entry.source for entry in ledgers.get(endpoint.key, {}).values()}
        if not landed_from:
            continue
        with suppress(SettingsError):  # `accounts` reports it
            session = endpoint.exchange.connect(endpoint, SharedState(), environment.variables)
            session.client.close()
            others = sorted(landed_from.difference(session.identity.recorded_sources(connection)))
            if others:
                yield Finding(
                    f"source of {endpoint.key}",
                    f"days have landed from {', '.join(others)}, but {session.source} is configured",
                    "Use the earlier credentials and base URL, or another database. After rotating a key, materialize a day: if the "
                    "exchange states that it is the same account, nothing else is needed",
                )


def accounts(environment: Environment) -> Iterator[Finding]:
    """Whether each account is configured, can be reached and accepts its credentials."""
    endpoints = configured_catalog(environment.variables).endpoints
    configured = {(each.exchange.name, each.alias) for each in endpoints if environment.is_any_set(each.credentials)}
    if not configured:
        action = f"Set the keys of one in .env (README, Real accounts), or try the sandbox with `{up_command()}`"
        yield Finding("accounts", "no exchange is configured", action)
        return
    if environment.mode is Mode.SANDBOX:
        try:
            require_sandbox(environment.variables[endpoints[0].exchange.base_url_variable])
        except SettingsError as error:
            yield from of_settings("sandbox", error)
            return

    measured_exchanges: set[str] = set()
    for about, to_check in _to_check_by_account(endpoints).items():
        first = to_check[0]
        if environment.is_any_set(first.credentials):
            yield from _account(about, to_check, environment, measured_exchanges)
        elif first.alias and (first.exchange.name, first.alias) not in configured:
            action = f"Set {', '.join(first.credentials)} in .env, or remove the other variables of the account"
            yield Finding(about, "the account has variables, but no credentials", action)
        else:
            yield Finding(about, "not configured: its assets do not land")


def _to_check_by_account(endpoints: Sequence[Endpoint]) -> dict[str, list[Endpoint]]:
    """The endpoints with a `probe` or a `file_check`, by exchange, alias and role (as one text)."""
    by_account: dict[str, list[Endpoint]] = {}
    for endpoint in endpoints:
        if endpoint.probe or endpoint.file_check:
            parts = filter(None, (endpoint.exchange.name, endpoint.alias, endpoint.role))
            by_account.setdefault(" ".join(parts), []).append(endpoint)
    return by_account


def _account(
    about: str, endpoints: list[Endpoint], environment: Environment, measured_exchanges: set[str]
) -> Iterator[Finding]:
    """Check the account's input files, its exchange's clock, and its credentials by each probe until one fails.

    Args:
        measured_exchanges: The exchanges whose clock has been compared; this account's exchange is added.
    """
    for endpoint in endpoints:
        try:
            session = endpoint.exchange.connect(endpoint, SharedState(), environment.variables)
        except SettingsError as error:
            yield from of_settings(about, error)
            return

        with session.client:
            yield from _file(endpoint, session)
            if not endpoint.probe:
                continue

            with suppress(ExchangeError):  # the request that follows reports it
                offset_ms = session.client.adopt_clock()
                if offset_ms is not None and endpoint.exchange.name not in measured_exchanges:
                    measured_exchanges.add(endpoint.exchange.name)
                    yield _clock_offset(endpoint, offset_ms)

            try:
                body = session.client.probe(endpoint.path, endpoint.probe.params(session, now_ms()))
            except ExchangeError as error:
                yield _refusal(about, endpoint, endpoint.probe, error, session.client.host)
                return
            problem = endpoint.probe.problem(body) if endpoint.probe.problem else None
            if problem:
                yield from of_settings(about, malformed(endpoint.variable(endpoint.probe.tested_variable), problem))
                return
    yield Finding(about, "responds, and accepts the credentials")


def _file(endpoint: Endpoint, session: Session) -> Iterator[Finding]:
    """What is wrong with the input file that the endpoint's `file_check` names, if it has one."""
    if not endpoint.file_check:
        return
    variable, unusable_lines_in = endpoint.file_check
    try:
        unusable = unusable_lines_in(session)
        if unusable:
            count = count_of(len(unusable), "line")
            found = f"names a file of which {count} cannot be used: {'; '.join(unusable[:MAX_LINES])}"
            yield from of_settings(variable, malformed(endpoint.variable(variable), found))
    except SettingsError as error:
        yield from of_settings(variable, error)


def _clock_offset(endpoint: Endpoint, offset_ms: int) -> Finding:
    action = ACTIONS[TimestampRejected] if abs(offset_ms) > MAX_CLOCK_OFFSET_MS else ""
    found = f"{offset_ms / 1000:+z.1f} s relative to this machine's clock"
    return Finding(f"clock of {endpoint.exchange.name}", found, action)


def _refusal(about: str, endpoint: Endpoint, probe: Probe, error: ExchangeError, host: str) -> Finding:
    """The finding about an account whose request was refused or did not reach the exchange."""
    if isinstance(error, TimestampRejected) and error.server_ms is not None:
        return _clock_offset(endpoint, error.server_ms - now_ms())

    what = error.problem.what
    if probe.tested_variable and isinstance(error, AccessRefused | Refused):
        refused = malformed(endpoint.variable(probe.tested_variable), f"was refused: {what}")
        return next(of_settings(about, refused))

    kind = next(kind for kind in ACTIONS if isinstance(error, kind))
    action = error.problem.action or ACTIONS[kind].format(
        variables=", ".join(endpoint.credentials), base_url=endpoint.exchange.base_url_variable
    )
    return Finding(about, f"{host}: {what}" if kind is ExchangeError else what, action)
