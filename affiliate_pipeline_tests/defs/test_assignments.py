"""Assignment of customer ids: only differences are posted, each once, and every attempt lands."""

import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import pytest

from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.http.client import Client
from affiliate_pipeline.landing.pipeline import Failed, Outcome, connected, land_days, now_ms, plan_of
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline_tests.conftest import Run, materialize
from affiliate_pipeline_tests.defs.direct_runs import DirectRun, land
from affiliate_pipeline_tests.defs.events import description_of, only_check
from affiliate_pipeline_tests.defs.kickbacks import Killed

pytestmark = pytest.mark.usefixtures("verified_keys")

PARTNER_ASSIGNMENT, CLIENT_ASSIGNMENT = "binance/customization_assignment", "binance/user_customization_assignment"
ENDPOINT = {endpoint.key: endpoint for endpoint in ENDPOINTS}
# Emails that have no customer id in the sandbox.
EMAILS = [f"jane.doe{number}@example.com" for number in range(24)]
IDS = [f"id{number:02d}" for number in range(24)]
TAKEN_ID, OWNER = "hsp3wi", "xq.000@yahoo.co.jp"


def today() -> date:
    return datetime.now(UTC).date()


@pytest.fixture
def set_desired_ids(sandbox, monkeypatch, tmp_path, caplog):
    """Write the file of desired customer ids; after the test, assert that no full email was logged."""
    path = tmp_path / "customers.csv"
    monkeypatch.setenv("BINANCE_CUSTOMER_IDS", str(path))
    caplog.set_level(logging.DEBUG)

    def write(*pairs: tuple[str, str] | str, header: str = "customerId,email\n") -> None:
        path.write_text(header + "".join((pair if isinstance(pair, str) else ",".join(pair)) + "\n" for pair in pairs))

    yield write
    assert not [email for email in (*EMAILS, OWNER) if email in caplog.text]


def posts(sandbox) -> list:
    return [request for request in sandbox.requests if request.method == "POST"]


def ids_posted(sandbox) -> Counter:
    return Counter(request.params["customerId"] for request in posts(sandbox))


def rows(query, columns="customer_id, email, before_customer_id, outcome", table="customization_assignment"):
    return query(f"select {columns} from binance.{table} order by attempted_at, customer_id")


def check_of(run: Run | DirectRun) -> dg.AssetCheckEvaluation:
    """The only evaluation of the run."""
    if isinstance(run, Run):
        return only_check(run)
    [evaluation] = run.checks
    return evaluation


def passed(run: Run | DirectRun) -> bool:
    return check_of(run).passed


def findings(run: Run | DirectRun) -> str:
    return description_of(check_of(run))


@contextmanager
def landing(database_url, now: Callable[[], int] = now_ms) -> Iterator[Iterator[Outcome]]:
    """A run over today in this process, outside Dagster."""
    endpoint = ENDPOINT[PARTNER_ASSIGNMENT]
    with Store(database_url) as store, connected(endpoint, store, configured().variables) as session:
        yield land_days(endpoint, [today()], session=session, store=store, run_id="a run", now=now)


def plan(database_url, key, day: date) -> str:
    with Store(database_url) as store, connected(ENDPOINT[key], store, configured().variables) as session:
        return str(plan_of(ENDPOINT[key], [day], session=session, store=store))


# Posts


def test_only_what_differs_is_posted(sandbox, query, set_desired_ids):
    customers = sandbox.binance.customers
    set_desired_ids((TAKEN_ID, OWNER.upper()), ("new1", EMAILS[0]), ("new2", customers.by_id["6zhfub"]))

    run = land(PARTNER_ASSIGNMENT, [today()])

    assert run.success and passed(run), run.message
    assert ids_posted(sandbox) == {"new1": 1, "new2": 1}
    assert rows(query) == [
        ("new1", EMAILS[0], None, "assigned"),
        ("new2", customers.by_id["new2"], "6zhfub", "assigned"),
    ]
    assert "6zhfub" not in customers.by_id and customers.by_id["new1"] == EMAILS[0]
    assert run.landed[today()].note == "3 desired: 1 already assigned, 2 newly assigned, 0 not assigned"
    [(attempted_at, partition)] = query(
        "select max(attempted_at), max(partition_date) from binance.customization_assignment"
    )
    assert abs(datetime.now(UTC) - attempted_at) < timedelta(minutes=1) and partition == today()


