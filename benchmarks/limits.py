"""(b) Utilization of a rate limit: 30 requests a minute to an LBank endpoint, by one process and by four in parallel.

The window has its real length. Refused requests count towards the sandbox's limit too.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from typing import TYPE_CHECKING

from benchmarks.harness import MB, Table, isolated_project
from benchmarks.source import ServedRequest, source

if TYPE_CHECKING:
    from affiliate_pipeline.sandbox import Sandbox

PERMITTED = 30
BURST = 5
WORKERS = 8
RESPONSE_MS = 100
SECONDS, QUICK_SECONDS = 150, 32
# Each endpoint has its own rate limit, so both are measured at the same time.
ONE, FOUR = "lbank/invite_user_info", "lbank/trade_user_team"
PROCESSES = {ONE: 1, FOUR: 4}


def delay_responses(sandbox: "Sandbox") -> str:
    """Delay every response of the sandbox; return the affiliate's openId."""
    sandbox.faults.slow_s = RESPONSE_MS / 1000
    sandbox.faults.mix(slow=1.0)
    return sandbox.lbank.own_open_id


def request_repeatedly(key: str, open_id: str, workers: int, until: float) -> None:
    """Send requests until that time (Unix s), as often as the shared limit permits."""
    from affiliate_pipeline.environment import configured
    from affiliate_pipeline.exchanges.registry import ENDPOINTS
    from affiliate_pipeline.landing.pipeline import connected
    from affiliate_pipeline.landing.store import Store

    endpoint = next(endpoint for endpoint in ENDPOINTS if endpoint.key == key)
    params = {"openId": open_id}
    if key == FOUR:
        params |= {"tradeType": 0, "startTime": 0, "endTime": 86_400_000}

    with Store(configured().database_url()) as store, connected(endpoint, store, configured().variables) as session:

        def request() -> None:
            while time.time() < until:
                session.client.get(endpoint.path, params, bytes)

        with ThreadPoolExecutor(workers) as pool:
            for future in [pool.submit(request) for _ in range(workers)]:
                future.result()


def run(quick: bool, rounds: int) -> list[Table]:
    """Measure the share of a rate limit that one process and four processes use."""
    seconds = QUICK_SECONDS if quick else SECONDS
    with source(delay_responses, users=3) as exchange, isolated_project(**exchange.environment) as project:
        until = time.time() + seconds
        jobs: list[tuple[str, str, int, float]] = []
        for key, processes in PROCESSES.items():
            jobs += [(key, exchange.prepared, WORKERS // processes, until)] * processes
        with ThreadPool(len(jobs)) as pool:
            measured = pool.map(lambda job: project.run(request_repeatedly, *job), jobs)
        served = exchange.served()
    peak_bytes = dict.fromkeys(PROCESSES, 0)
    for (key, *_), process in zip(jobs, measured, strict=True):
        peak_bytes[key] = max(peak_bytes[key], process.memory["process"])
    return [_table(served, peak_bytes, seconds)]


def _table(served: list[ServedRequest], peak_bytes: dict[str, int], seconds: int) -> Table:
    from affiliate_pipeline.exchanges.registry import ENDPOINTS

    paths = {endpoint.key: endpoint.path for endpoint in ENDPOINTS}
    by_key = {key: [request for request in served if request.path == paths[key]] for key in PROCESSES}
    rates = [_rate(requests) for requests in by_key.values()]
    refused = [sum(request.refused for request in requests) for requests in by_key.values()]
    return Table(
        f"Requests a minute, {PERMITTED} permitted",
        ["processes", *map(str, PROCESSES.values())],
        [
            ["requests a minute", *(f"{rate:.2f}" for rate in rates)],
            ["of the permitted rate", *(f"{rate / PERMITTED:.3f}" for rate in rates)],
            ["requests", *(str(len(requests)) for requests in by_key.values())],
            ["refused", *map(str, refused)],
            ["peak memory of a process, MB", *(f"{peak_bytes[key] / MB:,.0f}" for key in PROCESSES)],
        ],
        [
            f"The server permits {BURST} requests in any 10 s and responds to each after {RESPONSE_MS} ms. The rate "
            f"is measured from the second burst to the last one within {seconds} s.",
        ],
    )


def _rate(requests: list[ServedRequest]) -> float:
    """Requests a minute, from the first request of the second burst to the first one of the last burst."""
    # The first burst uses an empty window, which no later one has.
    times = sorted(request.received_ms for request in requests)
    last = (len(times) - 1) // BURST * BURST
    assert last > BURST, f"only {len(times)} requests"
    return 60_000 * (last - BURST) / (times[last] - times[BURST])
