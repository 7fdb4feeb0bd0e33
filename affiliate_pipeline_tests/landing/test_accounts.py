"""Two accounts share each endpoint's table: whatever happens to a day of one leaves the rows of the other unchanged."""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import psycopg
import pytest

from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.exchanges.endpoint import ActionLog, Endpoint, Records
from affiliate_pipeline.exchanges.fetching import DayBatch, DayError, RequestPlan, Session
from affiliate_pipeline.exchanges.identity import AccountKeys, nothing_landed
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.http.errors import Transient
from affiliate_pipeline.landing import endpoint_tables
from affiliate_pipeline.landing.pipeline import Failed, Landed, Options, Outcome, connected, land_days
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.schema.columns import columns

VARIABLES = {
    name + suffix: f"{name.lower().replace('_', '-')}{suffix.lower()}"
    for endpoint in ENDPOINTS
    for name in (*endpoint.credentials, *endpoint.requires)
    for suffix in ("", "__ACME")
}
REBATES = next(each for each in ENDPOINTS if each.key == "binance/rebate_recent_record")
VALUES = {"text": "x", "amount": "1.50", "bigint": 1, "smallint": 1, "flag": True}


@dataclass(frozen=True)
class Scripted:
    """Returns these rows for each day, or fails it; requests nothing."""

    rows: Sequence[bytes] = ()
    fails: bool = False
    path: str = "/"

    def plan(self, _session: Session, _days: Sequence[date], _zone: ZoneInfo) -> RequestPlan:
        return RequestPlan(0, 0, 0)

    def fetch(self, _session: Session, days: Sequence[date], _zone: ZoneInfo) -> Generator[DayBatch | DayError]:
        for day in days:
            yield DayError(day, Transient("no")) if self.fails else DayBatch(day, self.rows, len(self.rows), requests=1)


def row_of(endpoint: Endpoint, day: date, number: int) -> bytes:
    """A valid row of the day; rows of different numbers differ."""
    values = {**VALUES, "instant": endpoint.start_ms(day) + 1000 * number, "text": f"x{number}"}
    return msgspec.json.encode({each.json_name: values[each.kind.name] for each in columns(endpoint.schema)})


def day_of(endpoint: Endpoint) -> date:
    """The day to land: yesterday for records; today for snapshots and action logs, which can land no other day."""
    today = datetime.now(endpoint.exchange.zone).date()
    return today - timedelta(days=1) if isinstance(endpoint, Records) else today


@pytest.fixture
def store(database_url: str) -> Iterator[Store]:
    with Store(database_url) as store:
        yield store


def known_session(stack: ExitStack, endpoint: Endpoint, store: Store) -> Session:
    """A session whose key has been verified, since there is no exchange that could state its account."""
    session = stack.enter_context(connected(endpoint, store, VARIABLES))
    with AccountKeys(store.url, session.identity.key, nothing_landed) as keys:
        # The identity of an LBank account is its openId; that of a Binance account may be any text here.
        keys.record(VARIABLES[f"LBANK_OPEN_ID{'__ACME' if endpoint.alias else ''}"])
    return session


@pytest.fixture
def land(store: Store) -> Iterator[Callable[..., Outcome]]:
    """Lands rows with these numbers for the endpoint's day."""
    sessions: dict[str, Session] = {}
    with ExitStack() as stack:

        def land(endpoint: Endpoint, *numbers: int, fails: bool = False, run: str = "run", **options: bool) -> Outcome:
            day = day_of(endpoint)
            if endpoint.key not in sessions:
                sessions[endpoint.key] = known_session(stack, endpoint, store)
            scripted = replace(endpoint, strategy=Scripted([row_of(endpoint, day, each) for each in numbers], fails))
            session, accepted = sessions[endpoint.key], Options(**options)
            [outcome] = land_days(scripted, [day], session=session, store=store, run_id=run, options=accepted)
            return outcome

        yield land


@pytest.fixture
def rows(store: Store) -> Callable[[Endpoint], list[tuple]]:
    """All columns of the account's rows, and its entry in the ledger without `checked_at` and `run_id`."""

    def rows(endpoint: Endpoint) -> list[tuple]:
        with store.connection.transaction():
            statement = (
                f"select t::text from {endpoint.table} t where account = %s union all "
                "select (rows, content_hash, settled, source, landed_at)::text from affiliate.landing where asset = %s "
                "order by 1"
            )
            return store.connection.execute(statement.encode(), (endpoint.alias, endpoint.key)).fetchall()

    return rows


