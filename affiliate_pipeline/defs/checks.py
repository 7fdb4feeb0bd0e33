"""Checks of endpoint assets. The monitor for overdue days evaluates `NO_DAY_MISSING` too."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import Any

import dagster as dg

from affiliate_pipeline.defs.placement import OWN, Placement
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.domain.problem import Problem
from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.exchanges.endpoint import Endpoint, Records
from affiliate_pipeline.landing.day_writer import SUPERSEDED, Landed
from affiliate_pipeline.landing.endpoint_tables import DayStats, Difference, differences
from affiliate_pipeline.landing.store import Store

DAY_IS_SOUND = "day_is_sound"
_SOUND_RECORDS = (
    "What landed for a day is proven complete, no fee is above its volume, no field is new to the schema, and nothing was "
    "restated after the day had settled."
)
# Of a snapshot or an action log.
_SOUND_STATE = "No field of what landed for a day is new to the schema, and there is no other warning."
NO_DAY_MISSING = "no_day_missing"
SAME_ROWS = "same_rows"
MAX_DIFFERENCES = 100


def check_specs(endpoint: Endpoint, placement: Placement = OWN) -> Iterator[dg.AssetCheckSpec]:
    """The checks of the endpoint's asset."""
    asset = placement.key(endpoint.key)
    yield dg.AssetCheckSpec(
        DAY_IS_SOUND,
        asset=asset,
        description=_SOUND_RECORDS if isinstance(endpoint, Records) else _SOUND_STATE,
    )
    if endpoint.timetable.is_monitored:
        # Evaluated at the end of the asset's step, and by the monitor: a check with a step of its own would make each run
        # seconds longer.
        yield dg.AssetCheckSpec(
            NO_DAY_MISSING,
            asset=asset,
            description="Each expected day of the last 30 days, from the first landed day on, has landed and was read again "
            "after it had settled, and no day's last run failed. The sensor `watch` evaluates this check within a "
            "minute of a change.",
        )
    if isinstance(endpoint, Records) and endpoint.compared_with:
        yield dg.AssetCheckSpec(
            SAME_ROWS,
            asset=asset,
            description="The day has as many rows and the same exact sum per coin as in "
            f"{endpoint.key_of(endpoint.compared_with)}, if both have landed it.",
        )


def named_sums(endpoint: Endpoint, stats: DayStats) -> dict[str, dict[str, str]]:
    """The day's sums, such as one per coin, under the names of the columns: `{"income by asset": {"USDT": "1.50"}}`."""
    if not isinstance(endpoint, Records) or not endpoint.sum_by:
        return {}
    return {" by ".join(endpoint.sum_by): dict(stats.sums)}


def run_evaluations(
    checks: Iterable[dg.AssetCheckKey],
    evaluated: Sequence[dg.AssetCheckEvaluation],
    days: Sequence[date],
    failed: Mapping[date, Problem],
    overdue: Sequence[date],
) -> Iterator[dg.AssetCheckEvaluation]:
    """For each check that was not evaluated for all `days`: one evaluation, of the run as a whole.

    These become the latest evaluations of their checks. Otherwise, if a step of the run fails, Dagster shows a check as
    failed without a reason, because the latest evaluation is only planned.
    """
    for check in checks:
        results = [each for each in evaluated if each.asset_check_key == check]
        if len(results) == len(days):
            continue
        if check.name == NO_DAY_MISSING:
            is_passed = not failed and not overdue
            description = _missing_days_text(failed, overdue)
        else:
            is_passed = all(each.passed for each in results)
            description = _results_text(results)
        yield dg.AssetCheckEvaluation(
            asset_key=check.asset_key,
            check_name=check.name,
            passed=is_passed,
            severity=dg.AssetCheckSeverity.WARN,
            description=description,
        )


def _missing_days_text(failed: Collection[date], overdue: Sequence[date]) -> str:
    lines: list[str] = []
    if failed:
        lines.append(f"The last run failed to land {format_days(failed)}.")
    if overdue:
        lines.append(f"Overdue: {format_days(overdue)}.")
    return "\n".join(lines) or "The last run landed its days, and no day is overdue."


def _results_text(results: Sequence[dg.AssetCheckEvaluation]) -> str:
    """The days that passed a check, and the reason of each day that failed."""
    lines: list[str] = []
    passed_days = [date.fromisoformat(each.partition) for each in results if each.passed and each.partition]
    if passed_days:
        lines.append(f"Passed for {format_days(passed_days)}.")
    lines += [f"{each.partition}: {each.description}." for each in results if not each.passed]
    return "\n".join(lines) or "The last run landed no day that could be checked."


def evaluations(
    endpoint: Endpoint, asset: dg.AssetKey, store: Store, landed: Landed
) -> Iterator[dg.AssetCheckEvaluation]:
    """The evaluations of a landed day. A day of records that is not proven complete does not land, so it has none."""
    yield _soundness(endpoint, asset, landed)
    if isinstance(endpoint, Records) and endpoint.compared_with:
        group_differences = differences(store.connection, endpoint, landed.day)
        if group_differences is not None:  # both have landed the day
            yield _comparison(endpoint.key_of(endpoint.compared_with), asset, landed.day, group_differences)


def _soundness(endpoint: Endpoint, asset: dg.AssetKey, landed: Landed) -> dg.AssetCheckEvaluation:
    """The evaluation of `DAY_IS_SOUND`."""
    stats, stats_before = landed.stats, landed.restated
    problems = [*landed.warnings]
    metadata: dict[str, Any] = {"rows": stats.rows, "requests": landed.requests}

    if stats.rows_with_fee_above_volume:
        problems.append(f"the fee is above the volume in {count_of(stats.rows_with_fee_above_volume, 'row')}")
    if landed.new_fields:
        fields = ", ".join(landed.new_fields)
        problems.append(f"the responses have fields that are not in the schema, stored in column extra: {fields}")
    if stats_before:
        problems.append(
            f"the exchange restated the day after it had settled: {count_of(stats_before.rows, 'row')} before, "
            f"{stats.rows} now. The rows changed or removed are in {SUPERSEDED}"
        )
        metadata["sums_before"] = dg.MetadataValue.json(named_sums(endpoint, stats_before))
        metadata["sums_now"] = dg.MetadataValue.json(named_sums(endpoint, stats))

    is_proven = isinstance(endpoint, Records)  # nothing shows whether a snapshot is complete
    text = count_of(stats.rows, "row")
    if problems:
        text = "; ".join(problems)
    elif is_proven:
        text += ", proven complete"
    return _evaluation(DAY_IS_SOUND, asset, landed.day, not problems, text, metadata)


def _comparison(
    other: str, asset: dg.AssetKey, day: date, group_differences: Sequence[Difference]
) -> dg.AssetCheckEvaluation:
    """The evaluation of `SAME_ROWS`, from the asset's differences from the asset `other`."""
    if group_differences:
        listed = "; ".join(map(str, group_differences[:MAX_DIFFERENCES]))
        text = f"differs from {other}: {listed}"
    else:
        text = f"the same rows and sums as {other}"
    metadata = {"compared_with": other, "differences": len(group_differences)}
    return _evaluation(SAME_ROWS, asset, day, not group_differences, text, metadata)


def _evaluation(
    check: str, asset: dg.AssetKey, day: date, passed: bool, text: str, metadata: dict[str, Any]
) -> dg.AssetCheckEvaluation:
    return dg.AssetCheckEvaluation(
        asset_key=asset,
        check_name=check,
        partition=day.isoformat(),
        passed=passed,
        severity=dg.AssetCheckSeverity.WARN,
        description=text,
        metadata=metadata,
    )
