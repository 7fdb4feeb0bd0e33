"""One asset per endpoint, partitioned by day, and one per reference table.

A run over a range materializes exactly the days that landed; its failure names the others.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from typing import Any

import dagster as dg
from pydantic import Field

from affiliate_pipeline.defs.checks import check_specs, evaluations, named_sums, run_evaluations
from affiliate_pipeline.defs.day_outcomes import Metadata, daily, finish, keys_to_days, log_landed, separate_events
from affiliate_pipeline.defs.placement import OWN, Placement
from affiliate_pipeline.defs.resources import PipelineResource
from affiliate_pipeline.domain.days import DAY, day_of, format_days
from affiliate_pipeline.domain.problem import AffiliateError, Problem, grouped
from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records, ReferenceTable
from affiliate_pipeline.exchanges.fetching import Session
from affiliate_pipeline.landing import endpoint_tables, ledger, quarantine
from affiliate_pipeline.landing.pipeline import Failed, Landed, Options, Retained, land_days, now_ms
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.monitoring.overdue import MONITORED_DAYS, overdue_days
from affiliate_pipeline.schema.columns import columns

_Event = dg.MaterializeResult[Any] | dg.AssetCheckEvaluation | dg.Output[None]


class LandingConfig(dg.Config):
    """Options of a run; a normal run sets none."""

    allow_shrink: bool = Field(False, description="Accept fewer rows than had landed for a settled day.")
    from_rejected: bool = Field(False, description=f"Land the rows stored in {quarantine.TABLE}; fetch nothing.")
    trust_old: bool = Field(
        False, description="Fetch days beyond the source's promised retention, because it still has them."
    )


def build_asset(
    endpoint: Endpoint, start: date, placement: Placement = OWN, tables: Sequence[ReferenceTable] = ()
) -> dg.AssetsDefinition:
    """The endpoint's asset, with its checks. `tables` are those that its runs may refresh."""

    @dg.asset(
        key=placement.key(endpoint.key),
        description=f"{endpoint.description}\n\n{_metadata_explained(endpoint)}",
        partitions_def=daily(endpoint.exchange.zone, start, today=not isinstance(endpoint, Records)),
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=[*check_specs(endpoint, placement)],
        metadata={
            "dagster/column_schema": _column_schema(endpoint),
            "dagster/table_name": endpoint.table,
        },
        # No kinds: in the catalog, their icons truncate the longest names.
        group_name=placement.group_of(endpoint.group),
        # The team of the account and role can replace an API key that the exchange refuses.
        owners=placement.owners_of(f"{endpoint.group}_{endpoint.role}"),
        op_tags=placement.op_tags,
        io_manager_key=placement.rows,
        required_resource_keys=placement.required,
    )
    def landed(context: dg.AssetExecutionContext, config: LandingConfig) -> Iterator[_Event]:
        yield from _materialize(context, endpoint, Options(**config.model_dump()), placement, tables)

    return landed


def _materialize(
    context: dg.AssetExecutionContext,
    endpoint: Endpoint,
    options: Options,
    placement: Placement,
    tables: Sequence[ReferenceTable],
) -> Iterator[_Event]:
    separate_events(context)
    pipeline = placement.pipeline(context)
    checks = context.selected_asset_check_keys
    run_id = context.run.run_id
    days = keys_to_days(context.partition_keys)
    landed: dict[date, Metadata] = {}
    failed: dict[date, Problem] = {}
    evaluated: list[dg.AssetCheckEvaluation] = []
    overdue: list[date] = []

    try:
        with (
            pipeline.store(context) as store,
            pipeline.session(endpoint, store) as session,
            _recorded_refreshes(context, session, tables, placement),
        ):
            for outcome in land_days(endpoint, days, session=session, store=store, run_id=run_id, options=options):
                if isinstance(outcome, Failed):
                    failed[outcome.day] = outcome.problem
                else:
                    landed[outcome.day] = _metadata(endpoint, outcome)
                if isinstance(outcome, Landed) and checks:
                    results = list(evaluations(endpoint, context.asset_key, store, outcome))
                    evaluated += results
                    yield from results
            if checks:
                overdue = _overdue(endpoint, store, pipeline)
    except AffiliateError as error:
        problem = error.problem.adding(impact="Rows that had landed are unchanged")
        failed |= dict.fromkeys({*days} - landed.keys() - failed.keys(), problem)
    except BaseException:
        # A run that is interrupted, or an internal error: `finish` below is not reached.
        log_landed(context, {context.asset_key: landed})
        raise

    yield from run_evaluations(checks, evaluated, days, failed, overdue)
    finish(context, {context.asset_key: landed}, failed, _failure_description(endpoint, failed, len(landed)))
    for check in checks:
        # The evaluations were yielded above; Dagster also requires an output per check.
        yield dg.Output(None, context.job_def.asset_layer.get_op_output_name(check))

    # The data version shows whether a day has changed. Dagster takes only one for all days of a successful run.
    first_version, *other_versions = (dg.DataVersion(metadata["content_hash"]) for metadata in landed.values())
    yield dg.MaterializeResult(data_version=None if other_versions else first_version)


def _overdue(endpoint: Endpoint, store: Store, pipeline: PipelineResource) -> list[date]:
    """The asset's overdue days after the run, as the monitor determines them."""
    now = now_ms()
    # `overdue_days` requires the entries of one day more than it monitors.
    since = day_of(now, endpoint.exchange.zone) - (MONITORED_DAYS + 1) * DAY
    ledgers = ledger.entries_since(store.connection, since)
    return [each.day for each in overdue_days(endpoint, ledgers, pipeline.first_day(endpoint), now)]