def test_a_run_without_differences_leaves_the_days_rows_unchanged(sandbox, query, set_desired_ids):
    versions = "select xmin::text, ctid::text, run_id from binance.customization_assignment order by ctid"
    set_desired_ids(("new1", EMAILS[0]), ("new2", EMAILS[1]))
    land(PARTNER_ASSIGNMENT, [today()])
    before, posted = query(versions), len(posts(sandbox))

    run = land(PARTNER_ASSIGNMENT, [today()])

    assert run.success and run.landed[today()].changed is False
    assert (query(versions), len(posts(sandbox))) == (before, posted) and posted == 2
    assert query("select rows from affiliate.landing") == [(2,)]


def test_attempts_of_a_later_run_are_appended(sandbox, query, set_desired_ids):
    set_desired_ids(("new1", EMAILS[0]))
    land(PARTNER_ASSIGNMENT, [today()])
    first = query("select ctid::text, run_id from binance.customization_assignment")
    set_desired_ids(("new2", EMAILS[0]))

    run = land(PARTNER_ASSIGNMENT, [today()])

    assert run.success and run.landed[today()].stats.rows == 2
    assert rows(query) == [
        ("new1", EMAILS[0], None, "assigned"),
        ("new2", EMAILS[0], "new1", "assigned"),
    ]
    assert query("select ctid::text, run_id from binance.customization_assignment")[:1] == first
    assert len(query("select distinct run_id from binance.customization_assignment")) == 2
    assert query("select rows from affiliate.landing") == [(2,)]
    # The ledger's hash covers all rows, so a run without differences writes nothing.
    assert land(PARTNER_ASSIGNMENT, [today()]).landed[today()].changed is False


def test_without_desired_ids_no_rows_land_and_the_note_names_the_variable(sandbox, query, database_url, caplog):
    for key, variable in (
        (PARTNER_ASSIGNMENT, "BINANCE_CUSTOMER_IDS"),
        (CLIENT_ASSIGNMENT, "BINANCE_USER_CUSTOMER_ID"),
    ):
        run = land(key, [today()])

        assert run.success, run.message
        assert run.landed[today()].stats.rows == 0
        assert f"No customer id is desired: {variable} is not set" in run.landed[today()].note
        assert f"No customer id is desired: {variable} is not set" in plan(database_url, key, today())
        assert f"No customer id is desired: {variable}" in caplog.text
    assert sandbox.requests == []


def test_an_id_that_the_same_file_frees_is_assigned_to_its_new_email(sandbox, query, set_desired_ids):
    customers = sandbox.binance.customers
    first, second, third = list(customers.by_id.items())[:3]
    set_desired_ids((second[0], first[1]), (third[0], second[1]), ("new3", third[1]))

    run = land(PARTNER_ASSIGNMENT, [today()])

    assert run.success and passed(run)
    assert ids_posted(sandbox) == {second[0]: 1, third[0]: 1, "new3": 1}
    assert [customers.by_id[each] for each in (second[0], third[0], "new3")] == [first[1], second[1], third[1]]


def test_a_swap_of_two_ids_is_reported_and_not_posted(sandbox, set_desired_ids):
    (id_1, email_1), (id_2, email_2) = list(sandbox.binance.customers.by_id.items())[:2]
    set_desired_ids((id_2, email_1), (id_1, email_2))

    run = land(PARTNER_ASSIGNMENT, [today()])

    assert posts(sandbox) == []
    assert "line 2" in findings(run) and "line 3" in findings(run)


def test_masked_emails_of_the_list_match_the_desired_ones(sandbox, query, set_desired_ids):
    sandbox.faults.transform_row = lambda row: row | {"email": row["email"][:2] + "***@x.com"}
    set_desired_ids((TAKEN_ID, OWNER), ("new1", EMAILS[0]))

    run = land(PARTNER_ASSIGNMENT, [today()])

    assert run.success and passed(run)
    assert ids_posted(sandbox) == {"new1": 1}


# Rejected lines


