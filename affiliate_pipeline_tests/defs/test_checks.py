"""The check that each landed day gets: one evaluation a day, which never stops a run."""

import logging
from decimal import Decimal

import dagster as dg
import pytest

from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, SETTLED, YESTERDAY, at, rebate, rebates


def evaluations(run):
    """Each day's evaluation: whether it passed, what it says, its metadata."""
    found = {}
    for event in run.events:
        if event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION:
            evaluation = event.asset_check_evaluation_data
            assert evaluation.severity == dg.AssetCheckSeverity.WARN
            assert evaluation.partition not in found, "one evaluation a day"
            metadata = {name: value.value for name, value in evaluation.metadata.items()}
            found[evaluation.partition] = (evaluation.passed, evaluation.description, metadata)
    return found


def test_a_day_that_landed_well_passes(sandbox):
    run = materialize(KEY, DAYS)

    found = evaluations(run)
    assert found.keys() == {f"{day}" for day in DAYS}
    assert all(passed for passed, *_ in found.values())


def test_a_day_that_failed_has_no_evaluation_and_the_others_have_theirs(sandbox):
    sandbox.binance.set_rebates([*rebates(DAYS[0], 3), rebate(at(DAYS[1]), income="much"), *rebates(DAYS[2], 3)])

    run = materialize(KEY, DAYS[:3])

    assert list(run.failed) == [DAYS[1]]
    assert evaluations(run).keys() == {f"{DAYS[0]}", f"{DAYS[2]}"}


def test_an_unknown_field_is_warned_of_once(sandbox, caplog):
    sandbox.binance.set_rebates(row | {"tier": "gold"} for day in DAYS for row in rebates(day, 2))

    with caplog.at_level(logging.WARNING):
        first = materialize(KEY, DAYS)
        second = materialize(KEY, DAYS)

    failed = [description for passed, description, _ in evaluations(first).values() if not passed]
    assert len(failed) == 1
    assert "tier" in failed[0]
    assert all(passed for passed, *_ in evaluations(second).values())
    assert len([record for record in caplog.records if "tier" in record.getMessage()]) == 1


def test_another_unknown_field_is_warned_of_too(sandbox):
    sandbox.binance.set_rebates(row | {"tier": "gold"} for row in rebates(SETTLED, 2))
    materialize(KEY, [SETTLED])
    sandbox.binance.set_rebates(row | {"tier": "gold", "bonus": "1"} for row in rebates(SETTLED, 2))

    [(passed, description, _)] = evaluations(materialize(KEY, [SETTLED])).values()

    assert not passed
    assert "bonus" in description
    assert "tier" not in description


def test_a_restatement_after_settling_shows_the_difference(sandbox):
    sandbox.binance.set_rebates([rebate(at(SETTLED), 1, income="0.10"), rebate(at(SETTLED), 2, income="0.20")])
    materialize(KEY, [SETTLED])
    sandbox.binance.set_rebates(
        [rebate(at(SETTLED), number, income=income) for number, income in enumerate(("0.10", "0.25", "1"), start=1)]
    )

    run = materialize(KEY, [SETTLED])

    [(passed, description, metadata)] = evaluations(run).values()
    assert run.success
    assert not passed
    assert "2 rows before, 3 now" in description
    assert "affiliate.superseded_row" in description
    sums = [{asset: Decimal(total) for asset, total in metadata[name].items()} for name in ("sums_before", "sums_now")]
    assert sums == [{"USDT": Decimal("0.30")}, {"USDT": Decimal("1.35")}]


def test_a_restatement_before_settling_is_usual(sandbox):
    sandbox.binance.set_rebates(rebates(YESTERDAY, 2))
    materialize(KEY, [YESTERDAY])
    sandbox.binance.set_rebates(rebates(YESTERDAY, 3))

    [(passed, *_)] = evaluations(materialize(KEY, [YESTERDAY])).values()

    assert passed


@pytest.mark.parametrize(("fee", "passed"), [("10.0", True), ("10.000000000000000001", False)])
def test_a_fee_above_its_volume_is_told(sandbox, declare, fee, passed):
    declare(volume_and_fee=("income", "commission"))
    sandbox.binance.set_rebates([rebate(at(SETTLED), income="10", commission=fee)])

    [(found, description, _)] = evaluations(materialize(KEY, [SETTLED])).values()

    assert found is passed
    assert passed or "the fee is above the volume in 1 rows" in description


def test_volume_and_fee_of_trades_are_compared():
    compared = {e.name: e.volume_and_fee for e in ENDPOINTS if isinstance(e, Records) and e.volume_and_fee}

    assert compared == {
        "trade_user": ("trade_amt", "fee_amt"),
        "trade_user_team": ("trade_amt", "fee_amt"),
        "trade_future": ("turnover", "fee"),
    }
