"""The collections of the history in the database, where two processes would move them at once."""

from datetime import date

from affiliate_pipeline.exchanges.binance.kickback_export.store import Collections

DAY = date(2026, 11, 3)


def test_of_two_only_one_is_under_way_and_the_other_goes_on_waiting(database_url):
    one, other = Collections(database_url, "a key"), Collections(database_url, "a key")
    try:
        first, second = one.add(DAY, DAY), other.add(DAY, DAY)
        assert one.begin(first, None) and not other.begin(second, None)
        assert [each.state for each in other.open()] == ["collecting", "waiting"]
    finally:
        one.close(), other.close()
