"""One digest per day or week is raised and delivered, whatever is killed or restarted; it names what it lacks."""

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import dagster as dg
import psycopg
import pytest

from affiliate_pipeline import AffiliateDatabase, Alerts, ApiKey, BinanceAccount, definitions, environment
from affiliate_pipeline import build_definitions as build_host_definitions
from affiliate_pipeline.commission import headline
from affiliate_pipeline.commission.figures import Figures, Incomplete
from affiliate_pipeline.commission.rollup import Commission, DayTotal
from affiliate_pipeline.defs.resources import EnvironmentPipeline
from affiliate_pipeline.defs.sensors import digest as digest_sensor
from affiliate_pipeline.domain.days import days_from, format_days
from affiliate_pipeline.domain.settings import Environment, Mode
from affiliate_pipeline.exchanges.registry import DEFAULT
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline_tests.code_location import loaded_definitions
from affiliate_pipeline_tests.conftest import RESOURCES
from affiliate_pipeline_tests.defs.affiliates import commission
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, TODAY, at, rebate
from affiliate_pipeline_tests.webhook import Webhook

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
LBANK = "lbank/commission_stats_symbol_list"
# Neither has settled. For the digest, a day that was fetched before its schedule has not landed. `land` fetches by the
# real clock, not by the clock of `Daemon`, so the time of `DAY`'s schedule must have passed by the real clock.
DAY, NEXT_DAY = DAYS[3], DAYS[4]
# Prints a line when it is ready. For each line that it reads, starts a process that evaluates both sensors once, at the
# time (ms) in the first argument, and prints the id of the process.
TICKS = """
import os, signal, sys, apprise, dagster as dg
from affiliate_pipeline import definitions
from affiliate_pipeline.defs.sensors import digest

def tick(ms):
    digest.now_ms = lambda: ms
    for name in ("digest", "alert_delivery"):
        context = dg.build_sensor_context(instance=instance, resources={"pipeline": definitions.pipeline_of_instance})
        definitions.defs.resolve_sensor_def(name).evaluate_tick(context)

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
instance = dg.DagsterInstance.ephemeral()
# Imports what the processes need, which takes longer than a tick. At time 0 there are no earnings, so no digest.
apprise.Apprise("json://127.0.0.1")
tick(0)
print(flush=True)
for _ in sys.stdin:
    if process := os.fork():
        print(process, flush=True)
    else:
        tick(int(sys.argv[1]))
        os._exit(0)
"""


@dataclass
class Daemon:
    """Evaluates the sensors as Dagster's daemon does, with a clock that can be set; stores the cursor of the digest."""

    instance: dg.DagsterInstance
    monkeypatch: pytest.MonkeyPatch
    definitions: dg.Definitions
    resources: Mapping[str, Any] = field(default_factory=lambda: RESOURCES)
    name: str = "digest"
    cursor: str | None = None

    def set_time(self, ms: int) -> None:
        self.monkeypatch.setattr(digest_sensor, "now_ms", lambda: ms)

    def digest(self) -> str:
        """Evaluate the digest; return what it reports."""
        result = self._evaluate(self.name, self.cursor)
        self.cursor = result.cursor
        return result.skip_message or ""

    def deliver(self) -> None:
        self._evaluate("alert_delivery", None)

    def _evaluate(self, name: str, cursor: str | None) -> Any:
        context = dg.build_sensor_context(instance=self.instance, cursor=cursor, resources={**self.resources})
        return self.definitions.resolve_sensor_def(name).evaluate_tick(context)


@pytest.fixture
def daily(sandbox, webhook, monkeypatch) -> None:
    """A daily digest of one account, the partner's, without market prices."""
    monkeypatch.setenv("AFFILIATE_DIGEST", "daily")
    monkeypatch.setenv("AFFILIATE_PRICES", "off")
    monkeypatch.setenv("ALERT_URLS", webhook.url)
    monkeypatch.delenv("BINANCE_CLIENT_API_KEY")
    monkeypatch.delenv("BINANCE_CLIENT_API_SECRET")


