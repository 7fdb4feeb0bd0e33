"""One asset per endpoint, partitioned by day. A run over a range materializes exactly the days that landed and fails
for the others, by name."""

from collections.abc import Iterator, Mapping
from datetime import date
from typing import Any

import dagster as dg
from pydantic import Field

from affiliate_pipeline.defs.environment import environment_of
from affiliate_pipeline.defs.failed_days import failure_metadata
from affiliate_pipeline.defs.partitions import daily, keys_to_days
from affiliate_pipeline.defs.reconciliation import check_specs, reconciled
from affiliate_pipeline.defs.resources import Exchanges, Postgres
from affiliate_pipeline.domain.days import fold
from affiliate_pipeline.domain.problem import AffiliateError, Problem, grouped
from affiliate_pipeline.exchanges.spec import Endpoint
from affiliate_pipeline.landing.pipeline import Failed, Landed, Options, Outcome, ingest
from affiliate_pipeline.schema.columns import columns

DAY_IS_SOUND = "day_is_sound"
NO_DAY_MISSING = "no_day_missing"
MOST_DAYS_NAMED = 31


class LandingConfig(dg.Config):
    """What a run may be told; a normal run leaves all of it out."""

    allow_shrink: bool = Field(False, description="Accept fewer rows than had landed for a settled day.")
    from_rejected: bool = Field(False, description="Land the rows kept in affiliate.rejected_row; ask nothing.")
    trust_old: bool = Field(False, description="The source still has days beyond its promised memory: fetch them.")


def build_asset(endpoint: Endpoint) -> dg.AssetsDefinition:
    """The endpoint as an asset."""

    @dg.asset(
        key=endpoint.key.split("/"),
        description=endpoint.description,
        group_name=endpoint.exchange.name,
        kinds={"postgres", endpoint.exchange.name},
        # Whose account it is, and so who can mend its key.
        owners=[f"team:{endpoint.exchange.name}_{endpoint.account}"],
        partitions_def=daily(endpoint.exchange.zone, today=endpoint.observation),
        backfill_policy=dg.BackfillPolicy.single_run(),
        check_specs=[*_checks(endpoint), *check_specs(endpoint)],
        metadata={
            "dagster/column_schema": _column_schema(endpoint),
            "dagster/table_name": endpoint.key.replace("/", "."),
        },
    )
    def landed(
        context: dg.AssetExecutionContext,
        config: LandingConfig,
        postgres: dg.ResourceParam[Postgres],
        exchanges: dg.ResourceParam[Exchanges],
    ) -> Iterator[dg.MaterializeResult | dg.AssetCheckEvaluation | dg.Output]:
        yield from _materialize(context, endpoint, Options(**config.model_dump()), postgres, exchanges)

    return landed


def _materialize(
    context: dg.AssetExecutionContext, endpoint: Endpoint, options: Options, postgres: Postgres, exchanges: Exchanges
) -> Iterator[dg.MaterializeResult | dg.AssetCheckEvaluation | dg.Output]:
    checks = context.selected_asset_check_keys
    landed: dict[str, Mapping[str, Any]] = {}
    failed: dict[date, Problem] = {}

    def log_landed() -> None:
        for day, metadata in landed.items():
            context.log_event(dg.AssetMaterialization(context.asset_key, partition=day, metadata=metadata))

    try:
        environment = environment_of(context.instance)
        with (
            postgres.store(environment, context.run.run_id) as store,
            exchanges.session(endpoint, store, environment) as session,
        ):
            days = keys_to_days(context.partition_keys)
            for outcome in ingest(
                endpoint, days, session=session, store=store, run_id=context.run.run_id, options=options
            ):
                if isinstance(outcome, Failed):
                    failed[outcome.day] = outcome.problem
                else:
                    landed[outcome.day.isoformat()] = _metadata(outcome)
                if isinstance(outcome, Landed) and checks:
                    yield _check(context.asset_key, outcome)
                    yield from reconciled(endpoint, store, outcome)
    except AffiliateError as error:
        problem = error.problem.adding(impact="What had landed is untouched")
        pending = {*keys_to_days(context.partition_keys)} - failed.keys() - {*keys_to_days(landed)}
        failed |= dict.fromkeys(pending, problem)
    except BaseException:
        log_landed()
        raise
    if failed:
        log_landed()
        raise dg.Failure(
            description=_description(endpoint, failed, len(landed)),
            metadata=failure_metadata(failed),
            allow_retries=False,
        )
    for day, metadata in landed.items():
        context.add_asset_metadata(metadata, partition_key=day)
    for check in checks:
        # Each day's evaluation has been told, the watch tells its own; the step still owes the check's output.
        yield dg.Output(None, context.job_def.asset_layer.get_op_output_name(check))
    yield dg.MaterializeResult()


