"""The assets `price`, `daily_commission`, `daily_customer_commission` and `daily_report`, and the sensor of stale days."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg

from affiliate_pipeline.commission import columns
from affiliate_pipeline.commission.amounts import exact, rounded_float
from affiliate_pipeline.commission.customers import CUSTOMERS, CustomerCounts
from affiliate_pipeline.commission.customers import TABLE as CUSTOMER_TABLE
from affiliate_pipeline.commission.figures import Figures, gather, gather_overview
from affiliate_pipeline.commission.headline import headline, lacking_days, total_of
from affiliate_pipeline.commission.prices import PRICE, PricedDay
from affiliate_pipeline.commission.prices import TABLE as PRICE_TABLE
from affiliate_pipeline.commission.rollup import COMMISSION, REPORT, TABLE, Commission, derived_assets
from affiliate_pipeline.defs.dagster_internals import NOT_FINISHED_STATUSES, days_of, range_tags, selected, sensor
from affiliate_pipeline.defs.day_outcomes import Metadata, daily, finish, keys_to_days, separate_events
from affiliate_pipeline.defs.endpoint_assets import table_schema
from affiliate_pipeline.defs.placement import OWN, Placement
from affiliate_pipeline.defs.resources import PipelineResource
from affiliate_pipeline.domain.days import DAY, day_ranges, format_days
from affiliate_pipeline.domain.problem import AffiliateError, Problem, grouped
from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.exchanges.binance.klines import markets_of
from affiliate_pipeline.exchanges.endpoint import Records

# A synonym of UTC, so that these partitions differ from Binance's. Otherwise one run would land both, and one failed
# Binance day would fail every day of these assets.
ZONE = ZoneInfo("Etc/UTC")
GROUP = "affiliate"
# A day is added up again only after nothing has landed for it for this long: its assets land one after the other.
QUIET_S = 60


def build_earnings(
    earning: Sequence[Records], start: date, placement: Placement = OWN, *, has_prices: bool = False
) -> dg.AssetsDefinition:
    """The assets of the group `affiliate`, computed from these endpoints; `affiliate/price` only with `has_prices`."""

    @dg.multi_asset(
        name=placement.key(COMMISSION).to_python_identifier(),
        specs=_specs(earning, placement, has_prices=has_prices),
        can_subset=True,
        partitions_def=daily(ZONE, start, today=False),
        backfill_policy=dg.BackfillPolicy.single_run(),
        op_tags=placement.op_tags,
        required_resource_keys=placement.required,
    )
    def earnings(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
        yield from _materialize(context, earning, placement, has_prices=has_prices)

    return earnings


def _specs(earning: Sequence[Records], placement: Placement, *, has_prices: bool) -> list[dg.AssetSpec]:
    """The specs of these assets, each after those that it depends on."""
    endpoint_deps = [
        dg.AssetDep(placement.key(each.key), partition_mapping=dg.IdentityPartitionMapping()) for each in earning
    ]
    spec = partial(
        dg.AssetSpec, skippable=True, group_name=placement.group_of(GROUP), owners=placement.owners_of(GROUP)
    )

    price = spec(
        placement.key(PRICE),
        deps=endpoint_deps,
        description="The close in USDT, at Binance's public markets and at the end of the day in UTC, of each coin that was earned. A "
        "price that has landed never changes. The metadata name the coins without a market.",
        metadata={"dagster/table_name": PRICE_TABLE, "dagster/column_schema": table_schema(columns.PRICE)},
    )

    commission_deps = [*endpoint_deps, price.key] if has_prices else endpoint_deps
    commission = spec(
        placement.key(COMMISSION),
        deps=commission_deps,
        description="What was earned each day by exchange, account, kind and coin: added up exactly from the endpoints' tables, with "
        "the value in USDT at the day's market price, and separately the one that the exchange gives. Of several endpoints that report "
        "the same money, only one counts. Each exchange's days are in its own time zone.",
        metadata={"dagster/table_name": TABLE, "dagster/column_schema": table_schema(columns.DAILY)},
    )
    customers = spec(
        placement.key(CUSTOMERS),
        deps=commission_deps,
        description="The same sums per customer, as a basis for payouts: `affiliate/daily_commission` is added up from them in the same "
        "transaction. Values at market prices are rounded per line, so their sum may differ in the last place. A customer is identified by the "
        "customerId, else the openId, else the email as the exchange masks it, which is not unique.",
        metadata={"dagster/table_name": CUSTOMER_TABLE, "dagster/column_schema": table_schema(columns.CUSTOMER_DAILY)},
    )

    report = spec(
        placement.key(REPORT),
        deps=[placement.key(COMMISSION)],
        kinds={"html"},
        description="The day's report, in its metadata: the total in USDT, its change, a chart of 30 days, the coins, and what is "
        "missing or may still change. Totals are exact text, and next to each a rounded number for plots. The report "
        "has the figures as of its rendering. This package's own code location also writes a "
        "page into `reports/`, which `affiliate-pipeline report` renders again.",
    )

    specs: list[dg.AssetSpec] = [commission, customers, report]
    if has_prices:
        specs.insert(0, price)
    return specs


def _materialize(
    context: dg.AssetExecutionContext, earning: Sequence[Records], placement: Placement, *, has_prices: bool
) -> Iterator[dg.MaterializeResult[Any]]:
    separate_events(context)
    pipeline = placement.pipeline(context)
    # All four keys: without prices, no run selects the first one.
    keys = [placement.key(each) for each in derived_assets(has_prices=True)]
    price, sums, customers, report = keys
    selected_keys = [key for key in keys if key in context.selected_asset_keys]
    days = keys_to_days(context.partition_keys)
    done: dict[dg.AssetKey, dict[date, Metadata]] = {key: {} for key in selected_keys}
    failed: dict[date, Problem] = {}
    unpriced: dict[date, Problem] = {}

    try:
        configured = [endpoint for endpoint in earning if pipeline.is_configured(endpoint)]
        first = min(map(pipeline.first_day, earning))
        with pipeline.store(context) as store:
            commission = Commission(store, earning, has_prices=has_prices)
            # Prices first, so that the sums have values in the same run. A day without prices is added up nevertheless.
            if commission.prices and price in selected_keys:
                outcomes = commission.prices.land(days, pipeline.klines)
                unpriced = {day: each for day, each in outcomes.items() if isinstance(each, Problem)}
                done[price] = {day: _priced(each) for day, each in outcomes.items() if isinstance(each, PricedDay)}

            # A run that selects only prices adds up nothing.
            days_to_add_up = [] if selected_keys == [price] else days
            # The days that get a page in this run, so that a page can link to the next one before that is written.
            reported = [*commission.landed(days[0], days[-1])]
            for day in days_to_add_up:
                if not commission.add_up(day, context.run.run_id):
                    failed[day] = _nothing_landed(earning)
                    continue
                if customers in selected_keys:
                    done[customers][day] = _customers(commission.customer_counts(day))
                figures = gather(commission, configured, day, first, is_sandbox=pipeline.is_sandbox)
                if sums in selected_keys:
                    done[sums][day] = _sums(figures)
                if report in selected_keys:
                    done[report][day] = _report(context, figures, pipeline.reports, reported)
            _write_overview(context, pipeline, commission, configured, first, done.get(report, ()))
    except AffiliateError as error:
        problem = error.problem.adding(impact="No landed row was changed")
        # A day fails if any of its assets was not computed.
        for key, computed in done.items():
            # A day without prices already has a problem of its own.
            days_with_problem = {*failed, *unpriced} if key == price else {*failed}
            not_computed = {*days} - computed.keys() - days_with_problem
            failed |= dict.fromkeys(not_computed, problem)

    finish(context, done, unpriced | failed, _failure_description(failed, unpriced, len(days)))
    for key in selected_keys:
        yield dg.MaterializeResult(asset_key=key)


def _nothing_landed(earning: Sequence[Records]) -> Problem:
    assets = ", ".join(endpoint.key for endpoint in earning)
    what = f"no rows of {assets} have landed for this day"
    return Problem("nothing_landed", what, action="Materialize one of them first")


def _failure_description(failed: Mapping[date, Problem], unpriced: Mapping[date, Problem], total_days: int) -> str:
    """The text of a failed run: how many days failed or lack prices, which ones, and why."""
    lines: list[str] = []
    for problems, what in ((failed, "could not be added up"), (unpriced, "lack market prices")):
        if problems:
            causes = ". ".join(map(str, grouped(problems)))
            total = count_of(total_days, "day")
            lines.append(f"{len(problems)} of {total} {what} ({format_days(problems)}): {causes}.")
    return "\n".join(lines)


def _priced(outcome: PricedDay) -> Metadata:
    """The day's prices as metadata."""
    # By coin, the market of its price, if that is not the coin's preferred market (for BTC, BTCUSDT is preferred).
    converted: dict[str, str] = {}
    for coin, market in outcome.markets.items():
        preferred = next(iter(markets_of(coin)), None)
        if market != preferred:
            converted[coin] = market
    return {
        "dagster/partition_row_count": len(outcome.markets),
        "converted": dg.MetadataValue.json(converted),
        # The coins without a price, as a number and as a list. They have no market on this day: if the price of a market
        # could not be landed, the day's outcome is a `Problem`, not a `PricedDay`.
        "coins_without_market": len(outcome.coins_without_price),
        "unvalued_coins": dg.MetadataValue.json([*outcome.coins_without_price]),
    }