def test_rejected_lines_are_reported_and_the_others_are_posted(sandbox, query, set_desired_ids, caplog):
    set_desired_ids(
        ("new1", EMAILS[1]),
        ("twice", EMAILS[2]),
        ("", ""),
        ("twice", EMAILS[3]),
        ("new2", EMAILS[4]),
        ("new3", EMAILS[4].upper()),
        ("new4", "jane.doe at example.com"),
        "new5",
        ("", EMAILS[5]),
        (TAKEN_ID, EMAILS[6]),
        ("new6", EMAILS[7]),
    )

    run = land(PARTNER_ASSIGNMENT, [today()])

    assert run.success, run.message
    assert ids_posted(sandbox) == {"new1": 1, "new6": 1}
    description = findings(run)
    assert not passed(run)
    for finding in (
        "line 3 (twice for ja***@example.com): its customerId is on line 5 too",
        "line 5 (twice for ja***@example.com): its customerId is on line 3 too",
        "line 6 (new2 for ja***@example.com): its email is on line 7 too",
        "line 7 (new3 for JA***@EXAMPLE.COM): its email is on line 6 too",
        "line 8 (new4 for ja***): its email is malformed",
        "line 9 (new5 for ***): it does not have the two fields customerId,email",
        "line 10 ( for ja***@example.com): it has no customerId",
        "line 11 (hsp3wi for ja***@example.com): the customerId belongs to xq***@yahoo.co.jp",
    ):
        assert finding in description and finding in caplog.text
    assert Counter(outcome for (outcome,) in rows(query, "outcome")) == {"assigned": 2, "refused": 8}
    [(message, email)] = query(
        "select message, email from binance.customization_assignment where customer_id = %s", TAKEN_ID
    )
    assert message == "line 11: the customerId belongs to xq***@yahoo.co.jp. Nothing was posted" and email == EMAILS[6]
    assert sandbox.binance.customers.by_id[TAKEN_ID] == OWNER


def test_an_assignment_that_the_exchange_refuses_is_reported_and_the_others_are_posted(sandbox, query, set_desired_ids):
    # The list hides that the id is taken; otherwise it would be refused without a POST.
    sandbox.faults.transform_row = lambda row: {"customerId": row["customerId"] + "?", "email": row["email"]}
    set_desired_ids((TAKEN_ID, EMAILS[0]), ("new1", EMAILS[1]))

    run = land(PARTNER_ASSIGNMENT, [today()])

    assert run.success and "line 2 (hsp3wi for ja***@example.com)" in findings(run)
    assert "-1130" in findings(run)
    assert rows(query) == [(TAKEN_ID, EMAILS[0], None, "refused"), ("new1", EMAILS[1], None, "assigned")]
    assert ids_posted(sandbox) == {TAKEN_ID: 1, "new1": 1}


def test_the_header_of_the_file_is_optional(sandbox, set_desired_ids):
    posted = {}
    for number, header in enumerate(["", "\ufeffcustomerId,email\n", "CustomerID , Email\n"]):
        sandbox.requests.clear()
        set_desired_ids((f"new{number}", EMAILS[number]), header=header)
        posted[header] = passed(land(PARTNER_ASSIGNMENT, [today()])), ids_posted(sandbox)
    assert list(posted.values()) == [(True, {f"new{number}": 1}) for number in range(3)], posted


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_the_lines_of_the_file_may_end_as_on_any_system(sandbox, set_desired_ids, line_end):
    set_desired_ids(f"new0,{EMAILS[0]}{line_end}new1,{EMAILS[1]}", header=f"customerId,email{line_end}")
    assert passed(land(PARTNER_ASSIGNMENT, [today()]))
    assert ids_posted(sandbox) == {"new0": 1, "new1": 1}


def test_an_unreadable_file_fails_the_day_and_nothing_is_requested(sandbox, monkeypatch, tmp_path):
    path = tmp_path / "customers.csv"
    monkeypatch.setenv("BINANCE_CUSTOMER_IDS", str(path))
    assert "BINANCE_CUSTOMER_IDS names cannot be read" in land(PARTNER_ASSIGNMENT, [today()]).failed[today()]

    for content in (b"a,\xff\xfe@x.com\n", b"a\0,a@x.com\n"):
        path.write_bytes(content)
        assert "Save the file as UTF-8" in land(PARTNER_ASSIGNMENT, [today()]).failed[today()]
    assert sandbox.requests == []


def test_only_today_can_be_assigned(sandbox, set_desired_ids):
    set_desired_ids(("new1", EMAILS[0]))
    yesterday = today() - timedelta(days=1)

    both_days = land(PARTNER_ASSIGNMENT, [yesterday, today()])
    trusting = land(PARTNER_ASSIGNMENT, [yesterday], trust_old=True)

    assert "so only today can be materialized" in both_days.failed[yesterday]
    assert "so only today can be materialized" in trusting.failed[yesterday]
    assert ids_posted(sandbox) == {"new1": 1}


# Unknown outcomes and killed processes