@pytest.fixture
def daemon(daily, instance, monkeypatch) -> Daemon:
    daemon = Daemon(instance, monkeypatch, loaded_definitions())
    daemon.set_time(at(NEXT_DAY, "00:15:00.000"))
    return daemon


@pytest.fixture
def add_up(database_url) -> Callable[..., None]:
    """Adds the days up, as the asset does."""

    def add_up(*days: date) -> None:
        with Store(database_url) as store:
            for day in days:
                assert Commission(store, DEFAULT.earning).add_up(day, "run")

    return add_up


@pytest.fixture
def earn(sandbox, add_up) -> Callable[..., None]:
    """Lands one rebate per day, and adds the days up."""

    def earn(amounts: Mapping[date, str], coin: str = "USDT") -> None:
        sandbox.binance.set_rebates([rebate(at(day), income=amount, asset=coin) for day, amount in amounts.items()])
        assert land(KEY, [*amounts], allow_shrink=True).success
        add_up(*amounts)

    return earn


@pytest.fixture
def digests(query) -> Callable[[], list[tuple[str, str]]]:
    """The titles and texts of all alerts, oldest first."""
    return lambda: query("select title, text from affiliate.alert order by raised_at")


def titles(webhook: Webhook) -> list[str]:
    return [message["title"] for message in webhook.messages]


def test_the_digest_has_the_total_and_the_change_and_is_delivered_once(daemon, earn, webhook, instance):
    earn({DAYS[1]: "90", DAYS[2]: "110", DAY: "150.255"})
    for _ in range(3):
        daemon.digest()
        daemon.deliver()
    restarted = Daemon(instance, daemon.monkeypatch, loaded_definitions())
    assert restarted.digest() == f"the daily digest of {DAY} is among the alerts"
    restarted.deliver()

    (message,) = webhook.messages
    assert (message["title"], message["type"]) == (f"150.26 USDT earned on {DAY}", "info")
    assert f"{DAY}: 150.26 USDT, +50.3 % against the mean of 2 complete days of the 7 before." in message["message"]
    assert "may still change" in message["message"]


def test_a_day_is_due_when_its_schedule_should_have_landed_it(daemon, earn, digests):
    earn({DAYS[1]: "1", DAYS[2]: "2", DAY: "3"})
    daemon.set_time(at(NEXT_DAY, "00:14:59.999"))
    daemon.digest()
    assert [title for title, _ in digests()] == [f"2.00 USDT earned on {DAYS[2]}"]
    daemon.set_time(at(NEXT_DAY, "00:15:00.000"))
    daemon.digest()
    assert [title for title, _ in digests()][1:] == [f"3.00 USDT earned on {DAY}"]


def test_a_day_of_several_exchanges_is_due_after_the_last_of_them(daemon, earn, digests, both_exchanges, add_up):
    earn({DAYS[2]: "2", DAY: "3"})
    # LBank's day ends at 16:00 UTC, and its schedule lands it at 10:35 in Shanghai.
    daemon.set_time(at(NEXT_DAY, "02:34:59.999"))
    assert daemon.digest() == f"the daily digest of {DAYS[2]} waits: {LBANK} has not landed {DAYS[2]}"
    daemon.set_time(at(NEXT_DAY, "02:35:00.000"))
    assert daemon.digest() == f"the daily digest of {DAY} waits: {LBANK} has not landed {DAY}"

    both_exchanges.lbank.set_commissions([commission(both_exchanges.lbank.own_open_id, DAY, "4.50")])
    assert land(LBANK, [DAY]).success
    assert f"{DAY} not added up" in daemon.digest()
    add_up(DAY)
    daemon.digest()

    ((title, text),) = digests()
    assert title == f"7.50 USDT earned on {DAY}"
    assert "binance 3.00, lbank 4.50 USDT." in text


