"""The table of kickback exports, changed through two connections."""

from contextlib import closing
from datetime import date

import pytest

from affiliate_pipeline.exchanges.binance.kickback_export.exports import KickbackExports
from affiliate_pipeline.postgres.errors import StoreUnavailable

DAY = date(2026, 11, 3)


def test_only_one_of_two_exports_is_collected_and_the_other_one_is_still_waiting(database_url):
    first, second = (
        KickbackExports(
            database_url,
            account="",
            asset="binance/history",
            source="a key",
            sources=["a key"],
            landed_or_rejected_at=lambda *_: {},
        )
        for _ in range(2)
    )
    with closing(first), closing(second):
        first.add(DAY, DAY)
        second.add(DAY, DAY)
        first.mark_collecting(first.all_open()[0], None)
        # A unique index permits one collecting export per source.
        with pytest.raises(StoreUnavailable):
            second.mark_collecting(second.all_open()[1], None)
        assert [export.state for export in second.all_open()] == ["collecting", "waiting"]
