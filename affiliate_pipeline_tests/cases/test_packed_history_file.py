"""Case packed-history-file: an export file that is a ZIP archive of one CSV file lands."""

from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.kickbacks import HISTORY, OLD, REQUEST, exports, landed

FILE = Path(__file__).parent / "packed-history-file" / "part-00000.csv.zip"
DAY = date(2026, 11, 27)
ROWS = {("0.5", "BTC", "BTCUSDT", "1795737600001"): 1, ("0.00000001", "BNB", "BNBUSDT", "1795737600002"): 1}


def test_an_archive_of_one_file_lands(sandbox, query):
    land(REQUEST, OLD)
    path = urlsplit(sandbox.binance.kickbacks.offer().decode().strip('"')).path
    # The file has rows of one fixed day, so the request must have been sent on the following day.
    query(
        "update binance.kickback_historical_collection set state = 'ready', path = %s, first_day = %s, last_day = %s, "
        "requested_at = %s, expires_at = now() + interval '1 hour'",
        *(path, DAY, DAY, "2026-11-28T00:00:00Z"),
    )
    sandbox.faults.path = "/kickback-history/"
    sandbox.faults.next_responses.append((200, {}, FILE.read_bytes()))

    run = materialize(HISTORY, [DAY])

    assert run.success, run.message
    assert landed(query, HISTORY, DAY) == ROWS
    assert exports(query) == [("landed",)]