def test_an_id_is_posted_once_even_if_the_response_is_lost_after_the_change(sandbox, query, set_desired_ids):
    pairs = list(zip(IDS, EMAILS, strict=True))
    pairs[10] = (TAKEN_ID, EMAILS[10])
    pairs[20] = ("id21", EMAILS[20])
    set_desired_ids(*pairs)
    conflicts = {10, 20, 21}
    sandbox.faults.path = "/customization"
    faults = ("http_500", "http_502", "reset", "truncated", "html")
    sandbox.faults.mix(**dict.fromkeys(faults, 0.1))

    run = land(PARTNER_ASSIGNMENT, [today()])

    assert run.success, run.message
    valid = {pairs[number] for number in range(24) if number not in conflicts}
    assert valid <= set(sandbox.binance.customers.by_id.items())
    assert ids_posted(sandbox) == dict.fromkeys((customer_id for customer_id, _ in valid), 1)
    assert {request.fault for request in posts(sandbox)} == {*faults, None}
    assert all(f"line {number + 2} (" in findings(run) for number in conflicts)
    assert findings(run).count("line ") == 3 + 2  # each of the two lines with the same id names the other one
    assert Counter(query("select customer_id, outcome from binance.customization_assignment")) == Counter(
        [
            (customer_id, "refused" if number in conflicts else "assigned")
            for number, (customer_id, _) in enumerate(pairs)
        ]
    )
    assert query("select count(*) from affiliate.attempt") == [(0,)]
    sandbox.faults.clear()
    again = land(PARTNER_ASSIGNMENT, [today()])
    assert again.landed[today()].note == "24 desired: 21 already assigned, 0 newly assigned, 3 not assigned"
    assert sum(ids_posted(sandbox).values()) == 21


def test_a_post_without_effect_is_verified_and_posted_again(sandbox, query, set_desired_ids):
    set_desired_ids(("new1", EMAILS[0]))
    sandbox.binance.posts_to_fail = 3

    run = land(PARTNER_ASSIGNMENT, [today()])

    assert run.success and passed(run)
    assert [request.method for request in sandbox.requests][-7:] == ["POST", "GET"] * 3 + ["POST"]
    assert rows(query, "customer_id, outcome, message like '%%read back: the owner does not have the id'") == [
        ("new1", "failed", True)
    ] * 3 + [("new1", "assigned", None)]


def test_a_post_that_never_has_an_effect_is_reported_after_10_attempts(sandbox, query, set_desired_ids):
    set_desired_ids(("new1", EMAILS[0]), ("new2", EMAILS[1]))
    sandbox.binance.posts_to_fail = 10

    run = land(PARTNER_ASSIGNMENT, [today()])

    assert ids_posted(sandbox) == {"new1": 10, "new2": 1}
    assert not passed(run) and "line 2 (new1" in findings(run)


@pytest.mark.parametrize("posted", [True, False])
def test_a_kill_between_post_and_landing_loses_no_attempt_and_posts_nothing_twice(
    sandbox, query, set_desired_ids, database_url, monkeypatch, posted
):
    set_desired_ids(*zip(IDS[:5], EMAILS, strict=False))
    post, attempted = Client.post, []

    def killed(self, path, params, decode):
        attempted.append(params["customerId"])
        if len(attempted) == 3:
            if posted:
                post(self, path, params, decode)
            raise Killed
        return post(self, path, params, decode)

    monkeypatch.setattr(Client, "post", killed)
    with pytest.raises(Killed), landing(database_url) as outcomes:
        list(outcomes)
    assert query("select count(*) from affiliate.attempt") == [(3,)]
    assert query("select count(*) from affiliate.landing") == [(0,)]

    run = land(PARTNER_ASSIGNMENT, [today()])

    assert run.success and passed(run)
    assert ids_posted(sandbox) == dict.fromkeys(IDS[:5], 1)
    outcomes = Counter(query("select customer_id, outcome from binance.customization_assignment"))
    assert outcomes == Counter([(each, "assigned") for each in IDS[:5]] + ([] if posted else [("id02", "failed")]))
    assert query("select count(*) from affiliate.attempt") == [(0,)]


def test_a_kill_after_landing_appends_nothing_twice(sandbox, query, set_desired_ids, database_url, monkeypatch):
    set_desired_ids(("new1", EMAILS[0]))
    with landing(database_url) as outcomes:
        next(outcomes)
        assert isinstance(outcomes, Generator)
        outcomes.close()

    assert land(PARTNER_ASSIGNMENT, [today()]).landed[today()].changed is False
    assert query("select count(*) from binance.customization_assignment") == [(1,)]


