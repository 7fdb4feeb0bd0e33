"""What `up` and `land` share: runs that land days, followed until they have ended.

Each run is independent: whatever fails in one of them, the others land their days.
"""

import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

from rich.markup import escape
from rich.table import Table

from affiliate_pipeline.app.cli import CommandError, console, doing
from affiliate_pipeline.app.dagster_client import DagsterClient
from affiliate_pipeline.commission.rollup import Commission, derived_assets
from affiliate_pipeline.domain.days import DAY, day_ranges, format_days
from affiliate_pipeline.domain.expected_days import LandedDay, expected_days
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.domain.settings import Environment
from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.exchanges.registry import Catalog, configured_catalog, first_day, first_earning_day
from affiliate_pipeline.landing.pipeline import now_ms
from affiliate_pipeline.landing.store import Store

READ_AGAIN_AFTER = timedelta(hours=1)
POLL_S = 0.5
# Dagster has no status of a run that a user has deleted.
DELETED = "DELETED"
ENDED = ("SUCCESS", "FAILURE", "CANCELED", DELETED)


class LandingInterrupted(Exception):
    """A signal has interrupted the landing."""


@dataclass(frozen=True)
class Request:
    """What one run is to materialize: these assets over the consecutive days (empty: they have no partitions)."""

    title: str
    keys: tuple[str, ...]
    days: tuple[date, ...] = ()
    # The endpoints of the assets; empty for derived assets and reference tables.
    endpoints: tuple[Endpoint, ...] = ()

    def __str__(self) -> str:
        return f"{self.title} {format_days(self.days)}".rstrip()

    def for_today(self) -> "Request | None":
        """The same request for today, if it is for snapshots of a day that has ended since; otherwise None."""
        if not self.endpoints or isinstance(self.endpoints[0], Records):
            return None
        today = datetime.now(self.endpoints[0].exchange.zone).date()
        if self.days == (today,):
            return None
        return replace(self, days=(today,))


@dataclass(frozen=True)
class Failure:
    """A request whose run failed, was canceled or could not be launched, and why."""

    request: Request
    reasons: tuple[str, ...]


class _RunKey(NamedTuple):
    """What the endpoints that share a run have in common."""

    account: str
    is_records: bool
    first_partition: date
    days: tuple[date, ...]


