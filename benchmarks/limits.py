"""(b) How much of a rate limit is used: 30 requests a minute of an LBank endpoint, on the real window, against a server
that counts strictly, by one process and by four at once."""

import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool

from benchmarks.harness import MB, Table, place
from benchmarks.source import Answered, source

PERMITTED = 30
BURST = 5
WORKERS = 8
ANSWER_MS = 100
SECONDS, QUICK_SECONDS = 150, 32
# Each has a budget of its own, so that both are measured at the same time.
ONE, FOUR = "lbank/invite_user_info", "lbank/trade_user_team"
PROCESSES = {ONE: 1, FOUR: 4}


def slow(sandbox) -> str:
    """Every answer takes as long as is permitted here."""
    sandbox.faults.slow_s = ANSWER_MS / 1000
    sandbox.faults.mix(slow=1.0)
    return sandbox.lbank.own_open_id


def ask(key: str, open_id: str, workers: int, until: float) -> None:
    """Asks the endpoint as often as the shared limit lets this process."""
    from affiliate_pipeline.environment import configured
    from affiliate_pipeline.exchanges.registry import ENDPOINTS
    from affiliate_pipeline.landing.pipeline import connected
    from affiliate_pipeline.landing.store import Store

    endpoint = next(endpoint for endpoint in ENDPOINTS if endpoint.key == key)
    params = {"openId": open_id}
    if key == FOUR:
        params |= {"tradeType": 0, "startTime": 0, "endTime": 86_400_000}
    with Store(configured().database_url()) as store, connected(endpoint, store, configured().variables) as session:

        def again() -> None:
            while time.time() < until:
                session.client.get(endpoint.path, params, bytes)

        with ThreadPoolExecutor(workers) as pool:
            for asked in [pool.submit(again) for _ in range(workers)]:
                asked.result()


def run(quick: bool, rounds: int) -> list[Table]:
    seconds = QUICK_SECONDS if quick else SECONDS
    with source(slow, users=3) as exchange, place(**exchange.environment) as at:
        until = time.time() + seconds
        jobs = [
            (key, exchange.told, WORKERS // processes, until)
            for key, processes in PROCESSES.items()
            for _ in range(processes)
        ]
        with ThreadPool(len(jobs)) as pool:
            measured = pool.map(lambda job: at.spawned(ask, *job), jobs)
        answered = exchange.answered()
    from affiliate_pipeline.exchanges.registry import ENDPOINTS

    paths = {endpoint.key: endpoint.path for endpoint in ENDPOINTS}
    arrived = {key: [request for request in answered if request.path == paths[key]] for key in PROCESSES}
    rates = {key: _rate(requests) for key, requests in arrived.items()}
    memory = max(result.memory["contender"] for result in measured)
    return [
        Table(
            f"Requests a minute, {PERMITTED} permitted",
            ["processes", *map(str, PROCESSES.values())],
            [
                ["requests a minute", *(f"{rate:.2f}" for rate in rates.values())],
                ["of what is permitted", *(f"{rate / PERMITTED:.3f}" for rate in rates.values())],
                ["requests", *(str(len(requests)) for requests in arrived.values())],
                ["refused", *(str(sum(request.refused for request in requests)) for requests in arrived.values())],
                ["peak memory of a process, MB", *[f"{memory / MB:,.0f}"] * len(PROCESSES)],
            ],
            [
                f"{BURST} requests in any 10 s by the server's own count, which answers each after {ANSWER_MS} ms. The rate is that "
                f"between bursts, from the second one to the last, in {seconds} s.",
            ],
        )
    ]


def _rate(requests: list[Answered]) -> float:
    """Requests a minute in steady state: from the second burst's first request to the last full burst's first."""
    times = sorted(request.received_ms for request in requests)
    last = (len(times) - 1) // BURST * BURST
    assert last > BURST, f"only {len(times)} requests"
    return 60_000 * (last - BURST) / (times[last] - times[BURST])
