"""Customer ids given out: only what differs is posted, once, and every attempt lands."""

import logging
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest

from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.http.client import Client
from affiliate_pipeline.landing.pipeline import Failed, connected, land_days, plan_of
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline_tests.conftest import materialize

PARTNERS, CLIENTS = "binance/customization_assignment", "binance/user_customization_assignment"
ENDPOINT = {endpoint.key: endpoint for endpoint in ENDPOINTS}
# Not the sandbox's own, so that they have no id.
EMAILS = [f"jane.doe{number}@example.com" for number in range(50)]
IDS = [f"id{number:02d}" for number in range(50)]
HELD, HOLDER = "hsp3wi", "xq.000@yahoo.co.jp"


def today() -> date:
    return datetime.now(UTC).date()


@pytest.fixture
def wanted(sandbox, monkeypatch, tmp_path, caplog):
    """Writes the file of what is wanted; at the end no full email was told to anybody."""
    path = tmp_path / "customers.csv"
    monkeypatch.setenv("BINANCE_CUSTOMER_IDS", str(path))
    caplog.set_level(logging.DEBUG)

    def write(*pairs: tuple[str, str] | str, header: str = "customerId,email\n") -> None:
        path.write_text(header + "".join((pair if isinstance(pair, str) else ",".join(pair)) + "\n" for pair in pairs))

    yield write
    assert not [email for email in (*EMAILS, HOLDER) if email in caplog.text]


def posts(sandbox) -> list:
    return [request for request in sandbox.requests if request.method == "POST"]


def ids_posted(sandbox) -> Counter:
    return Counter(request.params["customerId"] for request in posts(sandbox))


def rows(query, columns="customer_id, email, before_customer_id, outcome", table="customization_assignment"):
    return query(f"select {columns} from binance.{table} order by attempted_at, customer_id")


def check(run):
    [told] = [e.asset_check_evaluation_data for e in run.events if e.event_type_value == "ASSET_CHECK_EVALUATION"]
    return told


def plan(database_url, key) -> str:
    with Store(database_url) as store, connected(ENDPOINT[key], store, configured().variables) as session:
        return str(plan_of(ENDPOINT[key], [today()], session=session, store=store))


# What is posted


def test_only_what_differs_is_posted(sandbox, query, wanted):
    customers = sandbox.binance.customers
    wanted((HELD, HOLDER.upper()), ("new1", EMAILS[0]), ("6zhfu2", customers.by_id["6zhfub"]))

    run = materialize(PARTNERS, [today()])

    assert run.success and check(run).passed, run.message
    assert ids_posted(sandbox) == {"new1": 1, "6zhfu2": 1}
    assert rows(query) == [
        ("new1", EMAILS[0], None, "assigned"),
        ("6zhfu2", customers.by_id["6zhfu2"], "6zhfub", "assigned"),
    ]
    assert "6zhfub" not in customers.by_id and customers.by_id["new1"] == EMAILS[0]
    assert run.materialized[today()]["note"] == "3 desired: 1 were in place, 2 have been assigned, 0 are not"
    [(attempted_at, partition)] = query(
        "select max(attempted_at), max(partition_date) from binance.customization_assignment"
    )
    assert abs(datetime.now(UTC) - attempted_at) < timedelta(minutes=1) and partition == today()


def test_landing_again_with_nothing_to_do_leaves_the_days_rows(sandbox, query, wanted):
    versions = "select xmin::text, ctid::text, run_id from binance.customization_assignment order by ctid"
    wanted(("new1", EMAILS[0]), ("new2", EMAILS[1]))
    materialize(PARTNERS, [today()])
    before, made = query(versions), len(posts(sandbox))

    run = materialize(PARTNERS, [today()])

    assert run.success and run.materialized[today()]["changed"] is False
    assert (query(versions), len(posts(sandbox))) == (before, made) and made == 2
    assert query("select rows from affiliate.landing") == [(2,)]


