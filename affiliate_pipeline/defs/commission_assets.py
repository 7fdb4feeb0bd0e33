"""The assets `daily_commission` and `daily_report`, and the sensor that updates stale days."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg

from affiliate_pipeline.commission.figures import Figures, gather
from affiliate_pipeline.commission.rollup import COLUMNS, TABLE, Commission
from affiliate_pipeline.defs.dagster_internals import range_tags, sensor
from affiliate_pipeline.defs.day_outcomes import Metadata, daily, finish, keys_to_days
from affiliate_pipeline.defs.resources import PipelineResource
from affiliate_pipeline.domain.days import DAY, day_ranges, format_days
from affiliate_pipeline.domain.problem import AffiliateError, Problem, grouped
from affiliate_pipeline.domain.settings import Mode
from affiliate_pipeline.exchanges.endpoint import Records

COMMISSION = dg.AssetKey(["affiliate", "daily_commission"])
REPORT = dg.AssetKey(["affiliate", "daily_report"])
# A synonym of UTC, so that these partitions differ from Binance's. Otherwise one run would land both, and one failed
# Binance day would fail every day of these assets.
ZONE = ZoneInfo("Etc/UTC")
OWNER = "team:affiliate"
# A day is added up again only after nothing has landed for it for this long: its assets land one after the other.
QUIET_S = 60


def build_earnings(earning: Sequence[Records], start: date) -> dg.AssetsDefinition:
    """The assets `affiliate/daily_commission` and `affiliate/daily_report` of these endpoints."""
    columns = [
        dg.TableColumn(name, kind.split()[0], about, dg.TableColumnConstraints(nullable="not null" not in kind))
        for name, kind, about in COLUMNS
    ]
    commission = dg.AssetSpec(
        COMMISSION,
        deps=[
            dg.AssetDep(dg.AssetKey.from_user_string(each.key), partition_mapping=dg.IdentityPartitionMapping())
            for each in earning
        ],
        skippable=True,
        group_name="affiliate",
        kinds={"postgres"},
        owners=[OWNER],
        description="What was earned each day by exchange, account, kind and coin: added up exactly from the endpoints' tables, with "
        "a value in USDT only where the exchange gives one. Of several endpoints that report the same money, only one "
        "counts. Each exchange's days are in its own time zone.",
        metadata={"dagster/table_name": TABLE, "dagster/column_schema": dg.TableSchema(columns)},
    )
    report = dg.AssetSpec(
        REPORT,
        deps=[COMMISSION],
        skippable=True,
        group_name="affiliate",
        kinds={"html"},
        owners=[OWNER],
        description="The day's report, in its metadata and as a page in `reports/`: charts of the last 30 days, top "
        "earners, and what is missing or may still change. It has the figures as of its rendering; `affiliate-pipeline "
        "report` renders the page again.",
    )

    @dg.multi_asset(
        name="__".join(COMMISSION.path),
        specs=[commission, report],
        can_subset=True,
        partitions_def=daily(ZONE, start, today=False),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def earnings(
        context: dg.AssetExecutionContext, pipeline: dg.ResourceParam[PipelineResource]
    ) -> Iterator[dg.MaterializeResult[Any]]:
        yield from _materialize(context, earning, pipeline)

    return earnings


def _materialize(
    context: dg.AssetExecutionContext, earning: Sequence[Records], pipeline: PipelineResource
) -> Iterator[dg.MaterializeResult[Any]]:
    days, selected = keys_to_days(context.partition_keys), sorted(context.selected_asset_keys)
    done: dict[dg.AssetKey, dict[date, Metadata]] = {key: {} for key in selected}
    failed: dict[date, Problem] = {}
    try:
        environment = pipeline.environment
        configured = [endpoint for endpoint in earning if environment.is_any_set(endpoint.credentials)]
        is_sandbox = environment.mode is Mode.SANDBOX
        with pipeline.store(context.run.run_id) as store:
            commission = Commission(store, earning)
            for day in days:
                if not commission.add_up(day, context.run.run_id):
                    what = f"no rows of {', '.join(endpoint.key for endpoint in earning)} have landed for this day"
                    failed[day] = Problem("nothing_landed", what, action="Materialize one of them first")
                    continue
                figures = gather(commission, configured, day, environment.start_date, is_sandbox=is_sandbox)
                if COMMISSION in done:
                    done[COMMISSION][day] = _sums(figures)
                if REPORT in done:
                    done[REPORT][day] = _report(context, figures, environment.reports)
    except AffiliateError as error:
        problem = error.problem.adding(impact="Its sums are unchanged")
        failed |= dict.fromkeys({*days}.difference(failed, *done.values()), problem)
    counted = f"{len(failed)} of {len(days)} days could not be added up ({format_days(failed)})"
    finish(context, done, failed, f"{counted}: {'. '.join(map(str, grouped(failed)))}.")
    for key in selected:
        yield dg.MaterializeResult(asset_key=key)


def _sums(figures: Figures) -> Metadata:
    """The day's sums as metadata. Amounts are text: a JSON number would be a float."""
    sums = {
        f"{each.payer} {each.kind} {each.coin}": {
            "amount": each.amount,
            "usdt_value": each.usdt_value,
            "records": each.count,
            "records_without_usdt_value": each.unvalued,
        }
        for each in figures.of_the_day
    }
    incomplete = {
        each.name: "missing" if figures.day in each.missing else "may still change"
        for each in figures.incomplete
        if figures.day in {*each.missing, *each.unsettled}
    }
    return {
        "dagster/partition_row_count": len(figures.of_the_day),
        "records": sum(each.count for each in figures.of_the_day),
        "records_without_usdt_value": sum(each.unvalued for each in figures.of_the_day),
        "sums": dg.MetadataValue.json(sums),
        "missing_or_not_settled": dg.MetadataValue.json(incomplete),
    }


