"""What `up` lands: the last days that the exchanges still hold and that have not landed or may still change.

It runs `dagster asset materialize`, so the days are ordinary runs in Dagster's UI.
"""

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from rich.markup import escape
from rich.table import Table

from affiliate_pipeline.app.cli import console, doing
from affiliate_pipeline.app.processes import dagster_home, run_dagster
from affiliate_pipeline.commission.rollup import Commission
from affiliate_pipeline.domain.days import DAY, fold, runs
from affiliate_pipeline.domain.environment import Environment
from affiliate_pipeline.domain.expected_days import expected_days
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.exchanges.registry import EARNING, ENDPOINTS
from affiliate_pipeline.landing.pipeline import now_ms
from affiliate_pipeline.landing.store import Store

CHECK_AGAIN_AFTER = timedelta(hours=1)
LANDED_DAYS = 7


@dataclass(frozen=True)
class Batch:
    """Assets with the same partitions and consecutive days of them: one run lands all of it."""

    endpoints: Sequence[Endpoint]
    days: Sequence[date]

    @property
    def title(self) -> str:
        first, *others = self.endpoints
        assets = f"{len(others) + 1} assets of {first.exchange.title}" if others else first.key
        return f"{assets} {fold(self.days)}"


def missing_days(environment: Environment) -> list[tuple[Endpoint, list[date]]]:
    """The last days of each configured asset, without those that are settled or were just checked."""
    with Store(environment.database_url()) as store:
        return [
            (endpoint, _days(endpoint, store, environment.start_date))
            for endpoint in ENDPOINTS
            if endpoint.lands_at and environment.is_any_set(endpoint.credentials)
        ]


def batches(missing: Iterable[tuple[Endpoint, list[date]]]) -> list[Batch]:
    """The days as few runs."""
    together: dict[tuple[str, bool, tuple[date, ...]], list[Endpoint]] = {}
    for endpoint, days in missing:
        for run in runs(days):
            key = (endpoint.exchange.name, isinstance(endpoint, Records), tuple(run))
            together.setdefault(key, []).append(endpoint)
    return [Batch(endpoints, days) for (*_, days), endpoints in together.items()]


def _days(endpoint: Endpoint, store: Store, start: date) -> list[date]:
    first = max(start, datetime.now(endpoint.exchange.zone).date() - LANDED_DAYS * DAY)
    recently = datetime.now(UTC) - CHECK_AGAIN_AFTER
    return [
        each.day
        for each in expected_days(endpoint.timetable, first, now_ms(), store.ledger(endpoint))
        if each.is_retained(now_ms()) and not (each.prior and each.prior > recently)
    ]


class Stopped(Exception):
    """A signal has ended the landing."""


@dataclass(frozen=True)
class Landing:
    """Materializes in an environment; every method raises `Stopped` once `stopping` is set."""

    environment: Environment
    stopping: threading.Event

    def land(self, batches: Iterable[Batch]) -> bool:
        """Lands all batches and reports each; True if every day has landed."""
        return all([self._land(batch) for batch in batches])

    def _land(self, batch: Batch) -> bool:
        began = datetime.now(UTC)
        keys = [endpoint.key for endpoint in batch.endpoints]
        success = self._materialize(keys, batch.days, batch.title, f"{batch.title}: not every day landed.")
        with Store(self.environment.database_url()) as store:
            ledgers = [store.ledger(endpoint, batch.days) for endpoint in batch.endpoints]
        landed = sum(row.checked_at >= began for ledger in ledgers for row in ledger.values())
        console.print(f"{batch.title}: {landed} of {len(batch.endpoints) * len(batch.days)} days")
        return success

    def add_up(self) -> bool:
        """Materializes the assets about money for the days whose rows have changed; True if all are up to date.

        While Dagster runs, a sensor does so.
        """
        with Store(self.environment.database_url()) as store:
            last = datetime.now(UTC).date() - DAY
            stale = Commission(store, EARNING).stale(self.environment.start_date, last)
        keys = ["affiliate/daily_commission", "affiliate/daily_report"]
        return all(
            [
                self._materialize(keys, days, f"Adding up {fold(days)}", f"{fold(days)} could not be added up.")
                for days in runs(stale)
            ]
        )

    def _materialize(self, keys: Sequence[str], days: Sequence[date], title: str, failed: str) -> bool:
        """Whether a run of the assets over the days succeeds; prints why not."""
        if self.stopping.is_set():
            raise Stopped
        home = self.environment.home
        log = home / "landing.log"
        arguments = ["asset", "materialize", "-m", "affiliate_pipeline.definitions"]
        arguments += ["--select", " or ".join(f'key:"{key}"' for key in keys)]
        arguments += ["--partition-range", f"{days[0]}...{days[-1]}"]
        began = datetime.now(UTC)
        with doing(title):
            process = run_dagster(home, log, arguments)
            while process.poll() is None:
                if self.stopping.wait(0.2):
                    raise Stopped
        if process.returncode:
            # Takes as long to import as all commands together.
            from affiliate_pipeline.app.instance.failures import failures

            reasons = dict.fromkeys(map(redact, failures(dagster_home(home), days, began)))
            console.print(f"[bold red]{failed}[/]", escape("\n".join([*reasons, f"The log: {log}"])))
        return process.returncode == 0

    def summarize(self) -> None:
        """Prints what has landed."""
        table = Table("asset", "days landed", "rows", "settled", title="What has landed")
        with Store(self.environment.database_url()) as store:
            for endpoint in ENDPOINTS:
                days = list(store.ledger(endpoint).values())
                table.add_row(
                    endpoint.key,
                    fold(row.partition for row in days) or "none",
                    f"{sum(row.rows for row in days):,}",
                    f"{sum(row.settled for row in days)} of {len(days)}",
                )
        console.print(table, soft_wrap=False)
