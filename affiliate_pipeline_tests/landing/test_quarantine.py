"""Rows that could not land, stored and read back."""

from datetime import UTC, date, datetime

from affiliate_pipeline.landing import quarantine
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.schema.raw_row import payload

KEY, DAY = "binance/rebate_recent_record", date(2026, 10, 1)
WHY = quarantine.Rejection("sandbox key", datetime(2026, 10, 2, tzinfo=UTC), "a column is missing", complete=True)


def test_rows_are_read_back_as_received_whichever_of_them_jsonb_can_represent(database_url):
    rows = [b'{"note": "exact"}', rb'{"note": "A\u0000B"}', rb'{"note": "half an emoji: \ud83d"}']
    with Store(database_url) as store:
        assert quarantine.store(store.connection, KEY, DAY, "run", WHY, lambda: map(payload, rows))
        assert quarantine.rejected(store.connection, KEY, DAY) == (WHY, rows)
