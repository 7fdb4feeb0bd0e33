"""The assets `daily_commission` and `daily_report`, and the sensor that updates stale days."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg

from affiliate_pipeline.commission.figures import Figures, gather
from affiliate_pipeline.commission.rollup import COLUMNS, COMMISSION, REPORT, TABLE, Commission
from affiliate_pipeline.defs.dagster_internals import range_tags, sensor
from affiliate_pipeline.defs.day_outcomes import Metadata, daily, finish, keys_to_days, separate_events
from affiliate_pipeline.defs.endpoint_assets import table_schema
from affiliate_pipeline.defs.placement import OWN, Placement
from affiliate_pipeline.defs.resources import PipelineResource
from affiliate_pipeline.domain.days import DAY, day_ranges, format_days
from affiliate_pipeline.domain.problem import AffiliateError, Problem, grouped
from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.exchanges.endpoint import Records

# A synonym of UTC, so that these partitions differ from Binance's. Otherwise one run would land both, and one failed
# Binance day would fail every day of these assets.
ZONE = ZoneInfo("Etc/UTC")
GROUP = "affiliate"
# A day is added up again only after nothing has landed for it for this long: its assets land one after the other.
QUIET_S = 60


def build_earnings(earning: Sequence[Records], start: date, placement: Placement = OWN) -> dg.AssetsDefinition:
    """The assets `affiliate/daily_commission` and `affiliate/daily_report` of these endpoints."""
    commission = dg.AssetSpec(
        placement.key(COMMISSION),
        deps=[
            dg.AssetDep(placement.key(each.key), partition_mapping=dg.IdentityPartitionMapping()) for each in earning
        ],
        skippable=True,
        group_name=placement.group_of(GROUP),
        owners=placement.owners_of(GROUP),
        description="What was earned each day by exchange, account, kind and coin: added up exactly from the endpoints' tables, with "
        "a value in USDT only for amounts in USDT and where the exchange gives one. Of several endpoints that report "
        "the same money, only one counts. Each exchange's days are in its own time zone.",
        metadata={"dagster/table_name": TABLE, "dagster/column_schema": table_schema(COLUMNS)},
    )
    report = dg.AssetSpec(
        placement.key(REPORT),
        deps=[placement.key(COMMISSION)],
        skippable=True,
        group_name=placement.group_of(GROUP),
        kinds={"html"},
        owners=placement.owners_of(GROUP),
        description="The day's report, in its metadata: charts of the last 30 days, top earners, and what is missing "
        "or may still change. It has the figures as of its rendering. This package's own code location also writes a "
        "page into `reports/`, which `affiliate-pipeline report` renders again.",
    )

    @dg.multi_asset(
        name=placement.key(COMMISSION).to_python_identifier(),
        specs=[commission, report],
        can_subset=True,
        partitions_def=daily(ZONE, start, today=False),
        backfill_policy=dg.BackfillPolicy.single_run(),
        op_tags=placement.op_tags,
        required_resource_keys=placement.required,
    )
    def earnings(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        yield from _materialize(context, earning, placement)

    return earnings


def _materialize(
    context: dg.AssetExecutionContext, earning: Sequence[Records], placement: Placement
) -> Iterator[dg.MaterializeResult[Any]]:
    separate_events(context)
    pipeline, sums, report = placement.pipeline(context), placement.key(COMMISSION), placement.key(REPORT)
    days, selected = keys_to_days(context.partition_keys), sorted(context.selected_asset_keys)
    done: dict[dg.AssetKey, dict[date, Metadata]] = {key: {} for key in selected}
    failed: dict[date, Problem] = {}
    try:
        configured = [endpoint for endpoint in earning if pipeline.is_configured(endpoint)]
        first = min(map(pipeline.first_day, earning))
        with pipeline.store(context.run.run_id) as store:
            commission = Commission(store, earning)
            for day in days:
                if not commission.add_up(day, context.run.run_id):
                    what = f"no rows of {', '.join(endpoint.key for endpoint in earning)} have landed for this day"
                    failed[day] = Problem("nothing_landed", what, action="Materialize one of them first")
                    continue
                figures = gather(commission, configured, day, first, is_sandbox=pipeline.is_sandbox)
                if sums in done:
                    done[sums][day] = _sums(figures)
                if report in done:
                    done[report][day] = _report(context, figures, pipeline.reports)
    except AffiliateError as error:
        problem = error.problem.adding(impact="Its sums are unchanged")
        failed |= dict.fromkeys({*days}.difference(failed, *done.values()), problem)
    counted = f"{len(failed)} of {count_of(len(days), 'day')} could not be added up ({format_days(failed)})"
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


def _report(context: dg.AssetExecutionContext, figures: Figures, folder: Path | None) -> Metadata:
    # Imported here: Jinja2 would take a tenth of the code location's import time.
    from affiliate_pipeline.commission.report import render

    metadata: Metadata = {"report": dg.MetadataValue.md(render.markdown(figures))}
    if folder is None:
        return metadata
    try:
        metadata["page"] = dg.PathMetadataValue(render.write(figures, folder))
    except OSError as error:  # if the disk is not writable, the metadata still contain the report
        context.log.warning("the page of %s was not written: %s", figures.day, error.strerror)
    return metadata


def build_stale_days(earning: Sequence[Records], placement: Placement = OWN) -> dg.SensorDefinition:
    """The sensor that requests runs of stale days."""
    assets = [placement.key(COMMISSION), placement.key(REPORT)]

    @sensor(
        name=placement.name("stale_days"),
        target=assets,
        default_status=placement.requests,
        required_resource_keys=placement.required,
        minimum_interval_seconds=30,
        description="Adds a day up again when the rows that have landed for it have changed.",
    )
    def stale_days(context: dg.SensorEvaluationContext) -> list[dg.RunRequest]:
        return _stale_days(earning, assets, placement.pipeline(context))

    return stale_days


def _stale_days(
    earning: Sequence[Records], assets: Sequence[dg.AssetKey], pipeline: PipelineResource
) -> list[dg.RunRequest]:
    """One run request per range of stale days."""
    now = datetime.now(UTC)
    with pipeline.store() as store:
        first, last = min(map(pipeline.first_day, earning)), now.date() - DAY
        stale = Commission(store, earning).stale(first, last, quiet_s=QUIET_S)
    # The run key allows the same days with the same content once an hour: a failed run is not repeated every tick.
    return [
        dg.RunRequest(
            run_key=sha256(
                " ".join([f"{now:%Y-%m-%dT%H}", *(f"{day} {stale[day]}" for day in run)]).encode()
            ).hexdigest(),
            tags=range_tags(run),
            asset_selection=assets,
        )
        for run in day_ranges(stale)
    ]
