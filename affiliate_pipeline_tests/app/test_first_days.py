"""The first days that `up` chooses, and the partitions that follow from them."""

import io
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime

import dagster as dg
import pytest

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app import first_days
from affiliate_pipeline.app.dagster_client import DagsterClient
from affiliate_pipeline.app.landing import Landing
from affiliate_pipeline.domain.days import DAY
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.settings import Environment, Mode
from affiliate_pipeline.exchanges.endpoint import Records
from affiliate_pipeline.exchanges.lbank.exchange import LBANK
from affiliate_pipeline.exchanges.registry import ENDPOINTS, start_date
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline_tests.code_location import loaded_definitions

TODAY = date(2026, 11, 29)
# Noon in UTC, and evening of the same day in UTC+8.
NOON = datetime(2026, 11, 29, 12, tzinfo=UTC)
# The first of the last 7 days, counting today: Binance promises to retain these, and LBank's default is the same.
RETAINED = date(2026, 11, 23)
LANDED = (
    "insert into affiliate.landing (asset, partition, rows, content_hash, settled, source, landed_at, checked_at, run_id) "
    "values (%s, %s, 0, '', true, '', now(), now(), '')"
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Sets the clock by which first days are chosen."""

    def set_to(now: datetime) -> None:
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return now.astimezone(tz)

        monkeypatch.setattr(first_days, "datetime", Clock)
        monkeypatch.setattr(first_days, "now_ms", lambda: int(now.timestamp() * 1000))

    set_to(NOON)
    return set_to


@pytest.fixture
def choose(database_url: str, clock) -> Iterator[Callable[[], dict[str, date]]]:
    """Chooses first days as `up` does, and returns them; asserts that a process started later reads the same ones."""
    settings.home().mkdir()
    with Store(database_url) as store:

        def choose() -> dict[str, date]:
            chosen = first_days.ensure(settings.application(), store)
            assert settings.application().first_days == chosen.first_days
            return dict(chosen.first_days)

        yield choose


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys) -> Callable[..., None]:
    """Runs the test on a terminal where these lines are entered."""

    def enter(*lines: str) -> None:
        monkeypatch.setattr(sys, "stdin", Terminal("".join(f"{line}\n" for line in lines)))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    return enter


def configure_lbank(monkeypatch: pytest.MonkeyPatch, suffix: str = "", url: str = "http://127.0.0.1:9") -> None:
    for name in LBANK.credentials(""):
        monkeypatch.setenv(f"{name}{suffix}", f"{name}{suffix}")
    monkeypatch.setenv("LBANK_BASE_URL", url)


def test_records_start_with_the_last_days_and_snapshots_today(choose, both_exchanges):
    chosen = choose()

    assert chosen == {
        each.key: RETAINED if isinstance(each, Records) else TODAY
        for each in ENDPOINTS
        if settings.application().is_any_set(each.credentials)
    }


def test_a_day_that_binance_no_longer_retains_completely_is_not_chosen(choose, sandbox, clock):
    clock(datetime(2026, 11, 29, 23, 59, tzinfo=UTC))
    assert choose()["binance/rebate_recent_record"] == RETAINED
    (settings.home() / "first_days.json").unlink()
    clock(datetime(2026, 11, 30, 0, 1, tzinfo=UTC))
    assert choose()["binance/rebate_recent_record"] == RETAINED + DAY


def test_the_choice_is_made_and_printed_once(choose, both_exchanges, clock, capsys):
    before = choose()
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "Binance Link: the first day is 2026-11-23, the first of the last 7 days, which the exchange promises to "
        "retain.",
        "LBank affiliate: the first day is 2026-11-23. For earlier days, set LBANK_START_DATE in .env, such as "
        "LBANK_START_DATE=2026-10-24, and start `up` again.",
    ]
    clock(NOON + 30 * DAY)
    assert choose() == before
    assert capsys.readouterr().out == ""


def test_an_account_that_is_configured_later_starts_later(choose, sandbox, clock, monkeypatch):
    before = choose()
    assert not any(asset.startswith("lbank/") for asset in before)

    clock(NOON + 30 * DAY)
    configure_lbank(monkeypatch, suffix="__ACME")
    after = choose()

    assert {asset: after[asset] for asset in before} == before
    assert after["lbank/acme/trade_user"] == RETAINED + 30 * DAY
    assert after["lbank/acme/invite_user_info"] == TODAY + 30 * DAY


def test_no_landed_day_is_before_the_first_day(choose, both_exchanges, query):
    landed = {"binance/customization": TODAY - 40 * DAY, "binance/rebate_recent_record": TODAY - 50 * DAY}
    landed |= {"lbank/trade_user": TODAY - DAY, "binance/kickback_recent_record": TODAY - 60 * DAY}
    for asset, day in landed.items():
        query(LANDED, asset, day)

    chosen = choose()

    assert chosen["binance/customization"] == TODAY - 40 * DAY
    assert chosen["binance/rebate_recent_record"] == TODAY - 50 * DAY
    assert chosen["lbank/trade_user"] == chosen["lbank/trade_future"] == RETAINED


def test_landed_days_of_an_account_that_is_not_configured_any_more_stay_visible(choose, sandbox, query):
    query(LANDED, "lbank/commission_stats_symbol_list", TODAY - 50 * DAY)
    choose()
    assets = "lbank/commission_stats_symbol_list", "affiliate/daily_commission"
    assert first_partitions(*assets) == [f"{TODAY - 50 * DAY}"] * 2


def test_a_configured_start_date_is_not_replaced(choose, both_exchanges, monkeypatch, clock):
    monkeypatch.setenv("AFFILIATE_START_DATE", "2025-06-01")
    chosen = choose()
    # Only snapshots: no day is chosen for records, whose start date is configured.
    assert chosen == dict.fromkeys(chosen, TODAY)
    assert first_partitions("binance/rebate_recent_record", "binance/customization", "affiliate/daily_commission") == [
        "2025-06-01",
        "2026-11-29",
        "2025-06-01",
    ]

    monkeypatch.setenv("LBANK_START_DATE", "2024-01-01")
    assert first_partitions("lbank/trade_user", "binance/rebate_recent_record", "affiliate/daily_commission") == [
        "2024-01-01",
        "2025-06-01",
        "2024-01-01",
    ]


def test_the_daily_commission_starts_with_the_earliest_of_its_assets(choose, both_exchanges, monkeypatch):
    monkeypatch.setenv("LBANK_START_DATE", "2026-10-01")
    for name in "BINANCE_CLIENT_API_KEY", "BINANCE_CLIENT_API_SECRET":
        monkeypatch.delenv(name)
    choose()
    assets = (
        "binance/rebate_recent_record",
        "lbank/commission_stats_symbol_list",
        "binance/kickback_recent_record",
        "affiliate/daily_commission",
    )
    assert first_partitions(*assets) == ["2026-11-23", "2026-10-01", "2026-11-23", "2026-10-01"]


def test_a_malformed_start_date_is_reported_by_name(monkeypatch):
    monkeypatch.setenv("LBANK_START_DATE", "2026-02-30")
    with pytest.raises(SettingsError, match="LBANK_START_DATE "):
        start_date(LBANK, settings.configured())


def test_without_up_the_first_day_is_the_default(both_exchanges):
    assert first_partitions("binance/rebate_recent_record", "lbank/invite_user_info") == ["2025-01-01"] * 2


def test_in_the_sandbox_the_first_day_is_not_asked_for(choose, both_exchanges, monkeypatch, terminal):
    terminal("2026-01-01")
    monkeypatch.setattr(
        settings, "application", lambda: Environment(Mode.SANDBOX, settings.root(), settings.configured().variables)
    )
    environment = settings.application()
    with Store(environment.database_url()) as store:
        assert first_days.ensure(environment, store).first_days["lbank/trade_user"] == RETAINED


def test_on_a_terminal_the_first_day_of_lbank_is_asked_for(choose, both_exchanges, terminal, capsys, clock):
    clock(datetime.now(UTC))
    today = datetime.now(LBANK.zone).date()
    terminal("yesterday", f"{today + DAY}", "0226-11-01", f"{today - 29 * DAY}")

    chosen = choose()

    assert {day for asset, day in chosen.items() if asset.startswith("lbank/")} == {today - 29 * DAY, today}
    printed = capsys.readouterr().out
    assert "LBank affiliate retains all days" in printed
    offered = [line for line in printed.splitlines() if line.startswith("  2")]
    assert [line.split(":")[0][2:] for line in offered] == [
        f"{datetime.now(UTC).date() - 6 * DAY}",  # the default is a day of UTC for every exchange
        f"{today - 30 * DAY}",
    ]
    assert all("requests, at least" in line and " at the permitted rate" in line for line in offered)
    assert missing_days(settings.application(), "lbank/trade_user")[0] == today - 29 * DAY


def test_the_default_is_taken_if_nothing_is_entered(choose, both_exchanges, terminal, clock):
    clock(datetime.now(UTC))
    terminal("")
    assert choose()["lbank/trade_user"] == datetime.now(UTC).date() - 6 * DAY


def test_an_exchange_that_cannot_be_reached_gets_the_default(choose, monkeypatch, terminal, capsys, database_url):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", database_url)
    configure_lbank(monkeypatch)
    terminal("2026-01-01")

    assert choose()["lbank/trade_user"] == RETAINED

    printed = capsys.readouterr().out
    assert "LBank affiliate: the requests cannot be counted: ConnectError" in printed
    assert "set LBANK_START_DATE" in printed


def first_partitions(*assets: str) -> list[str]:
    """The first partition of each asset."""
    found = []
    for asset in assets:
        partitions = loaded_definitions().get_assets_def(dg.AssetKey(asset.split("/"))).partitions_def
        assert isinstance(partitions, dg.DailyPartitionsDefinition)
        found.append(f"{partitions.start:%Y-%m-%d}")
    return found


def missing_days(environment: Environment, asset: str) -> list[date]:
    missing = Landing(environment, DagsterClient(1), threading.Event()).missing()
    return next([*request.days] for request in missing if asset in request.keys)