def test_the_digest_is_due_after_the_last_of_all_accounts_that_land_in_the_database(
    daemon, earn, digests, both_exchanges, add_up, monkeypatch
):
    both_exchanges.lbank.set_commissions([commission(both_exchanges.lbank.own_open_id, DAYS[2], "4.50")])
    earn({DAYS[2]: "2", DAY: "3"})
    assert land(LBANK, [DAYS[2]]).success
    add_up(DAYS[2])
    # From here on, LBank is configured only for other definitions.
    for name in both_exchanges.lbank.variables(both_exchanges.url):
        monkeypatch.delenv(name)

    daemon.set_time(at(NEXT_DAY, "02:34:59.999"))
    daemon.digest()
    assert [title for title, _ in digests()] == [f"6.50 USDT earned on {DAYS[2]}"]
    daemon.set_time(at(NEXT_DAY, "02:35:00.000"))
    assert daemon.digest() == f"the daily digest of {DAY} waits: {LBANK} has not landed {DAY}"


def test_days_before_the_first_one_are_not_waited_for(daemon, earn, digests, query, monkeypatch):
    earn({DAYS[2]: "2", DAY: "3"})
    query("delete from affiliate.computed_day where partition = %s", DAYS[2])
    assert f"{DAYS[2]} not added up" in daemon.digest()
    monkeypatch.setenv("AFFILIATE_START_DATE", f"{DAY}")
    daemon.digest()
    assert [title for title, _ in digests()] == [f"3.00 USDT earned on {DAY}"]


def test_a_missing_day_is_waited_for_and_then_reported_with_its_deadline(
    daemon, earn, digests, sandbox, add_up, monkeypatch
):
    monkeypatch.setattr(digest_sensor, "MAX_WAITING_TICKS", 2)
    earn({DAYS[1]: "1", DAYS[2]: "2"})
    waits = f"the daily digest of {DAY} waits: {KEY} has not landed {DAY}"
    assert [daemon.digest(), daemon.digest()] == [waits, waits]
    assert digests() == []
    daemon.digest()

    ((title, text),) = digests()
    assert title == f"0.00 USDT earned on {DAY}, incomplete"
    assert f"Not landed: binance rebate (fetchable until {DAY + timedelta(days=6)} 23:59 UTC)." in text

    sandbox.binance.set_rebates([rebate(at(DAY))])
    assert land(KEY, [DAY]).success
    add_up(DAY)
    daemon.digest()
    assert len(digests()) == 1


def test_the_digest_is_sent_as_soon_as_what_it_waits_for_has_landed(daemon, earn, digests):
    earn({DAYS[1]: "1", DAYS[2]: "2"})
    daemon.digest()
    earn({DAYS[1]: "1", DAYS[2]: "2", DAY: "3"})
    daemon.digest()
    assert [title for title, _ in digests()] == [f"3.00 USDT earned on {DAY}"]


def test_a_day_that_was_read_before_its_schedule_is_waited_for(daemon, earn, digests, query):
    earn({DAY: "3"})
    query("update affiliate.landing set checked_at = to_timestamp(%s)", at(NEXT_DAY, "00:14:59.999") / 1000)
    assert "has not landed" in daemon.digest()
    query("update affiliate.landing set checked_at = to_timestamp(%s)", at(NEXT_DAY, "00:15:00.000") / 1000)
    daemon.digest()
    assert len(digests()) == 1


def test_after_a_pause_only_the_newest_digest_is_added(daemon, earn, digests):
    earn(dict.fromkeys(DAYS[:4], "5"))
    daemon.digest()
    assert [title for title, _ in digests()] == [f"5.00 USDT earned on {DAY}"]


def test_time_in_which_the_daemon_does_not_run_does_not_count_as_waiting(daemon, earn, digests):
    earn({DAYS[1]: "1", DAYS[2]: "2"})
    daemon.digest()
    daemon.set_time(at(NEXT_DAY, "23:59:00.000"))
    assert "waits" in daemon.digest()
    assert digests() == []


def test_without_earnings_there_is_no_digest(daemon, earn, digests):
    assert daemon.digest() == f"nothing has landed up to {DAY}"
    earn({NEXT_DAY: "1"})
    assert daemon.digest() == f"nothing has landed up to {DAY}"
    assert digests() == []


