"""The checks of landed days and of missing days, which never fail a run."""

import logging
from decimal import Decimal

import dagster as dg
import pytest
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecord

from affiliate_pipeline.defs.checks import DAY_IS_SOUND, NO_DAY_MISSING
from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline_tests.conftest import Run, instance_of_all_runs, materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.events import check_evaluations, description_of, only_check
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, SETTLED, YESTERDAY, at, rebate, rebates

pytestmark = pytest.mark.usefixtures("verified_keys")


def evaluations_by_day(run: Run) -> dict[str | None, dg.AssetCheckEvaluation]:
    """The evaluations by partition key. Asserts that each is a warning, and that no day has two."""
    found = check_evaluations(run)
    by_day = {evaluation.partition: evaluation for evaluation in found}
    assert len(by_day) == len(found)
    assert {evaluation.severity for evaluation in found} <= {dg.AssetCheckSeverity.WARN}
    return by_day


def sums_in(evaluation: dg.AssetCheckEvaluation, name: str) -> dict[str, Decimal]:
    sums = evaluation.metadata[name].value
    assert isinstance(sums, dict)
    by_asset = sums["income by asset"]
    assert isinstance(by_asset, dict)
    return {str(asset): Decimal(str(total)) for asset, total in by_asset.items()}


def test_each_landed_day_has_an_evaluation_that_passes(sandbox):
    found = evaluations_by_day(materialize(KEY, DAYS[:2]))

    assert found.keys() == {f"{day}" for day in DAYS[:2]}
    assert all(evaluation.passed for evaluation in found.values())


def test_only_landed_days_have_an_evaluation(sandbox):
    sandbox.binance.set_rebates([*rebates(DAYS[0], 3), rebate(at(DAYS[1]), income="much"), *rebates(DAYS[2], 3)])

    run = materialize(KEY, DAYS[:3])

    assert list(run.failed) == [DAYS[1]]
    assert evaluations_by_day(run).keys() == {f"{DAYS[0]}", f"{DAYS[2]}"}


@pytest.mark.parametrize("failed", [DAYS[:3], DAYS[1:2], []], ids=["all days", "a day", "no day"])
def test_no_check_is_left_without_a_result(sandbox, failed):
    for day in failed:
        sandbox.faults.fail_day(day, status=400, code=-1127)
    others = [day for day in DAYS if day not in DAYS[:3]]
    assert land(KEY, others).success

    run = materialize(KEY, DAYS[:3])

    assert list(run.failed) == failed
    checks = [dg.AssetCheckKey(dg.AssetKey(KEY.split("/")), name) for name in (DAY_IS_SOUND, NO_DAY_MISSING)]
    last = instance_of_all_runs().event_log_storage.get_latest_asset_check_execution_by_key(checks)
    sound, missing = (evaluation_in(last[check]) for check in checks)
    assert sound.passed
    assert failed != DAYS[:3] or description_of(sound) == "The last run landed no day that could be checked."
    assert missing.passed is not bool(failed)
    assert format_days(failed) in description_of(missing)


def test_a_run_does_not_pass_the_check_for_missing_days_while_another_day_is_overdue(sandbox):
    land(KEY, DAYS[:1])
    materialize(KEY, DAYS[2:3])

    check = dg.AssetCheckKey(dg.AssetKey(KEY.split("/")), NO_DAY_MISSING)
    last = instance_of_all_runs().event_log_storage.get_latest_asset_check_execution_by_key([check])
    missing = evaluation_in(last[check])
    assert not missing.passed
    assert f"Overdue: {DAYS[1]}" in description_of(missing)


def evaluation_in(record: AssetCheckExecutionRecord) -> dg.AssetCheckEvaluation:
    assert record.event and record.event.dagster_event
    return record.event.dagster_event.asset_check_evaluation_data


def test_an_unknown_field_is_reported_once(sandbox, caplog):
    sandbox.binance.set_rebates(row | {"tier": "gold"} for day in DAYS[:3] for row in rebates(day, 2))

    with caplog.at_level(logging.WARNING):
        first = land(KEY, DAYS[:3])
        second = land(KEY, DAYS[:3])

    [failed] = [evaluation for evaluation in first.checks if not evaluation.passed]
    assert "tier" in description_of(failed)
    assert len(second.checks) == 3 and all(evaluation.passed for evaluation in second.checks)
    assert len([record for record in caplog.records if "tier" in record.getMessage()]) == 1


def test_a_second_unknown_field_is_reported_alone(sandbox):
    sandbox.binance.set_rebates(row | {"tier": "gold"} for row in rebates(SETTLED, 2))
    land(KEY, [SETTLED])
    sandbox.binance.set_rebates(row | {"tier": "gold", "bonus": "1"} for row in rebates(SETTLED, 2))

    [evaluation] = land(KEY, [SETTLED]).checks

    assert not evaluation.passed
    assert "bonus" in description_of(evaluation)
    assert "tier" not in description_of(evaluation)


def test_a_restatement_after_settling_is_reported_with_the_difference(sandbox):
    sandbox.binance.set_rebates([rebate(at(SETTLED), 1, income="0.10"), rebate(at(SETTLED), 2, income="0.20")])
    land(KEY, [SETTLED])
    sandbox.binance.set_rebates(
        [rebate(at(SETTLED), number, income=income) for number, income in enumerate(("0.10", "0.25", "1"), start=1)]
    )

    run = materialize(KEY, [SETTLED])

    evaluation = only_check(run)
    assert run.success
    assert not evaluation.passed
    assert "2 rows before, 3 now" in description_of(evaluation)
    assert "affiliate.superseded_row" in description_of(evaluation)
    assert sums_in(evaluation, "sums_before") == {"USDT": Decimal("0.30")}
    assert sums_in(evaluation, "sums_now") == {"USDT": Decimal("1.35")}


def test_a_restatement_before_settling_passes(sandbox):
    sandbox.binance.set_rebates(rebates(YESTERDAY, 2))
    land(KEY, [YESTERDAY])
    sandbox.binance.set_rebates(rebates(YESTERDAY, 3))

    [evaluation] = land(KEY, [YESTERDAY]).checks
    assert evaluation.passed


def test_a_fee_above_its_volume_is_reported(sandbox, declare):
    declare(volume_and_fee=("income", "commission"))
    fees = dict(zip(DAYS, ("10.0", "10.000000000000000001"), strict=False))
    sandbox.binance.set_rebates(rebate(at(day), income="10", commission=fee) for day, fee in fees.items())

    equal, above = land(KEY, [*fees]).checks

    assert equal.passed and not above.passed
    assert "the fee is above the volume in 1 row" in description_of(above)


def test_fees_and_volumes_of_all_trades_are_compared():
    compared = {e.name: e.volume_and_fee for e in ENDPOINTS if isinstance(e, Records) and e.volume_and_fee}

    assert compared == {
        "trade_user": ("trade_amt", "fee_amt"),
        "trade_user_team": ("trade_amt", "fee_amt"),
        "trade_future": ("turnover", "fee"),
    }
