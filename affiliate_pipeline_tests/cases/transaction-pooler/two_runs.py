"""Lands one day for the first time in two concurrent runs, and prints its number of rows and total income.

The argument is the URL of the database, which must be empty.
"""
import json
import os
import sys
import threading
import time
import urllib.parse
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg

url = sys.argv[1]
day = datetime.now(UTC).date() - timedelta(days=2)
first = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000)
rows = [
    {"customerId": "c", "email": "a***@x", "income": "0.1", "asset": "BTC", "symbol": "BTCUSDT", "time": first + 1000 * i, "orderId": i, "tradeId": i}
    for i in range(1, 400)
]


class Exchange(BaseHTTPRequestHandler):
    def do_GET(self):
        target = urllib.parse.urlsplit(self.path)
        if target.path == "/api/v3/time":
            body = {"serverTime": int(time.time() * 1000)}
        elif target.path == "/api/v3/account":
            body = {"uid": 1}
        else:
            time.sleep(0.5)
            query = dict(urllib.parse.parse_qsl(target.query))
            body = [row for row in rows if int(query["startTime"]) <= row["time"] <= int(query["endTime"])]
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Exchange)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {
    "BINANCE_BASE_URL": f"http://127.0.0.1:{server.server_port}", "BINANCE_PARTNER_API_KEY": "k" * 64,
    "BINANCE_PARTNER_API_SECRET": "s" * 64, "AFFILIATE_DATABASE_URL": url,
}

from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.landing.pipeline import connected, land_days
from affiliate_pipeline.landing.store import Store

endpoint = next(endpoint for endpoint in ENDPOINTS if endpoint.key == "binance/rebate_recent_record")


def land(day):
    with Store(url) as store, connected(endpoint, store, configured().variables) as session:
        return [type(outcome).__name__ for outcome in land_days(endpoint, [day], session=session, store=store, run_id="x")]


land(day - timedelta(days=1))  # Creates the tables.
threads = [threading.Thread(target=land, args=(day,), daemon=True) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join(60) for thread in threads]
with psycopg.connect(url) as connection:
    print(connection.execute("select count(*), sum(income) from binance.rebate_recent_record where partition_date = %s", (day,)).fetchone(), "should be 399 rows, 39.9")
os._exit(0)