def test_coins_without_a_value_and_missing_prices_are_named(daemon, earn, digests, monkeypatch):
    monkeypatch.setattr(digest_sensor, "MAX_WAITING_TICKS", 1)
    earn({DAYS[2]: "0.5", DAY: "0.5"}, coin="BTC")
    daemon.set_time(at(DAY, "00:15:00.000"))
    daemon.digest()
    assert "Without a value in USDT, so not in the total: BTC." in digests()[0][1]

    monkeypatch.setenv("AFFILIATE_PRICES", "on")
    with_prices = Daemon(daemon.instance, monkeypatch, loaded_definitions())
    with_prices.set_time(at(NEXT_DAY, "00:15:00.000"))
    assert "latest rows and prices" in with_prices.digest()
    with_prices.digest()
    title, text = digests()[-1]
    assert title == f"0.00 USDT earned on {DAY}, incomplete"
    assert "market prices" in text.lower()


def test_sandbox_data_are_marked(daily, earn, instance, digests, monkeypatch):
    variables = environment.configured().variables
    pipeline = EnvironmentPipeline(lambda: Environment(Mode.SANDBOX, environment.root(), variables))
    earn({DAY: "1"})
    daemon = Daemon(instance, monkeypatch, definitions.build_definitions(pipeline), {"pipeline": pipeline})
    daemon.set_time(at(NEXT_DAY, "00:15:00.000"))
    daemon.digest()
    ((title, text),) = digests()
    assert title == f"Sandbox data: 1.00 USDT earned on {DAY}"
    assert text.startswith("Sandbox data. Not real earnings.")


def test_the_weekly_digest_covers_the_days_up_to_sunday_and_the_week_before(
    both_exchanges, instance, digests, add_up, monkeypatch
):
    for name in both_exchanges.binance.variables(both_exchanges.url):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AFFILIATE_DIGEST", "weekly")
    monkeypatch.setenv("AFFILIATE_PRICES", "off")
    two_days_ago = TODAY - timedelta(days=2)
    sunday = two_days_ago - timedelta(days=two_days_ago.isoweekday() % 7)
    days = days_from(sunday - timedelta(days=13), sunday)
    own = both_exchanges.lbank.own_open_id
    amounts = dict.fromkeys(days[:7], "10") | dict.fromkeys(days[7:], "12")
    both_exchanges.lbank.set_commissions([commission(own, day, amount) for day, amount in amounts.items()])
    assert land(LBANK, days).success
    add_up(*days)
    daemon = Daemon(instance, monkeypatch, loaded_definitions())

    # The schedule lands Sunday on Monday at 02:35 UTC.
    daemon.set_time(at(sunday + timedelta(days=1), "02:34:59.999"))
    daemon.digest()
    for hours in (0, 24, 6 * 24):
        daemon.set_time(at(sunday + timedelta(days=1), "02:35:00.000") + hours * 3_600_000)
        daemon.digest()

    (_, earlier_text), (title, text) = digests()
    assert "no complete day before" in earlier_text
    assert title == f"84.00 USDT earned on {format_days(days[7:])}"
    assert "84.00 USDT, +20.0 % against the 7 days before" in text


def test_concurrent_ticks_add_one_digest(daemon, earn, digests, webhook, database_url, query):
    earn({DAY: "1"})
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and position('insert into affiliate.alert ' in query) = 1"
    sensor = daemon.definitions.resolve_sensor_def("digest")

    def tick() -> str:
        context = dg.build_sensor_context(instance=daemon.instance, resources=RESOURCES)
        return sensor.evaluate_tick(context).skip_message or ""

    with ThreadPoolExecutor(4) as pool:
        with psycopg.connect(database_url) as blocker:
            # Every tick finds that the digest is missing, and waits when it inserts it.
            blocker.execute("lock table affiliate.alert in share row exclusive mode")
            ticks = [pool.submit(tick) for _ in range(4)]
            while query(waiting) != [(4,)]:
                assert not any(each.done() for each in ticks)
        for each in ticks:
            each.result()
    daemon.deliver()
    assert [title for title, _ in digests()] == titles(webhook) == [f"1.00 USDT earned on {DAY}"]