# One of each kind: days are written in the same way for all endpoints of a kind.
ONE_OF_EACH_KIND = list({type(each): each for each in ENDPOINTS}.values())


@pytest.mark.parametrize("default", ONE_OF_EACH_KIND, ids=lambda each: each.key)
def test_no_landing_of_one_account_changes_a_row_of_the_other(default, land, rows, query):
    acme = default.for_account("acme")
    assert (acme.key, acme.table) == (f"{default.exchange.name}/acme/{default.name}", default.table)
    steps: list[tuple[list[int], dict[str, Any]]] = [
        ([1, 2, 3], {"allow_shrink": True}),
        ([1, 2, 3], {}),
        ([4, 5, 6, 7], {"run": "restating"}),
        ([4], {"allow_shrink": True}),
        ([], {"allow_shrink": True}),
        ([], {"fails": True}),
        ([1, 2], {}),
    ]
    for changed, other in ((acme, default), (default, acme)):
        assert isinstance(land(other, 1, 2, 3, 8, run="other"), Landed)
        before, expected = rows(other), len(rows(changed))
        for numbers, options in steps:
            outcome = land(changed, *numbers, **options)
            assert isinstance(outcome, Failed if "fails" in options else Landed), outcome
            assert rows(other) == before
            # `rows` includes the day's ledger entry. An action log adds rows to earlier ones; the others replace them.
            if isinstance(default, ActionLog):
                expected = (expected or 1) + len(numbers)
            elif "fails" not in options:
                expected = 1 + len(numbers)
            assert len(rows(changed)) == expected
    counts = query(f"select account, count(*)::int from {default.table} group by 1 order by 1")
    assert counts == [(each.alias, len(rows(each)) - 1) for each in (default, acme)]


def test_rows_without_an_account_belong_to_the_default_one(land, store, query):
    land(REBATES.for_account("acme"), 1)
    endpoint_tables.ensure(store.connection, REBATES)
    query("select set_config('affiliate.partition_date', '2026-11-01', false), set_config('affiliate.run_id', 'x', false); "
          "insert into binance.rebate_recent_record default values")  # fmt: skip
    assert query("select account, count(*) from binance.rebate_recent_record group by 1 order by 1") == [
        ("", 1),
        ("acme", 1),
    ]


def test_the_same_days_of_the_same_key_do_not_land_under_another_alias(store, land, rows):
    acme, renamed = REBATES.for_account("acme"), REBATES.for_account("renamed")
    land(acme, 1, 2)
    before = rows(acme)

    variables = {name.replace("__ACME", "__RENAMED"): value for name, value in VARIABLES.items()}
    with connected(renamed, store, variables) as session:
        scripted = replace(renamed, strategy=Scripted([row_of(renamed, day_of(renamed), 1)]))
        [failed] = land_days(scripted, [day_of(renamed)], session=session, store=store, run_id="run")

    assert isinstance(failed, Failed)
    assert "is a key of the account that lands as binance/acme (partner)" in failed.problem.what
    assert rows(acme) == before and len(rows(renamed)) == 0


@pytest.mark.parametrize("endpoint", [REBATES, ENDPOINTS[-1]], ids=lambda each: each.key)
def test_a_further_account_with_the_key_of_the_default_one_is_refused(store, endpoint):
    key, *_ = endpoint.credentials
    variables = {**VARIABLES, f"{key}__ACME": VARIABLES[key]}
    with connected(endpoint, store, variables):  # The default account is still accepted.
        pass
    with (
        pytest.raises(SettingsError, match=f"{key}__ACME is the same key as {key}: its records would land"),
        connected(endpoint.for_account("acme"), store, variables),
    ):
        pass


def test_a_table_of_an_earlier_release_gains_the_account(database_url, query, store):
    endpoint_tables.ensure(store.connection, REBATES)
    query("alter table binance.rebate_recent_record drop column account")
    with psycopg.connect(database_url) as connection:
        endpoint_tables.ensure(connection, REBATES)
    assert query("select count(*) from binance.rebate_recent_record where account = ''") == [(0,)]
