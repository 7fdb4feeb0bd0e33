"""(c) Dagster overhead: runs over 1, 30 and 365 days without rows, compared with only fetching those days."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from benchmarks.harness import MB, REBATES, Table, days_back, isolated_project
from benchmarks.source import serve_rebates, source

DAYS = (1, 30, 365)
QUICK_DAYS = (1, 10)
MAX_MS_PER_DAY = 40


@dataclass(frozen=True)
class Result:
    """One run over a range: seconds of the run, seconds of only fetching its days, and peak memory (bytes)."""

    run_s: float
    fetching_s: float
    memory: int


def fetch(days: Sequence[date]) -> float:
    """Fetch the days and discard their rows; return the seconds."""
    from affiliate_pipeline.environment import configured
    from affiliate_pipeline.exchanges.registry import ENDPOINTS
    from affiliate_pipeline.landing.pipeline import connected
    from affiliate_pipeline.landing.store import Store

    endpoint = next(endpoint for endpoint in ENDPOINTS if endpoint.key == REBATES)
    with Store(configured().database_url()) as store, connected(endpoint, store, configured().variables) as session:
        began = time.perf_counter()
        batches = list(endpoint.strategy.fetch(session, days, endpoint.exchange.zone))
        seconds = time.perf_counter() - began
    assert len(batches) == len(days)
    return seconds


def run(quick: bool, rounds: int) -> list[Table]:
    """Compare runs over days without rows with only fetching these days."""
    numbers = QUICK_DAYS if quick else DAYS
    with (
        source(serve_rebates, [(0, days_back(number)) for number in numbers]) as exchange,
        isolated_project(**exchange.environment) as project,
    ):
        results: dict[int, list[Result]] = {number: [] for number in numbers}
        for _ in range(rounds):
            for number in numbers:
                days = days_back(number)
                fetching_s = project.run(fetch, days).value
                project.clear()
                measured = project.materialize(REBATES, days)
                assert project.query("select count(*) from affiliate.landing") == number
                results[number].append(Result(project.run_s(), fetching_s, measured.memory["process"]))
    return [_table(results, rounds)]


def _table(results: dict[int, list[Result]], rounds: int) -> Table:
    """The table of the results by number of days."""
    run_s = {number: statistics.median(result.run_s for result in measured) for number, measured in results.items()}
    fetching_s = {
        number: statistics.median(result.fetching_s for result in measured) for number, measured in results.items()
    }
    memory = {number: max(result.memory for result in measured) for number, measured in results.items()}
    shortest = min(results)

    def overhead_ms(number: int) -> str:
        """The overhead per additional day, compared with the shortest range; empty for the shortest range."""
        if number == shortest:
            return ""
        longer_run_s = run_s[number] - run_s[shortest]
        longer_fetching_s = fetching_s[number] - fetching_s[shortest]
        overhead_s = longer_run_s - longer_fetching_s
        return f"{1000 * overhead_s / (number - shortest):.1f}"

    return Table(
        f"Days without rows in one run, median of {rounds}",
        ["days", *map(str, results)],
        [
            ["run, s", *(f"{seconds:.2f}" for seconds in run_s.values())],
            ["fetching alone, s", *(f"{seconds:.2f}" for seconds in fetching_s.values())],
            ["overhead, ms per day", *map(overhead_ms, results)],
            ["peak memory, MB", *(f"{peak / MB:,.0f}" for peak in memory.values())],
        ],
        [
            "*run*: a run of `dagster asset materialize`, from its first event to its last. It includes the step's "
            "imports and, for each day, the transaction, the materialization and the check.",
            f"*overhead*: the time that each further day adds to the run, minus the time to fetch it. Target: at most "
            f"{MAX_MS_PER_DAY} ms.",
        ],
    )