def test_attempts_of_a_later_run_are_appended(sandbox, query, wanted):
    wanted(("new1", EMAILS[0]))
    materialize(PARTNERS, [today()])
    first = query("select ctid::text, run_id from binance.customization_assignment")
    wanted(("new2", EMAILS[0]))

    run = materialize(PARTNERS, [today()])

    assert run.success and run.materialized[today()]["dagster/partition_row_count"] == 2
    assert [row[:4] for row in rows(query)] == [
        ("new1", EMAILS[0], None, "assigned"),
        ("new2", EMAILS[0], "new1", "assigned"),
    ]
    assert query("select ctid::text, run_id from binance.customization_assignment")[:1] == first
    assert len(query("select distinct run_id from binance.customization_assignment")) == 2
    assert query("select rows from affiliate.landing") == [(2,)]
    # The ledger's hash is that of all rows: nothing to do is nothing written.
    assert materialize(PARTNERS, [today()]).materialized[today()]["changed"] is False


def test_nothing_wanted_lands_no_rows_and_says_so(sandbox, query, database_url, caplog):
    for key, variable in ((PARTNERS, "BINANCE_CUSTOMER_IDS"), (CLIENTS, "BINANCE_USER_CUSTOMER_ID")):
        run = materialize(key, [today()])

        assert run.success, run.message
        assert run.materialized[today()]["dagster/partition_row_count"] == 0
        assert f"No customer id is desired: {variable} is not set" in run.materialized[today()]["note"]
        assert f"No customer id is desired: {variable} is not set" in plan(database_url, key)
        assert f"No customer id is desired: {variable}" in caplog.text
    assert sandbox.requests == []


def test_an_id_that_becomes_free_in_the_same_file_is_given_on(sandbox, query, wanted):
    customers = sandbox.binance.customers
    first, second, third = list(customers.by_id.items())[:3]
    wanted((second[0], first[1]), (third[0], second[1]), ("new3", third[1]))

    run = materialize(PARTNERS, [today()])

    assert run.success and check(run).passed
    assert ids_posted(sandbox) == {second[0]: 1, third[0]: 1, "new3": 1}
    assert [customers.by_id[each] for each in (second[0], third[0], "new3")] == [first[1], second[1], third[1]]


def test_a_swap_cannot_be_and_is_told(sandbox, wanted):
    (one, ones), (two, twos) = list(sandbox.binance.customers.by_id.items())[:2]
    wanted((two, ones), (one, twos))

    run = materialize(PARTNERS, [today()])

    assert posts(sandbox) == []
    assert "line 2" in check(run).description and "line 3" in check(run).description


def test_a_masked_list_is_seen_through(sandbox, query, wanted):
    sandbox.faults.transform_row = lambda row: row | {"email": row["email"][:2] + "***@x.com"}
    wanted((HELD, HOLDER), ("new1", EMAILS[0]))

    run = materialize(PARTNERS, [today()])

    assert run.success and check(run).passed
    assert ids_posted(sandbox) == {"new1": 1}


# What cannot be


def test_what_cannot_be_is_named_by_line_and_the_rest_goes_on(sandbox, query, wanted, caplog):
    wanted(
        ("new1", EMAILS[1]),
        ("twice", EMAILS[2]),
        ("", ""),
        ("twice", EMAILS[3]),
        ("new2", EMAILS[4]),
        ("new3", EMAILS[4].upper()),
        ("new4", "jane.doe at example.com"),
        "new5",
        ("", EMAILS[5]),
        (HELD, EMAILS[6]),
        ("new6", EMAILS[7]),
    )

    run = materialize(PARTNERS, [today()])

    assert run.success, run.message
    assert ids_posted(sandbox) == {"new1": 1, "new6": 1}
    description = check(run).description
    assert not check(run).passed
    for named in (
        "line 3 (twice for ja***@example.com): its customerId is on line 5 too",
        "line 5 (twice for ja***@example.com): its customerId is on line 3 too",
        "line 6 (new2 for ja***@example.com): its email is on line 7 too",
        "line 7 (new3 for JA***@EXAMPLE.COM): its email is on line 6 too",
        "line 8 (new4 for ja***): its email is malformed",
        "line 9 (new5 for ***): it does not have the two fields customerId,email",
        "line 10 ( for ja***@example.com): it has no customerId",
        "line 11 (hsp3wi for ja***@example.com): the customerId belongs to xq***@yahoo.co.jp",
    ):
        assert named in description and named in caplog.text
    assert Counter(outcome for (outcome,) in rows(query, "outcome")) == {"assigned": 2, "refused": 8}
    [(message, email)] = query(
        "select message, email from binance.customization_assignment where customer_id = %s", HELD
    )
    assert message == "line 11: the customerId belongs to xq***@yahoo.co.jp. Nothing was posted" and email == EMAILS[6]
    assert sandbox.binance.customers.by_id[HELD] == HOLDER