def _sums(figures: Figures) -> Metadata:
    """The day's sums as metadata. Amounts are text: a JSON number would be a float."""
    sums = {
        f"{each.payer} {each.kind} {each.coin}": {
            "amount": each.amount,
            "usdt_value": each.usdt_value,
            "market_value_usdt": each.market_value_usdt,
            "records": each.count,
            # Records neither in USDT nor valued by the exchange; they may have a value at market prices.
            "records_without_usdt_value": each.unvalued,
        }
        for each in figures.sums
    }

    incomplete: dict[str, str] = {}
    for each in figures.incomplete:
        if figures.day in each.missing:
            incomplete[each.name] = "missing"
        elif figures.day in each.unsettled:
            incomplete[each.name] = "may still change"

    total = total_of(figures.by_day, [figures.day])
    return {
        "dagster/partition_row_count": len(figures.sums),
        "records": total.count,
        # The total over `sums`. Of these records, those of the coins in `unvalued_coins` have no value at market prices
        # either.
        "records_without_usdt_value": sum(each.unvalued for each in figures.sums),
        **_plotted("total_usdt", total.usdt),
        "total_usdt_stated_by_exchanges": exact(total.stated_usdt),
        "unvalued_coins": dg.MetadataValue.json([*total.coins_without_value]),
        "sums": dg.MetadataValue.json(sums),
        "missing_or_not_settled": dg.MetadataValue.json(incomplete),
    }


