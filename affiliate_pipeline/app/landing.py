"""What `up` lands: the last days that the exchanges still retain and that have not landed or may still change.

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


class Stopped(Exception):
    """A signal has ended the landing."""


@dataclass(frozen=True)
class Landing:
    """Materializes in an environment; every method raises `Stopped` once `stopping` is set."""

    environment: Environment
    stopping: threading.Event

    def missing_days(self) -> list[tuple[Endpoint, list[date]]]:
        """The last days of each configured asset, without those that are settled or were just checked."""
        recently = datetime.now(UTC) - CHECK_AGAIN_AFTER
        missing: list[tuple[Endpoint, list[date]]] = []
        with self._store() as store:
            for endpoint in ENDPOINTS:
                if endpoint.lands_at and self.environment.is_any_set(endpoint.credentials):
                    today = datetime.now(endpoint.exchange.zone).date()
                    first = max(self.environment.start_date, today - LANDED_DAYS * DAY)
                    expected = expected_days(endpoint.timetable, first, now_ms(), store.ledger(endpoint))
                    due = [each for each in expected if each.is_retained(now_ms())]
                    missing.append((endpoint, [each.day for each in due if not each.prior or each.prior <= recently]))
        return missing

    def land(self, missing: Iterable[tuple[Endpoint, list[date]]]) -> bool:
        """Lands the days and reports each run; True if every day has landed.

        One run lands consecutive days of all assets with the same partitions.
        """
        together: dict[tuple[str, bool, tuple[date, ...]], list[Endpoint]] = {}
        for endpoint, days in missing:
            for run in runs(days):
                key = (endpoint.exchange.name, isinstance(endpoint, Records), tuple(run))
                together.setdefault(key, []).append(endpoint)
        return all([self._land(endpoints, days) for (*_, days), endpoints in together.items()])

    def _land(self, endpoints: Sequence[Endpoint], days: Sequence[date]) -> bool:
        first, count, began = endpoints[0], len(endpoints), datetime.now(UTC)
        title = f"{f'{count} assets of {first.exchange.title}' if count > 1 else first.key} {fold(days)}"
        keys = [endpoint.key for endpoint in endpoints]
        success = self._materialize(keys, days, title, f"{title}: not every day landed.")
        with self._store() as store:
            ledgers = [store.ledger(endpoint, days) for endpoint in endpoints]
        landed = sum(row.checked_at >= began for ledger in ledgers for row in ledger.values())
        console.print(f"{title}: {landed} of {count * len(days)} days")
        return success

    def add_up(self) -> bool:
        """Materializes the assets about money for the days whose rows have changed; True if all are up to date.

        While Dagster runs, a sensor does so.
        """
        with self._store() as store:
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
        home, began = self.environment.home, datetime.now(UTC)
        log = home / "landing.log"
        arguments = ["asset", "materialize", "-m", "affiliate_pipeline.definitions"]
        arguments += ["--select", " or ".join(f'key:"{key}"' for key in keys)]
        arguments += ["--partition-range", f"{days[0]}...{days[-1]}"]
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
        with self._store() as store:
            for endpoint in ENDPOINTS:
                days = list(store.ledger(endpoint).values())
                table.add_row(
                    endpoint.key,
                    fold(row.partition for row in days) or "none",
                    f"{sum(row.rows for row in days):,}",
                    f"{sum(row.settled for row in days)} of {len(days)}",
                )
        console.print(table, soft_wrap=False)

    def _store(self) -> Store:
        return Store(self.environment.database_url())