def test_what_the_exchange_refuses_is_told_and_the_rest_goes_on(sandbox, query, wanted):
    sandbox.faults.transform_row = lambda row: {"customerId": row["customerId"] + "?", "email": row["email"]}
    wanted((HELD, EMAILS[0]), ("new1", EMAILS[1]))

    run = materialize(PARTNERS, [today()])

    assert run.success and "line 2 (hsp3wi for ja***@example.com)" in check(run).description
    assert "-1130" in check(run).description
    assert rows(query) == [(HELD, EMAILS[0], None, "refused"), ("new1", EMAILS[1], None, "assigned")]
    assert ids_posted(sandbox) == {HELD: 1, "new1": 1}


@pytest.mark.parametrize("header", ["", "\ufeffcustomerId,email\n", "CustomerID , Email\n"])
def test_the_file_may_have_a_header_or_none(sandbox, wanted, header):
    wanted(("new1", EMAILS[0]), header=header)

    assert check(materialize(PARTNERS, [today()])).passed
    assert ids_posted(sandbox) == {"new1": 1}


def test_a_file_that_cannot_be_read_is_named(sandbox, monkeypatch, tmp_path):
    monkeypatch.setenv("BINANCE_CUSTOMER_IDS", str(tmp_path / "nowhere.csv"))
    assert "BINANCE_CUSTOMER_IDS names cannot be read" in materialize(PARTNERS, [today()]).failed[today()]

    for content in (b"a,\xff\xfe@x.com\n", b"a\0,a@x.com\n"):
        (tmp_path / "nowhere.csv").write_bytes(content)
        assert "Save the file as UTF-8" in materialize(PARTNERS, [today()]).failed[today()]
    assert sandbox.requests == []


def test_only_today_can_be_assigned(sandbox, wanted):
    wanted(("new1", EMAILS[0]))
    yesterday = today() - timedelta(days=1)

    for options in ({}, {"trust_old": True}):
        run = materialize(PARTNERS, [yesterday, today()] if not options else [yesterday], **options)

        assert "no day but today" in run.failed[yesterday]
    assert ids_posted(sandbox) == {"new1": 1}


# Outcomes that are not known, and kills


@pytest.mark.parametrize("fault", ["http_500", "http_502", "reset", "truncated", "html"])
def test_half_of_the_posts_failing_after_they_were_done_end_right(sandbox, query, wanted, fault):
    pairs = list(zip(IDS, EMAILS, strict=True))
    pairs[10] = (HELD, EMAILS[10])
    pairs[20] = ("id21", EMAILS[20])
    wanted(*pairs)
    conflicts = {10, 20, 21}
    sandbox.faults.path = "/customization"
    sandbox.faults.mix(**{fault: 0.5})

    run = materialize(PARTNERS, [today()])

    assert run.success, run.message
    good = {pairs[number] for number in range(50) if number not in conflicts}
    assert good <= set(sandbox.binance.customers.by_id.items())
    assert ids_posted(sandbox) == dict.fromkeys((customer_id for customer_id, _ in good), 1)
    assert any(request.fault for request in posts(sandbox))
    assert all(f"line {number + 2} (" in check(run).description for number in conflicts)
    assert check(run).description.count("line ") == 3 + 2  # each of the twins names the other
    assert Counter(query("select customer_id, outcome from binance.customization_assignment")) == Counter(
        [
            (customer_id, "refused" if number in conflicts else "assigned")
            for number, (customer_id, _) in enumerate(pairs)
        ]
    )
    assert query("select count(*) from affiliate.attempt") == [(0,)]
    sandbox.faults.clear()
    again = materialize(PARTNERS, [today()])
    assert again.materialized[today()]["note"] == "50 desired: 47 were in place, 0 have been assigned, 3 are not"
    assert sum(ids_posted(sandbox).values()) == 47