def _customers(counts: CustomerCounts) -> Metadata:
    """The day's customers as metadata."""
    return {
        "dagster/partition_row_count": counts.lines,
        "customers": counts.customers,
        "customers_identified_by_masked_email": counts.masked_emails,
        "records_without_customer": counts.records_without_customer,
        "total_usdt": counts.total_usdt,
    }


def _plotted(name: str, amount: Decimal) -> Metadata:
    """The exact amount as text, and next to it the nearest float, which Dagster plots by day."""
    metadata: Metadata = {name: exact(amount)}
    nearest = rounded_float(amount)
    if nearest is not None:
        metadata[f"{name}_rounded"] = dg.MetadataValue.float(nearest)
    return metadata


def _report(context: dg.AssetExecutionContext, figures: Figures, folder: Path | None, days: Sequence[date]) -> Metadata:
    """The report as metadata; with a folder, also writes the page there, with links to the pages of `days`."""
    # Imported here: Jinja2 would take a tenth of the code location's import time.
    from affiliate_pipeline.commission.report import render

    totals = headline(figures)
    metadata: Metadata = {
        "report": dg.MetadataValue.md(render.markdown(figures)),
        **_plotted("total_usdt", totals.total.usdt),
        **_plotted("last_7_days_usdt", totals.week.usdt),
        **_plotted("last_30_days_usdt", totals.month.usdt),
        "unvalued_coins": len(totals.total.coins_without_value),
        "incomplete_days": len(lacking_days(figures)),
    }
    for exchange, total in totals.by_exchange.items():
        metadata |= _plotted(f"{exchange}_usdt", total.usdt)

    if folder is None:
        return metadata
    try:
        metadata["page"] = dg.PathMetadataValue(render.write(figures, folder, days))
    except OSError as error:  # if the disk is not writable, the metadata still contain the report
        context.log.warning("the page of %s was not written: %s", figures.day, error.strerror)
    return metadata


