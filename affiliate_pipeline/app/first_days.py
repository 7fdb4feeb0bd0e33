"""The first day of each asset, chosen by the first `up` or `land` that has its credentials."""

import signal
import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from operator import attrgetter

import typer
from rich.markup import escape

from affiliate_pipeline.app.cli import console, doing
from affiliate_pipeline.domain.days import DAY, day_of, days_from
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.domain.settings import Environment, Mode
from affiliate_pipeline.environment import save_first_days
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.exchanges.fetching import RequestPlan
from affiliate_pipeline.exchanges.registry import configured_catalog, start_date
from affiliate_pipeline.landing import ledger
from affiliate_pipeline.landing.pipeline import connected, now_ms, plan_of
from affiliate_pipeline.landing.store import Store

# How many days of an exchange that retains all days land by default, counting today.
DAYS = 7
# How far back the example of an earlier first day is, in the question and in the hint.
MORE_DAYS = 30
EARLIEST = date(2010, 1, 1)


def ensure(environment: Environment, store: Store) -> Environment:
    """The environment with a first day for every asset that needs one; saves the newly chosen first days.

    Prints the newly chosen first days of `Records`, but not those of snapshots. Assets that are configured or have
    landed need a first day, except `Records` of an exchange whose start date is set. A first day that was chosen
    earlier does not change. No landed day is before a newly chosen one.
    """
    # `entries_since` returns each asset's earliest entry, and its entries from a day on: with `date.max` as that day,
    # only the earliest entry.
    first_landed = {asset: min(days) for asset, days in ledger.entries_since(store.connection, date.max).items()}
    endpoints = configured_catalog(environment.variables).endpoints
    used = [each for each in endpoints if environment.is_any_set(each.credentials) or each.key in first_landed]
    new = [each for each in used if each.key not in environment.first_days]

    chosen = dict(environment.first_days)
    lines: list[str] = []
    # The new `Records` of one API key get the same first day: a day that one of them can no longer land may still be
    # landed by its `Retention.fallback`, and so has to be a partition of the fallback too.
    by_api_key = attrgetter("group", "role")
    for _, group in groupby(sorted(new, key=by_api_key), by_api_key):
        records: list[Records] = []
        for endpoint in group:
            if isinstance(endpoint, Records):
                records.append(endpoint)
            else:
                today = day_of(now_ms(), endpoint.exchange.zone)
                chosen[endpoint.key] = min(today, first_landed.get(endpoint.key, today))
        if records and start_date(records[0].exchange, environment) is None:
            first, suffix = _first_day(records, first_landed, environment, store)
            chosen |= dict.fromkeys((each.key for each in records), first)
            lines.append(f"{_account(records[0])}: the first day is {first}{suffix}.")

    # Without duplicates: the API keys of an account usually have the same first day.
    for line in dict.fromkeys(lines):
        console.print(line)
    updated = replace(environment, first_days=chosen)
    if chosen != environment.first_days:
        save_first_days(updated)
    return updated


def _account(endpoint: Endpoint) -> str:
    title = endpoint.exchange.title
    return f"{title} (account {endpoint.alias})" if endpoint.alias else title


def _first_day(
    records: Sequence[Records], first_landed: Mapping[str, date], environment: Environment, store: Store
) -> tuple[date, str]:
    """The first day of the assets of one API key, and what to append to "the first day is …" (may be empty).

    No landed day is before it; `first_landed` is by asset.
    """
    landed_days = [first_landed[each.key] for each in records if each.key in first_landed]
    first, suffix = _chosen_first_day(records, environment, store, may_prompt=not landed_days)
    if landed_days and min(landed_days) < first:
        return min(landed_days), ""
    return first, suffix


def _chosen_first_day(
    records: Sequence[Records], environment: Environment, store: Store, *, may_prompt: bool
) -> tuple[date, str]:
    """What `_first_day` returns unless a landed day is earlier.

    With `may_prompt`, a user at a terminal chooses the day if the exchange may retain all days.
    """
    exchange = records[0].exchange
    limits = [each.retention.promised for each in records if each.retention]
    if limits:
        promised = min(limits)
        promised_ms = promised // timedelta(milliseconds=1)
        last_expired = day_of(now_ms() - promised_ms, exchange.zone)
        first = last_expired + DAY
        return first, f", the first of the last {promised.days} days, which the exchange promises to retain"

    # A day of UTC for every exchange, so that their assets and the daily commission start with the same one.
    default = datetime.now(UTC).date() - (DAYS - 1) * DAY
    if environment.mode is Mode.SANDBOX:
        return default, ""
    if may_prompt and sys.stdin.isatty() and sys.stdout.isatty():
        try:
            return _prompt_first_day(records, default, environment, store), ""
        except AffiliateError as error:
            console.print(escape(f"{_account(records[0])}: the requests cannot be counted: {error.problem}."))

    variable = f"{exchange.name.upper()}_START_DATE"
    return (
        default,
        f". For earlier days, set {variable} in .env, such as {variable}={default - MORE_DAYS * DAY}, and start `up` again",
    )


def _prompt_first_day(records: Sequence[Records], default: date, environment: Environment, store: Store) -> date:
    """Print what each of two possible first days would cost; return the first day that the user enters.

    The user may enter any other day. Raises `AffiliateError` if the exchange does not respond.
    """
    account = _account(records[0])
    today = day_of(now_ms(), records[0].exchange.zone)
    with doing(f"{account}: counting the requests"):
        # Probe first: unlike the requests of `_cost`, a probe is not retried, so an exchange that does not respond
        # delays nothing.
        _probe(records, environment, store)
        costs = {
            first: _cost(records, days_from(first, today - DAY), environment, store)
            for first in (default, today - MORE_DAYS * DAY)
        }
    console.print(f"{account} retains all days, as far as is known. Which is the first day to land?")
    for first, cost in costs.items():
        console.print(f"  {first}: {cost}")

    def parsed(text: str) -> date:
        try:
            first = date.fromisoformat(text.strip())
        except ValueError:
            raise typer.BadParameter(f"{text} is not a day such as {default}") from None
        if not EARLIEST <= first <= today:
            raise typer.BadParameter(f"{first} is not between {EARLIEST} and {today}")
        return first

    with _interrupted_by_signals():
        return typer.prompt("First day", default=f"{default}", value_proc=parsed)


def _probe(records: Iterable[Records], environment: Environment, store: Store) -> None:
    for each in records:
        if each.probe:
            with connected(each, store, environment.variables) as session:
                session.client.probe(each.path, each.probe.params(session, now_ms()))


@contextmanager
def _interrupted_by_signals() -> Generator[None, None, None]:
    """Let signals raise KeyboardInterrupt: the handlers of `up` only note a signal, which would not end a prompt."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _cost(records: Iterable[Records], days: Sequence[date], environment: Environment, store: Store) -> RequestPlan:
    """What fetching the days of all these assets takes; rate limits are per endpoint, so the slowest sets the time."""
    plans: list[RequestPlan] = []
    for each in records:
        with connected(each, store, environment.variables) as session:
            plans.append(plan_of(each, days, session=session, store=store))
    return RequestPlan(
        min_requests=sum(plan.min_requests for plan in plans),
        max_requests=None,
        seconds=max(plan.seconds for plan in plans),
    )