def test_a_post_that_was_not_done_is_posted_again_after_looking(sandbox, query, wanted):
    wanted(("new1", EMAILS[0]))
    sandbox.binance.failing_posts = 3

    run = materialize(PARTNERS, [today()])

    assert run.success and check(run).passed
    assert [request.method for request in sandbox.requests][-7:] == ["POST", "GET"] * 3 + ["POST"]
    assert rows(query, "customer_id, outcome, message like '%%read back: it was not done'") == [
        ("new1", "failed", True)
    ] * 3 + [("new1", "assigned", None)]


def test_a_post_that_is_never_done_ends_and_is_told(sandbox, query, wanted):
    wanted(("new1", EMAILS[0]), ("new2", EMAILS[1]))
    sandbox.binance.failing_posts = 10

    run = materialize(PARTNERS, [today()])

    assert ids_posted(sandbox) == {"new1": 10, "new2": 1}
    assert not check(run).passed and "line 2 (new1" in check(run).description


class Killed(BaseException):
    """What nothing handles."""


def land(database_url, key=PARTNERS) -> list:
    with Store(database_url) as store, connected(ENDPOINT[key], store, configured().variables) as session:
        return list(land_days(ENDPOINT[key], [today()], session=session, store=store, run_id="a run"))


@pytest.mark.parametrize("done", [True, False])
def test_a_kill_between_post_and_landing_loses_no_attempt_and_posts_nothing_twice(
    sandbox, query, wanted, database_url, monkeypatch, done
):
    wanted(*zip(IDS[:5], EMAILS, strict=False))
    post, made = Client.post, []

    def killed(self, path, params, decode):
        made.append(params["customerId"])
        if len(made) == 3:
            if done:
                post(self, path, params, decode)
            raise Killed
        return post(self, path, params, decode)

    monkeypatch.setattr(Client, "post", killed)
    with pytest.raises(Killed):
        land(database_url)
    assert query("select count(*) from affiliate.attempt") == [(3,)]
    assert query("select count(*) from affiliate.landing") == [(0,)]

    run = materialize(PARTNERS, [today()])

    assert run.success and check(run).passed
    assert ids_posted(sandbox) == dict.fromkeys(IDS[:5], 1)
    outcomes = Counter(query("select customer_id, outcome from binance.customization_assignment"))
    assert outcomes == Counter([(each, "assigned") for each in IDS[:5]] + ([] if done else [("id02", "failed")]))
    assert query("select count(*) from affiliate.attempt") == [(0,)]


def test_a_kill_after_landing_appends_nothing_twice(sandbox, query, wanted, database_url, monkeypatch):
    wanted(("new1", EMAILS[0]))
    with Store(database_url) as store, connected(ENDPOINT[PARTNERS], store, configured().variables) as session:
        outcomes = land_days(ENDPOINT[PARTNERS], [today()], session=session, store=store, run_id="a run")
        next(outcomes)
        outcomes.close()

    assert materialize(PARTNERS, [today()]).materialized[today()]["changed"] is False
    assert query("select count(*) from binance.customization_assignment") == [(1,)]