def _report(context: dg.AssetExecutionContext, figures: Figures, folder: Path) -> Metadata:
    # Imported here: Jinja2 would take a tenth of the code location's import time.
    from affiliate_pipeline.commission.report import render

    metadata: Metadata = {"report": dg.MetadataValue.md(render.markdown(figures))}
    try:
        metadata["page"] = dg.PathMetadataValue(render.write(figures, folder))
    except OSError as error:  # if the disk is not writable, the metadata still contain the report
        context.log.warning("the page of %s was not written: %s", figures.day, error.strerror)
    return metadata


def build_stale_days(earning: Sequence[Records]) -> dg.SensorDefinition:
    """The sensor that requests runs of stale days."""

    @sensor(
        target=[COMMISSION, REPORT],
        minimum_interval_seconds=30,
        description="Adds a day up again when the rows that have landed for it have changed.",
    )
    def stale_days(
        _context: dg.SensorEvaluationContext, pipeline: dg.ResourceParam[PipelineResource]
    ) -> list[dg.RunRequest]:
        return _stale_days(earning, pipeline)

    return stale_days


def _stale_days(earning: Sequence[Records], pipeline: PipelineResource) -> list[dg.RunRequest]:
    """One run request per range of stale days."""
    now = datetime.now(UTC)
    with pipeline.store() as store:
        first, last = pipeline.environment.start_date, now.date() - DAY
        stale = Commission(store, earning).stale(first, last, quiet_s=QUIET_S)
    # The run key allows the same days with the same content once an hour: a failed run is not repeated every tick.
    return [
        dg.RunRequest(
            run_key=sha256(
                " ".join([f"{now:%Y-%m-%dT%H}", *(f"{day} {stale[day]}" for day in run)]).encode()
            ).hexdigest(),
            tags=range_tags(run),
            asset_selection=[COMMISSION, REPORT],
        )
        for run in day_ranges(stale)
    ]
