"""The table of exports, where two processes would change it at once."""

from datetime import date

import pytest

from affiliate_pipeline.exchanges.binance.kickback_export.exports import KickbackExports
from affiliate_pipeline.postgres.errors import StoreUnavailable

DAY = date(2026, 11, 3)


def test_of_two_only_one_is_under_way_and_the_other_goes_on_waiting(database_url):
    one, other = (KickbackExports(database_url, "a key", lambda *_: {}) for _ in range(2))
    try:
        one.add(DAY, DAY), other.add(DAY, DAY)
        one.begin(one.open()[0], None)
        with pytest.raises(StoreUnavailable):
            other.begin(other.open()[1], None)
        assert [each.state for each in other.open()] == ["collecting", "waiting"]
    finally:
        one.close(), other.close()