def test_attempts_of_a_run_whose_key_is_revoked_land_with_the_next_run(sandbox, query, set_desired_ids):
    set_desired_ids(("new1", EMAILS[0]), ("new2", EMAILS[1]))
    assign = sandbox.binance.customers.assign

    def assign_and_revoke_the_key(customer_id, email):
        del sandbox.binance.keys[sandbox.binance.partner_key]
        return assign(customer_id, email)

    secret = sandbox.binance.keys[sandbox.binance.partner_key]
    sandbox.binance.customers.assign = assign_and_revoke_the_key
    run = land(PARTNER_ASSIGNMENT, [today()])
    assert "-2015" in run.failed[today()] and "2 attempts stored in affiliate.attempt" in run.failed[today()]
    assert query("select count(*) from affiliate.landing") == [(0,)]

    sandbox.binance.customers.assign = assign
    sandbox.binance.keys[sandbox.binance.partner_key] = secret
    run = land(PARTNER_ASSIGNMENT, [today()])

    assert run.success
    assert [row[:1] + row[3:] for row in rows(query)] == [
        ("new1", "assigned"),
        ("new2", "failed"),
        ("new2", "assigned"),
    ]
    assert ids_posted(sandbox) == {"new1": 1, "new2": 2}


def test_an_attempt_lands_even_if_midnight_passes_during_the_run(sandbox, query, set_desired_ids, database_url):
    set_desired_ids(("new1", EMAILS[0]))
    now = [int(datetime.now(UTC).timestamp() * 1000)]

    def later() -> int:
        now[0] += 20 * 3_600_000 if posts(sandbox) else 0
        return now[0]

    with landing(database_url, now=later) as outcomes:
        [outcome] = outcomes

    assert not isinstance(outcome, Failed)
    assert [row[0] for row in rows(query)] == ["new1"]


# The client's own id


def test_the_clients_id_is_assigned_once(sandbox, query, monkeypatch):
    monkeypatch.setenv("BINANCE_USER_CUSTOMER_ID", "mine")
    columns = "customer_id, api_agent_code, before_customer_id, outcome"
    code = sandbox.binance.api_agent_code

    for _ in range(2):
        run = land(CLIENT_ASSIGNMENT, [today()])
        assert run.success and passed(run), run.message

    monkeypatch.setenv("BINANCE_USER_CUSTOMER_ID", "mine2")
    sandbox.binance.posts_to_fail = 1
    assert land(CLIENT_ASSIGNMENT, [today()]).success
    assert sandbox.binance.customers.own_id == "mine2"
    assert rows(query, columns, "user_customization_assignment") == [
        ("mine", code, None, "assigned"),
        ("mine2", code, "mine", "failed"),
        ("mine2", code, "mine", "assigned"),
    ]
    assert ids_posted(sandbox) == {"mine": 1, "mine2": 2}


def test_an_id_of_another_client_of_the_agent_is_refused(sandbox, query, monkeypatch):
    monkeypatch.setenv("BINANCE_USER_CUSTOMER_ID", TAKEN_ID)

    run = materialize(CLIENT_ASSIGNMENT, [today()])

    assert not passed(run) and f"BINANCE_USER_CUSTOMER_ID ({TAKEN_ID}" in findings(run)
    assert rows(query, "outcome", "user_customization_assignment") == [("refused",)]


# The plan


def test_the_plan_shows_the_differences_and_posts_nothing(sandbox, set_desired_ids, database_url):
    set_desired_ids(
        (TAKEN_ID, OWNER), ("new1", EMAILS[0]), ("new2", sandbox.binance.customers.by_id["6zhfub"]), ("bad", "x")
    )

    text = plan(database_url, PARTNER_ASSIGNMENT, today())

    assert posts(sandbox) == []
    assert text.splitlines()[1:] == [
        "  line 3 (new1 for ja***@example.com): will be assigned; current: none",
        "  line 4 (new2 for zy***@126.com): will be assigned; current: 6zhfub",
        "  line 5 (bad for x***): its email is malformed. Nothing will be posted",
        "  already assigned: 1",
    ]


def test_the_plan_of_another_day_has_no_requests(sandbox, set_desired_ids, database_url):
    set_desired_ids(("new1", EMAILS[0]))

    assert plan(database_url, PARTNER_ASSIGNMENT, today() - timedelta(days=1)) == "0 requests"
    assert sandbox.requests == []