def test_after_kills_there_is_one_digest(daemon, earn, digests, webhook, database_url, query):
    earn({DAY: "1"})
    steps = [
        ("affiliate.alert in share row exclusive mode", "insert into affiliate.alert ", 0, 0),
        ("affiliate.alert_delivery in access exclusive mode", "select target from affiliate.alert_delivery", 1, 0),
        ("affiliate.alert_delivery in share row exclusive mode", "insert into affiliate.alert_delivery", 1, 1),
    ]
    with subprocess.Popen(
        [sys.executable, "-c", TICKS, f"{at(NEXT_DAY, '00:15:00.000')}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as ticks:
        assert ticks.stdin and ticks.stdout and ticks.stdout.readline()
        for lock, statement, added, sent in steps:
            waiting = f"select pid from pg_stat_activity where wait_event_type = 'Lock' and position('{statement}' in query) = 1"
            with psycopg.connect(database_url) as blocker:
                blocker.execute(f"lock table {lock}".encode())
                ticks.stdin.write(b"\n")
                ticks.stdin.flush()
                killed = int(ticks.stdout.readline())
                while not query(waiting):
                    os.kill(killed, 0)  # fails if the process has ended
                os.kill(killed, signal.SIGKILL)
                query(f"select pg_terminate_backend(pid, 60000) from ({waiting}) waiting")
            assert (len(digests()), len(webhook.messages)) == (added, sent), statement

    for _ in range(3):
        daemon.digest()
        daemon.deliver()
    title = f"1.00 USDT earned on {DAY}"
    assert [found for found, _ in digests()] == [title]
    # A target that accepts a message gets it again if the process dies before it has recorded that.
    assert titles(webhook) == [title] * 2


def test_without_the_setting_there_is_no_digest_sensor(sandbox, monkeypatch):
    for value in (None, "off"):
        if value:
            monkeypatch.setenv("AFFILIATE_DIGEST", value)
        assert "digest" not in {each.name for each in loaded_definitions().sensors or ()}


def test_a_host_project_gets_the_digest_among_its_own_alerts(daily, earn, instance, query, sandbox, monkeypatch):
    earn({DAY: "1"})
    account = BinanceAccount(
        partner=ApiKey(key=dg.EnvVar("BINANCE_PARTNER_API_KEY"), secret=dg.EnvVar("BINANCE_PARTNER_API_SECRET")),
        base_url=sandbox.url,
    )
    built = build_host_definitions(
        [account],
        database=AffiliateDatabase(url=dg.EnvVar("AFFILIATE_DATABASE_URL")),
        key_prefix=["desk"],
        commission=True,
        alerts=Alerts(urls=dg.EnvVar("ALERT_URLS"), digest="daily"),
    )
    daemon = Daemon(instance, monkeypatch, built, built.resources or {}, "affiliate_desk_binance_digest")
    daemon.set_time(at(NEXT_DAY, "00:15:00.000"))
    daemon.digest()
    daemon.digest()
    assert query("select scope, title from affiliate.alert") == [
        ("affiliate_desk_binance_", f"1.00 USDT earned on {DAY}")
    ]


def test_the_runbook_quotes_a_digest():
    days = days_from(date(2026, 10, 31), date(2026, 11, 29))
    deadlines = {days[-1]: at(date(2026, 12, 29), "00:00:00.000")}
    figures = Figures(
        days[-1],
        days,
        datetime(2026, 11, 30, 4, 35, tzinfo=UTC),
        sums=(),
        totals=(),
        customers=(),
        incomplete=[
            Incomplete("rebates", [], days[-2:], "binance", "", "rebate"),
            Incomplete("kickbacks", days[-1:], [], "binance", "", "kickback", deadlines),
        ],
        by_day=[
            *(DayTotal(day, "binance", "", 9000, Decimal("1204.5"), Decimal(0), ()) for day in days),
            *(DayTotal(day, "lbank", "", 300, Decimal("310.25") + day.day, Decimal("7.5"), ("XYZ",)) for day in days),
        ],
    )
    runbook = (Path(__file__).parents[3] / "docs" / "runbook.md").read_text()
    assert textwrap.indent(f"{headline.title(figures)}\n{headline.text(figures)}\n", "    ") in runbook