def _metadata_explained(endpoint: Endpoint) -> str:
    """What the metadata of a landed day mean, in Markdown."""
    items = [
        "`changed`: whether the run has changed the stored rows; false if the exchange returned the same rows again"
    ]
    if isinstance(endpoint, Records):
        items.append("`kept`: true if the exchange no longer has the day, so the stored rows are unchanged")
        if endpoint.time_column:
            items.append(f"`first`, `last`: the earliest and the latest `{endpoint.time_column}` of the day")
        if endpoint.sum_by:
            amount, group = endpoint.sum_by
            items.append(f"`sums`: the exact sum of `{amount}` for each `{group}`")
    return "\n".join(["Metadata of each landed day:\n", *(f"- {item}." for item in items)])


def _metadata(endpoint: Endpoint, outcome: Landed | Retained) -> Metadata:
    """A landed or retained day's metadata. Amounts are text: a JSON number would be a float."""
    stats = outcome.stats
    metadata: Metadata = {
        "dagster/partition_row_count": stats.rows,
        "sums": dg.MetadataValue.json(named_sums(endpoint, stats)),
        "content_hash": outcome.content_hash,
        "settled": outcome.settled,
        "source": outcome.source,
        "kept": not isinstance(outcome, Landed),
    }

    if stats.first and stats.last:
        ends = {"first": stats.first, "last": stats.last}
        metadata |= {name: f"{at:%Y-%m-%d %H:%M:%S.%f} UTC" for name, at in ends.items()}

    if isinstance(outcome, Landed):
        metadata |= {"requests": outcome.requests, "changed": outcome.changed}
        if outcome.note:
            metadata["note"] = outcome.note
        if outcome.unknown_fields:
            metadata["unknown_fields"] = dg.MetadataValue.json(outcome.unknown_fields)
    return metadata


@contextmanager
def _recorded_refreshes(
    context: dg.AssetExecutionContext, session: Session, tables: Sequence[ReferenceTable], placement: Placement
) -> Generator[None]:
    """On exit, log a materialization of each of `tables` that the session has refreshed."""
    try:
        yield
    finally:
        for table in tables:
            counts = session.refreshed.get(table.name)
            if counts:
                metadata = _refresh_metadata(table, counts)
                context.log_event(dg.AssetMaterialization(placement.key(table.key), metadata=metadata))


def _refresh_metadata(table: ReferenceTable, counts: Mapping[str, int]) -> Metadata:
    """The metadata of a refreshed table."""
    return {**counts, "dagster/column_schema": table_schema(table.columns)}


def table_schema(columns: Sequence[tuple[str, str, str]]) -> dg.TableSchema:
    """The schema of a table from its columns, each with name, definition and description."""
    return dg.TableSchema(
        [
            dg.TableColumn(
                name,
                definition.split()[0],
                description,
                dg.TableColumnConstraints(nullable="not null" not in definition),
            )
            for name, definition, description in columns
        ]
    )


def _failure_description(endpoint: Endpoint, failed: Mapping[date, Problem], landed_days: int) -> str:
    """The text of a failed run: how many days failed and landed, then a line per cause."""
    total = count_of(len(failed) + landed_days, "day")
    summary = f"{endpoint.key}: {len(failed)} of {total} failed ({format_days(failed)}), {landed_days} landed."
    causes = [f"{format_days(days)}: {problem}." for problem, days in grouped(failed).items()]
    return "\n".join([summary, *causes])


def _column_schema(endpoint: Endpoint) -> dg.TableSchema:
    own = [
        dg.TableColumn(each.name, each.kind.sql, each.description, dg.TableColumnConstraints(nullable=each.nullable))
        for each in columns(endpoint.schema)
    ]
    added = [
        dg.TableColumn("extra", "jsonb", "Fields of the response that are not in the schema."),
        dg.TableColumn("account", "text", endpoint_tables.ACCOUNT_DESCRIPTION),
        dg.TableColumn("partition_date", "date", f"The day, in {endpoint.exchange.zone.key}."),
        dg.TableColumn("landed_at", "timestamptz", "When the row was written."),
        dg.TableColumn("run_id", "text", "The Dagster run that wrote it."),
    ]
    return dg.TableSchema([*own, *added])


def build_reference_table(table: ReferenceTable, placement: Placement = OWN) -> dg.AssetsDefinition:
    """An unpartitioned asset that refreshes the table."""
    endpoint = table.endpoint

    @dg.asset(
        key=placement.key(table.key),
        description=table.description,
        metadata={"dagster/table_name": table.table, "dagster/column_schema": table_schema(table.columns)},
        group_name=placement.group_of(endpoint.group),
        owners=placement.owners_of(f"{endpoint.group}_{endpoint.role}"),
        op_tags=placement.op_tags,
        io_manager_key=placement.rows,
        required_resource_keys=placement.required,
    )
    def refreshed(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        pipeline = placement.pipeline(context)
        try:
            with (
                pipeline.store(context) as store,
                pipeline.session(endpoint, store) as session,
            ):
                counts = table.refresh(session)
                return dg.MaterializeResult(metadata=_refresh_metadata(table, counts))
        except AffiliateError as error:
            problem = error.problem.adding(impact=f"The {table.name} is unchanged")
            raise dg.Failure(f"{table.key}: {problem}.", allow_retries=False) from None

    return refreshed