def test_attempts_of_a_run_that_the_exchange_ended_land_with_the_next(sandbox, query, wanted):
    wanted(("new1", EMAILS[0]), ("new2", EMAILS[1]))
    take = sandbox.binance.customers.assign

    def last(customer_id, email):
        del sandbox.binance.accounts[sandbox.binance.partner_key]
        return take(customer_id, email)

    secret = sandbox.binance.accounts[sandbox.binance.partner_key]
    sandbox.binance.customers.assign = last
    run = materialize(PARTNERS, [today()])
    assert "-2015" in run.failed[today()] and "2 attempts are kept in affiliate.attempt" in run.failed[today()]
    assert query("select count(*) from affiliate.landing") == [(0,)]

    sandbox.binance.customers.assign = take
    sandbox.binance.accounts[sandbox.binance.partner_key] = secret
    run = materialize(PARTNERS, [today()])

    assert run.success
    assert [row[:1] + row[3:] for row in rows(query)] == [
        ("new1", "assigned"),
        ("new2", "failed"),
        ("new2", "assigned"),
    ]
    assert ids_posted(sandbox) == {"new1": 1, "new2": 2}


def test_an_attempt_lands_though_midnight_passes(sandbox, query, wanted, database_url):
    wanted(("new1", EMAILS[0]))
    now = [int(datetime.now(UTC).timestamp() * 1000)]

    def later() -> int:
        now[0] += 20 * 3_600_000 if posts(sandbox) else 0
        return now[0]

    with Store(database_url) as store, connected(ENDPOINT[PARTNERS], store, configured().variables) as session:
        [outcome] = land_days(ENDPOINT[PARTNERS], [today()], session=session, store=store, run_id="a run", now=later)

    assert not isinstance(outcome, Failed)
    assert [row[0] for row in rows(query)] == ["new1"]


# The client's own id


def test_the_client_gets_its_id_once(sandbox, query, monkeypatch):
    monkeypatch.setenv("BINANCE_USER_CUSTOMER_ID", "mine")
    columns = "customer_id, api_agent_code, before_customer_id, outcome"
    code = sandbox.binance.api_agent_code

    for _ in range(2):
        run = materialize(CLIENTS, [today()])
        assert run.success and check(run).passed, run.message

    monkeypatch.setenv("BINANCE_USER_CUSTOMER_ID", "mine2")
    sandbox.binance.failing_posts = 1
    assert materialize(CLIENTS, [today()]).success
    assert sandbox.binance.customers.own_id == "mine2"
    assert rows(query, columns, "user_customization_assignment") == [
        ("mine", code, None, "assigned"),
        ("mine2", code, "mine", "failed"),
        ("mine2", code, "mine", "assigned"),
    ]
    assert ids_posted(sandbox) == {"mine": 1, "mine2": 2}


def test_an_id_of_another_client_of_the_agent_is_refused(sandbox, query, monkeypatch):
    monkeypatch.setenv("BINANCE_USER_CUSTOMER_ID", HELD)

    run = materialize(CLIENTS, [today()])

    assert not check(run).passed and f"BINANCE_USER_CUSTOMER_ID ({HELD}" in check(run).description
    assert rows(query, "outcome", "user_customization_assignment") == [("refused",)]


# The plan


def test_the_plan_shows_the_differences_and_posts_nothing(sandbox, wanted, database_url):
    wanted((HELD, HOLDER), ("new1", EMAILS[0]), ("6zhfu2", sandbox.binance.customers.by_id["6zhfub"]), ("bad", "x"))

    text = plan(database_url, PARTNERS)

    assert posts(sandbox) == []
    assert text.splitlines()[1:] == [
        "  line 3 (new1 for ja***@example.com): to be assigned, now none",
        "  line 4 (6zhfu2 for zy***@126.com): to be assigned, now 6zhfub",
        "  line 5 (bad for x***): its email is malformed. Nothing will be posted",
        "  1 are in place",
    ]


def test_the_plan_of_another_day_is_nothing(sandbox, wanted, database_url):
    wanted(("new1", EMAILS[0]))
    yesterday = today() - timedelta(days=1)

    with Store(database_url) as store, connected(ENDPOINT[PARTNERS], store, configured().variables) as session:
        assert str(plan_of(ENDPOINT[PARTNERS], [yesterday], session=session, store=store)) == "0 requests"
    assert sandbox.requests == []