def _checks(endpoint: Endpoint) -> Iterator[dg.AssetCheckSpec]:
    key = endpoint.key.split("/")
    yield dg.AssetCheckSpec(
        DAY_IS_SOUND,
        asset=key,
        description="What landed for a day is proven complete, no fee is above its volume, no field is new to the schema, "
        "and nothing was restated after the day had settled.",
    )
    if endpoint.timetable.is_monitored:
        # Evaluated by the monitor: a check with a step of its own would make each run seconds longer.
        yield dg.AssetCheckSpec(
            NO_DAY_MISSING,
            asset=key,
            description="Each day that should have landed has, and was read again once it had settled: since the first "
            "that landed, of the last 30. The watch looks all the time; right after a run its answer is on its way.",
        )


def _check(asset: dg.AssetKey, outcome: Landed) -> dg.AssetCheckEvaluation:
    """One evaluation a day. That the day is complete was proven before it landed: else it would have failed."""
    facts, before = outcome.facts, outcome.restated
    problems = [*outcome.problems]
    metadata: dict[str, Any] = {"rows": facts.rows, "requests": outcome.requests}
    if facts.fee_above_volume:
        problems.append(f"the fee is above the volume in {facts.fee_above_volume} rows")
    if outcome.new_fields:
        problems.append(
            f"the answers have fields that the schema does not know, kept in column extra: {', '.join(outcome.new_fields)}"
        )
    if before:
        problems.append(
            f"the exchange restated the day after it had settled: {before.rows} rows before, {facts.rows} now. The rows "
            "changed or removed are in affiliate.superseded_row"
        )
        metadata |= {
            "sums_before": dg.MetadataValue.json(dict(before.sums)),
            "sums_now": dg.MetadataValue.json(dict(facts.sums)),
        }
    return dg.AssetCheckEvaluation(
        asset_key=asset,
        check_name=DAY_IS_SOUND,
        partition=outcome.day.isoformat(),
        passed=not problems,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(problems) or f"{facts.rows} rows, proven complete",
        metadata=metadata,
    )


def _metadata(outcome: Outcome) -> dict[str, Any]:
    """A landed or kept day as the UI shows it. Amounts are text: a JSON number would be a float."""
    facts = outcome.facts
    metadata: dict[str, Any] = {
        "dagster/partition_row_count": facts.rows,
        "sums": dg.MetadataValue.json(dict(facts.sums)),
        "content_hash": outcome.content_hash,
        "settled": outcome.settled,
        "source": outcome.source,
        "kept": not isinstance(outcome, Landed),
    }
    if facts.first and facts.last:
        metadata |= {
            "first": f"{facts.first:%Y-%m-%d %H:%M:%S.%f} UTC",
            "last": f"{facts.last:%Y-%m-%d %H:%M:%S.%f} UTC",
        }
    if isinstance(outcome, Landed):
        metadata |= {"requests": outcome.requests, "changed": outcome.changed}
        if outcome.note:
            metadata["note"] = outcome.note
        if outcome.unknown_fields:
            metadata["unknown_fields"] = dg.MetadataValue.json(outcome.unknown_fields)
    return metadata


def _description(endpoint: Endpoint, failed: Mapping[date, Problem], landed: int) -> str:
    days = sorted(failed)
    named = ", ".join(map(str, days)) if len(days) <= MOST_DAYS_NAMED else fold(days)
    lines = [
        f"{endpoint.key}: {len(failed)} of {len(failed) + landed} days failed ({named}), {landed} landed.",
        *(f"{fold(days)}: {problem}." for problem, days in grouped(failed).items()),
    ]
    return "\n".join(lines)


def _column_schema(endpoint: Endpoint) -> dg.TableSchema:
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                column.kind.sql,
                description=column.description,
                constraints=dg.TableColumnConstraints(nullable=column.nullable),
            )
            for column in columns(endpoint.schema)
        ]
        + [
            dg.TableColumn("extra", "jsonb", description="Fields of the answer that the schema does not know."),
            dg.TableColumn("partition_date", "date", description=f"The day, in {endpoint.exchange.zone.key}."),
            dg.TableColumn("landed_at", "timestamptz", description="When the row was written."),
            dg.TableColumn("run_id", "text", description="The Dagster run that wrote it."),
        ]
    )