@dataclass(frozen=True)
class Landing:
    """Launches runs in Dagster; `land` raises `LandingInterrupted` once `stopping` is set."""

    environment: Environment
    dagster: DagsterClient
    stopping: threading.Event

    @property
    def catalog(self) -> Catalog:
        """The endpoints of all accounts."""
        return configured_catalog(self.environment.variables)

    def missing(self, again: Collection[date] = ()) -> list[Request]:
        """Requests for the configured assets' days that have not landed or not settled, and for the days `again`.

        Left out are days that can no longer be fetched and, except for the days `again`, days that were read in the
        last hour. Assets share a run if they are of the same account, have the same partitions and miss the same days.
        """
        read_before = datetime.now(UTC) - READ_AGAIN_AFTER
        by_run: dict[_RunKey, list[Endpoint]] = {}
        with self._store() as store:
            for endpoint in self._scheduled():
                first = first_day(endpoint, self.environment)
                # Without its ledger entry, a day of `again` counts as not landed, even if it has settled or was just
                # read.
                landed = {day: entry for day, entry in store.ledger(endpoint).items() if day not in again}
                for days in day_ranges(_days_to_land(endpoint, first, landed, read_before)):
                    key = _RunKey(endpoint.group, isinstance(endpoint, Records), first, tuple(days))
                    by_run.setdefault(key, []).append(endpoint)
        return [request_of(endpoints, key.days) for key, endpoints in by_run.items()]

    def why_nothing_can_land(self) -> str | None:
        """The reason why nothing is `missing` although nothing has landed; None if a day has landed."""
        scheduled = self._scheduled()
        if not scheduled:
            return "no account has its API key set"
        first = min(first_day(each, self.environment) for each in scheduled)
        with self._store() as store:
            for endpoint in scheduled:
                if any(day >= first for day in store.ledger(endpoint)):
                    return None
        return f"the first day, {first}, has not ended"

    def _scheduled(self) -> list[Endpoint]:
        """The configured endpoints that a schedule lands."""
        endpoints = self.catalog.endpoints
        return [each for each in endpoints if each.lands_at and self.environment.is_any_set(each.credentials)]

    def stale(self) -> list[Request]:
        """Requests for the days whose commission is to be added up again, or whose prices are missing.

        While `up` runs, the sensor `stale_days` requests them too.
        """
        with self._store() as store:
            first = first_earning_day(self.catalog, self.environment)
            last = datetime.now(UTC).date() - DAY
            commission = Commission(store, self.catalog.earning, has_prices=self.environment.has_prices)
            stale_or_unpriced = commission.stale_or_unpriced(first, last)
        keys = derived_assets(has_prices=self.environment.has_prices)
        return [Request(", ".join(keys), keys, tuple(days)) for days in day_ranges(stale_or_unpriced)]

    def land(self, requests: Sequence[Request]) -> list[Failure]:
        """Launch a run per request, follow all of them and print how each one ends; return the failures.

        Raises `LandingInterrupted` once `stopping` is set. This, or any other error, cancels the runs in progress.
        """
        if not requests:
            return []
        failures: list[Failure] = []
        running: dict[str, Request] = {}
        began = datetime.now(UTC)
        try:
            for request in requests:
                failure = self._launch(request, running)
                if failure:
                    failures.append(failure)

            with doing(f"Landing: {count_of(len(running), 'run')}") as show:
                while running:
                    if self.stopping.wait(POLL_S):
                        raise LandingInterrupted
                    failures += self._handle_ended_runs(running, began)
                    show(self._progress(requests, running, began))
        finally:
            if running:
                self.dagster.cancel(running)
        return failures

    def _launch(self, request: Request, running: dict[str, Request]) -> Failure | None:
        """Launch the request's run and add it to `running`; return the failure if Dagster refuses it.

        Raises `LandingInterrupted` once `stopping` is set.
        """
        if self.stopping.is_set():
            raise LandingInterrupted
        try:
            running[self.dagster.launch(request.keys, request.days)] = request
        except CommandError as error:
            return Failure(request, (f"{error.problem}",))
        return None

    def _handle_ended_runs(self, running: dict[str, Request], began: datetime) -> list[Failure]:
        """Handle the end of each run that has ended; return the failures."""
        failures: list[Failure] = []
        statuses = self.dagster.statuses(running)
        for run_id in [*running]:
            status = statuses.get(run_id, DELETED)
            if status in ENDED:
                failure = self._handle_end(run_id, status, running, began)
                if failure:
                    failures.append(failure)
        return failures

    def _handle_end(self, run_id: str, status: str, running: dict[str, Request], began: datetime) -> Failure | None:
        """Remove the run from `running` and print how it has ended; return its failure, if any.

        If snapshots failed and their day has ended since, only launch them again for today.
        """
        request = running.pop(run_id)
        retry = request.for_today() if status == "FAILURE" else None
        if retry:
            return self._launch(retry, running)

        if request.endpoints:
            total = count_of(len(request.endpoints) * len(request.days), "day")
            console.print(escape(f"{request}: {self._count_landed([request], began)} of {total} landed"))
        elif status == "SUCCESS":
            console.print(escape(f"{request}: done"))

        if status == "SUCCESS":
            return None
        if status == "FAILURE":
            return Failure(request, tuple(self.dagster.failures(run_id)))
        return Failure(request, (f"the run was {status.lower()}; the days that it had not completed are unchanged",))

    def _count_landed(self, requests: Iterable[Request], began: datetime) -> int:
        """How many of the requested days, counted per asset, have landed since `began`."""
        count = 0
        with self._store() as store:
            for request in requests:
                for endpoint in request.endpoints:
                    entries = store.ledger(endpoint, request.days).values()
                    count += sum(entry.checked_at >= began for entry in entries)
        return count

    def _progress(self, requests: Sequence[Request], running: Mapping[str, Request], began: datetime) -> str:
        in_progress = f"{count_of(len(running), 'run')} in progress"
        total = sum(len(each.endpoints) * len(each.days) for each in requests)
        if not total:
            return f"Landing: {in_progress}"
        landed = self._count_landed(requests, began)
        return f"Landing: {landed} of {count_of(total, 'day')} landed, {in_progress}"

    def summarize(self) -> None:
        """Print the landed days, rows and settled days of each asset."""
        table = Table("asset", "days landed", "rows", "settled", title="What has landed")
        with self._store() as store:
            for endpoint in self.catalog.endpoints:
                entries = list(store.ledger(endpoint).values())
                table.add_row(
                    endpoint.key,
                    format_days(entry.partition for entry in entries) or "none",
                    f"{sum(entry.rows for entry in entries):,}",
                    f"{sum(entry.settled for entry in entries)} of {len(entries)}",
                )
        console.print(table, soft_wrap=False)

    def _store(self) -> Store:
        return Store(self.environment.database_url())


def _days_to_land(
    endpoint: Endpoint, first: date, landed: Mapping[date, LandedDay], read_before: datetime
) -> list[date]:
    """The expected days since `first` that can still be fetched, without those last read after `read_before`."""
    days: list[date] = []
    for expected in expected_days(endpoint.timetable, first, now_ms(), landed):
        was_just_read = expected.last_read_at is not None and expected.last_read_at > read_before
        if expected.is_retained(now_ms()) and not was_just_read:
            days.append(expected.day)
    return days


def request_of(endpoints: Sequence[Endpoint], days: Sequence[date]) -> Request:
    """The request to land these days of assets of one account."""
    first = endpoints[0]
    title = first.key
    if len(endpoints) > 1:
        account = f" (account {first.alias})" if first.alias else ""
        title = f"{len(endpoints)} assets of {first.exchange.title}{account}"
    return Request(title, tuple(each.key for each in endpoints), tuple(days), tuple(endpoints))


def print_failures(failures: Iterable[Failure]) -> None:
    """Print what failed and why, each line once per run."""
    for failure in failures:
        title = escape(f"{failure.request} failed.")
        console.print(f"[bold red]{title}[/]")
        lines = dict.fromkeys(line for reason in failure.reasons for line in reason.splitlines())
        console.print(escape(redact("\n".join(lines))))
