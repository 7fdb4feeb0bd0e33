"""The table of kickback exports, changed through two connections."""

import sys
from contextlib import closing
from datetime import date

import pytest

from affiliate_pipeline.exchanges.binance.kickback_export.exports import KickbackExports
from affiliate_pipeline.postgres.errors import StoreUnavailable

DAY = date(2026, 11, 3)


@pytest.fixture
def open_exports(database_url):
    return lambda: KickbackExports(
        database_url,
        account="",
        asset="binance/history",
        source="a key",
        sources=["a key"],
        landed_or_rejected_at=lambda *_: {},
    )


def test_only_one_of_two_exports_is_collected_and_the_other_one_is_still_waiting(open_exports):
    with closing(open_exports()) as first, closing(open_exports()) as second:
        first.add(DAY, DAY)
        second.add(DAY, DAY)
        first.mark_collecting(first.all_open()[0], None)
        # A unique index permits one collecting export per source.
        with pytest.raises(StoreUnavailable):
            second.mark_collecting(second.all_open()[1], None)
        assert [export.state for export in second.all_open()] == ["collecting", "waiting"]


def test_an_export_whose_first_days_expire_is_split_completely_or_not_at_all(open_exports, monkeypatch):
    last = date(2026, 11, 6)
    with closing(open_exports()) as exports:
        exports.add(DAY, last)
        [export] = exports.all_open()
        with monkeypatch.context() as killed:
            killed.setattr(exports, "update", lambda *_, **__: sys.exit("killed"))
            with pytest.raises(SystemExit):
                exports.expire_first_days(export, export.days[:2], "expired")
        assert [each.days for each in exports.all_open()] == [export.days]

        exports.expire_first_days(export, export.days[:2], "expired")
        assert [(each.state, each.days) for each in exports.refresh()] == [
            ("expired", export.days[:2]),
            ("waiting", export.days[2:]),
        ]