def _write_overview(
    context: dg.AssetExecutionContext,
    pipeline: PipelineResource,
    commission: Commission,
    configured: Sequence[Records],
    start: date,
    reported: Collection[date],
) -> None:
    """Write the page that lists all days, and the pages of the reported days' months; errors are only logged."""
    if not reported or pipeline.reports is None:
        return
    from affiliate_pipeline.commission.report import render

    try:
        figures, months = gather_overview(commission, configured, reported, start, is_sandbox=pipeline.is_sandbox)
        render.write_overview(figures, months, pipeline.reports)
    except (OSError, AffiliateError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        context.log.warning("the list of all days was not written: %s", reason)


def build_stale_days(
    earning: Sequence[Records], placement: Placement = OWN, *, has_prices: bool = False
) -> dg.SensorDefinition:
    """The sensor that requests runs of stale days, and of days whose prices are missing."""
    assets = [placement.key(each) for each in derived_assets(has_prices=has_prices)]

    @sensor(
        name=placement.name("stale_days"),
        target=assets,
        default_status=placement.requesting,
        required_resource_keys=placement.required,
        minimum_interval_seconds=30,
        description="Adds a day up again when the rows or prices that have landed for it have changed, and requests prices that "
        "are missing.",
    )
    def stale_days(context: dg.SensorEvaluationContext) -> list[dg.RunRequest]:
        return _stale_days(context, earning, assets, placement.pipeline(context), has_prices=has_prices)

    return stale_days


def _stale_days(
    context: dg.SensorEvaluationContext,
    earning: Sequence[Records],
    assets: Sequence[dg.AssetKey],
    pipeline: PipelineResource,
    *,
    has_prices: bool,
) -> list[dg.RunRequest]:
    """One run request per range of stale days, and per range of days that only lack prices."""
    now = datetime.now(UTC)
    # Days of unfinished runs are excluded: each tick during a long run would request its remaining days again.
    unfinished = context.instance.get_runs(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES, created_after=now - DAY))
    in_progress = {day for run in unfinished if selected(context, run, assets) for day in days_of(run)}

    with pipeline.store() as store:
        first = min(map(pipeline.first_day, earning))
        last = now.date() - DAY
        commission = Commission(store, earning, has_prices=has_prices)
        stale = commission.stale(first, last, quiet_s=QUIET_S)
        stale_or_unpriced = commission.stale_or_unpriced(first, last, quiet_s=QUIET_S)

    waiting = stale_or_unpriced.keys() - in_progress
    requested = [(assets, days) for days in day_ranges(waiting & stale.keys())]
    # For days that lack only prices, request only the prices, the first of `assets`: with all `assets`, the sums would be
    # added up again every hour for as long as the source of the prices fails.
    requested += [(assets[:1], days) for days in day_ranges(waiting - stale.keys())]
    return [
        dg.RunRequest(
            run_key=_run_key(now, {day: stale_or_unpriced[day] for day in days}),
            tags=range_tags(days),
            asset_selection=keys,
        )
        for keys, days in requested
    ]


def _run_key(now: datetime, fingerprints: Mapping[date, str]) -> str:
    """A run key that permits the same days with the same content once an hour.

    So a failed run is not repeated every tick.
    """
    hour = f"{now:%Y-%m-%dT%H}"
    contents = (f"{day} {fingerprint}" for day, fingerprint in fingerprints.items())
    return sha256(" ".join([hour, *contents]).encode()).hexdigest()
