"""(d) A long range bound by a rate limit: 30 days of LBank's trades with 1,000 users, compared with the plan."""

from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from benchmarks.harness import MB, Table, isolated_project
from benchmarks.source import source

if TYPE_CHECKING:
    from affiliate_pipeline.sandbox import Sandbox

KEY = "lbank/trade_user"
DAYS, USERS, RATE_SCALE = 30, 1000, 50
QUICK_DAYS, QUICK_USERS = 3, 20


def no_preparation(sandbox: "Sandbox") -> None:
    """Leave the sandbox unchanged."""


def plan(days: list[date]) -> tuple[int, float]:
    """Return the planned requests and seconds; planning also refreshes the roster."""
    from affiliate_pipeline.environment import configured
    from affiliate_pipeline.exchanges.registry import ENDPOINTS
    from affiliate_pipeline.landing.pipeline import connected, plan_of
    from affiliate_pipeline.landing.store import Store

    endpoint = next(endpoint for endpoint in ENDPOINTS if endpoint.key == KEY)
    with Store(configured().database_url()) as store, connected(endpoint, store, configured().variables) as session:
        planned = plan_of(endpoint, days, session=session, store=store)
        return planned.min_requests, planned.seconds


def run(quick: bool, rounds: int) -> list[Table]:
    """Land a long range bound by a rate limit; compare the requests and the duration with the plan."""
    number, users = (QUICK_DAYS, QUICK_USERS) if quick else (DAYS, USERS)
    today = datetime.now(ZoneInfo("Asia/Shanghai")).date()
    days = [today - timedelta(days=back) for back in range(number, 0, -1)]

    with (
        source(no_preparation, users=users, rate_scale=RATE_SCALE) as exchange,
        isolated_project(**exchange.environment, AFFILIATE_RATE_SCALE=str(RATE_SCALE)) as project,
    ):
        planned_requests, planned_s = project.run(plan, days).value
        # Discard the requests that planning sent for the roster.
        exchange.served()
        measured = project.materialize(KEY, days)
        step_s = project.step_s()
        served = exchange.served()
        rows = project.query("select sum(rows)::bigint from affiliate.landing")

    refused = sum(request.refused for request in served)
    requests_ratio = f"{len(served) / planned_requests:.3f}"
    seconds_ratio = f"{step_s / planned_s:.3f}" if planned_s else ""
    return [
        Table(
            f"{number} days of `{KEY}`, {users:,} users, {RATE_SCALE} times the real limit",
            ["", "planned", "actual", "actual / planned"],
            [
                ["requests", f"{planned_requests:,}", f"{len(served):,}", requests_ratio],
                ["seconds", f"{planned_s:.1f}", f"{step_s:.1f}", seconds_ratio],
                ["refused", "0", str(refused), ""],
                ["rows", "", f"{rows:,}", ""],
                ["peak memory, MB", "", f"{measured.memory['process'] / MB:,.0f}", ""],
            ],
            [
                "*seconds*: planned at the permitted rate; actual for the asset's step, including landing and Dagster's "
                "events."
            ],
        )
    ]
