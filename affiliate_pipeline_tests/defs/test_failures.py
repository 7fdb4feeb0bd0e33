"""A day that cannot land fails alone, with one message that names the cause and the action."""

import json
from dataclasses import replace
from datetime import date
from urllib.parse import urlsplit

import psycopg
import pytest

from affiliate_pipeline.domain.days import format_days
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.http import retry
from affiliate_pipeline.landing.day_writer import DayWriter
from affiliate_pipeline.sandbox.exchange import Response
from affiliate_pipeline.sandbox.faults import KINDS
from affiliate_pipeline_tests.conftest import Run, materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import (
    DAYS,
    ENDPOINT,
    KEY,
    at,
    indices_of_requests_touching,
    landed,
    rebates,
    refusals,
    sent,
    with_row_limit,
)

pytestmark = pytest.mark.usefixtures("verified_keys")

PER_DAY = 60


@pytest.fixture
def rows(sandbox):
    """The sandbox's rows by day."""
    rows = {day: rebates(day, PER_DAY) for day in DAYS}
    sandbox.binance.set_rebates(row for day in DAYS for row in rows[day])
    return rows


# Bad days


def test_bad_days_fail_alone_and_each_for_its_own_cause(sandbox, query, rows):
    unavailable, rejected = DAYS[2], DAYS[0]
    # The request for the whole range gets the failure that is set first.
    sandbox.faults.fail_day(unavailable, status=500, code=-1001)
    sandbox.faults.fail_day(rejected, status=400, code=-1100)

    run = materialize(KEY, DAYS)

    good = [day for day in DAYS if day not in (rejected, unavailable)]
    assert not run.success
    assert sorted(run.failed) == [rejected, unavailable]
    assert "HTTP 500, code -1001" in run.failed[unavailable] and "HTTP 400, code -1100" in run.failed[rejected]
    assert run.failed[unavailable] in run.message and run.failed[rejected] in run.message
    assert f"2 of 5 days failed ({format_days([rejected, unavailable])}), 3 landed" in run.message
    assert sorted(run.materialized) == good
    for day in good:
        assert landed(query, day) == sent(rows[day])
    assert query("select partition from affiliate.landing order by 1") == [(day,) for day in good]
    assert refusals(sandbox) == []
    assert failure_texts(run) == {day: run.failed[day] for day in (rejected, unavailable)}
    # Each day is requested with the whole range and alone; never again after that. Only the error 500 is retried.
    assert len(indices_of_requests_touching(sandbox, unavailable)) == 2 * retry.MAX_ATTEMPTS
    assert len(indices_of_requests_touching(sandbox, rejected)) == retry.MAX_ATTEMPTS + 1


def failure_texts(run: Run) -> dict[date, str]:
    """By day, what the events of its partition state about the failure."""
    found = {}
    for event in run.events:
        if event.is_asset_observation:
            recorded = event.asset_observation_data.asset_observation
            texts = [recorded.metadata[name].value for name in ("failure", "impact", "action")]
            found[date.fromisoformat(str(recorded.partition))] = " ".join(map(str, texts))
            assert recorded.description == f"Failed: {' '.join(map(str, texts))}"
    return found


def test_rows_outside_the_requested_window_do_not_land(sandbox, query, rows):
    sandbox.faults.transform_row = lambda row: row | {"time": row["time"] + 86_400_000}

    run = land(KEY, DAYS[:2])

    assert sorted(run.failed) == DAYS[:2]
    assert "returned rows outside" in run.message
    assert query("select * from binance.rebate_recent_record") == []


def test_a_response_that_is_not_a_list_of_rows_is_not_an_empty_day(sandbox, query, monkeypatch):
    bodies = dict(zip(DAYS, [b"{}", b"null", b"[1]", b'{"rows":[]}', b'"[]"'], strict=True))
    by_start = {at(day, "00:00:00.000"): body for day, body in bodies.items()}
    respond = sandbox.binance.respond

    def without_rows(call):
        response = respond(call)
        # The request for all days begins with the first one.
        return (
            replace(response, body=by_start[int(call.params["startTime"])]) if "startTime" in call.params else response
        )

    monkeypatch.setattr(sandbox.binance, "respond", without_rows)

    run = land(KEY, DAYS)

    assert sorted(run.failed) == DAYS
    assert query("select * from affiliate.landing") == []


# Temporary failures
def test_random_faults_do_not_change_what_lands(sandbox, query, rows, declare):
    # Many small pages, so that every kind of fault occurs.
    declare(strategy=with_row_limit(5))
    sandbox.faults.retry_after_s, sandbox.faults.slow_s = 0, 0.01
    frequent, rare = 0.05, 0.03
    sandbox.faults.mix(
        seed=1,
        http_500=frequent,
        http_502=frequent,
        reset=frequent,
        truncated=frequent,
        html=frequent,
        rate_limited=rare,
        slow=rare,
    )

    run = land(KEY, DAYS)

    assert run.success, run.message
    for day in DAYS:
        assert landed(query, day) == sent(rows[day])
    assert refusals(sandbox) == []
    assert {request.fault for request in sandbox.requests} == {None, *KINDS}


def test_an_unreachable_exchange_fails_every_day_and_leaves_landed_rows_unchanged(sandbox, query, rows, monkeypatch):
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.2)
    land(KEY, DAYS[:2])
    sandbox.stop()

    run = land(KEY, DAYS)

    assert sorted(run.failed) == DAYS
    assert run.landed == {}
    for day in DAYS:
        assert "did not respond for 0.2 s" in run.failed[day]
    assert f"({PER_DAY} rows) is unchanged" in run.failed[DAYS[1]]
    assert "Nothing of this day has landed" in run.failed[DAYS[2]]
    assert [landed(query, day) for day in DAYS[:2]] == [sent(rows[day]) for day in DAYS[:2]]


def test_if_the_exchange_goes_down_during_a_run_each_landed_day_is_reported(sandbox, query, rows, declare, monkeypatch):
    # The rows fill several pages, the first of which arrives before the failure.
    declare(strategy=with_row_limit(PER_DAY + 40))
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.2)
    first_failing = rows[DAYS[3]][0]["time"]

    def transform(row):
        if row["time"] == first_failing:
            sandbox.faults.mix(reset=1.0)
        return row

    sandbox.faults.transform_row = transform
    run = land(KEY, DAYS)

    assert not run.success
    assert sorted({*run.landed, *run.failed}) == DAYS
    assert not {*run.landed} & {*run.failed}
    assert {DAYS[3], DAYS[4]} <= {*run.failed}
    assert query("select partition from affiliate.landing order by 1") == [(day,) for day in sorted(run.landed)]
    for day in run.landed:
        assert landed(query, day) == sent(rows[day])


def test_a_ban_ends_the_run_at_once_and_is_respected_by_the_next(sandbox, rows):
    body = json.dumps({"code": -1003, "msg": "Way too much request weight used; IP banned."}).encode()
    sandbox.faults.next_responses.append((418, {"Retry-After": "7200"}, body))

    first, second = land(KEY, DAYS), land(KEY, DAYS)

    assert sorted(first.failed) == sorted(second.failed) == DAYS
    assert "for 2 h (" in first.message
    assert "allows no request for another" in second.message
    assert len(sandbox.requests) == 1


# Credentials
@pytest.mark.parametrize(
    ("variable", "value", "reasons"),
    [
        (
            "BINANCE_PARTNER_API_KEY",
            "a-wrong-key",
            [
                "the API key (BINANCE_PARTNER_API_KEY) is wrong",
                "this machine's IP address is not on the key's list, or the key lacks the permission",
            ],
        ),
        ("BINANCE_PARTNER_API_SECRET", "a-wrong-secret", ["The secret does not belong to the API key"]),
    ],
)
def test_a_wrong_credential_fails_at_the_first_request_for_records(sandbox, monkeypatch, variable, value, reasons):
    monkeypatch.setenv(variable, value)

    run = land(KEY, DAYS)

    assert sorted(run.failed) == DAYS
    [failure] = {*run.failed.values()}
    assert [failure.count(reason) for reason in reasons] == [1] * len(reasons)
    # A key without the permission to read its account may still be the right one, so records are requested once.
    assert len(sandbox.requests) <= 2 and all(request.code for request in sandbox.requests)
    assert value not in run.message


# Settings


def test_all_missing_and_malformed_settings_are_reported_in_one_line_without_their_values(sandbox, monkeypatch):
    monkeypatch.delenv("BINANCE_PARTNER_API_KEY")
    monkeypatch.setenv("BINANCE_PARTNER_API_SECRET", "")
    monkeypatch.setenv("BINANCE_WEIGHT_PER_MINUTE", "many")
    monkeypatch.setenv("BINANCE_BASE_URL", "http://127.0.0.1/?key=so-secret")

    run = materialize(KEY, DAYS[:2])

    assert sorted(run.failed) == DAYS[:2]
    [line] = [line for line in run.message.splitlines() if "BINANCE_PARTNER_API_KEY is not set" in line]
    assert "BINANCE_PARTNER_API_SECRET is not set" in line
    assert "BINANCE_WEIGHT_PER_MINUTE" in line and "BINANCE_BASE_URL" in line
    assert "so-secret" not in run.message
    assert sandbox.requests == []


def test_each_malformed_setting_is_reported_without_its_value(sandbox, monkeypatch):
    cases = [
        ("BINANCE_BASE_URL", "ftp://127.0.0.1"),
        ("BINANCE_BASE_URL", "api.binance.com"),
        ("BINANCE_BASE_URL", "http://[127.0.0.1"),
        ("BINANCE_BASE_URL", "http://127.0.0.1/?key=so-secret"),
        ("BINANCE_BASE_URL", "http://127.0.0.1:port"),
        ("BINANCE_WEIGHT_PER_MINUTE", "0"),
        ("AFFILIATE_RATE_SCALE", "-1"),
        ("BINANCE_PARTNER_API_SECRET", "/nowhere/so-secret.pem"),
        ("BINANCE_PARTNER_API_KEY", "so-secret\nkey"),
    ]
    found = {}
    for variable, value in cases:
        with monkeypatch.context() as patch, pytest.raises(SettingsError) as raised:
            patch.setenv(variable, value)
            ENDPOINT.exchange.connect(ENDPOINT, SharedState(), configured().variables)
        text = f"{raised.value} {raised.value.problem}"
        found[variable, value] = variable in text and "so-secret" not in text
    assert found == dict.fromkeys(cases, True)


def test_a_malformed_database_url_fails_every_day_without_showing_its_value(sandbox, monkeypatch):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", "mysql://user:so-secret@127.0.0.1/data")

    run = materialize(KEY, DAYS[:2])

    assert sorted(run.failed) == DAYS[:2]
    assert "AFFILIATE_DATABASE_URL" in run.message
    assert "so-secret" not in run.message
    assert sandbox.requests == []


def test_the_rate_can_be_scaled_up_only_for_a_private_address(sandbox, monkeypatch):
    monkeypatch.setenv("AFFILIATE_RATE_SCALE", "2")
    ENDPOINT.exchange.connect(ENDPOINT, SharedState(), configured().variables).client.close()
    monkeypatch.setenv("BINANCE_BASE_URL", "https://api.example.invalid")
    with pytest.raises(SettingsError, match="AFFILIATE_RATE_SCALE"):
        ENDPOINT.exchange.connect(ENDPOINT, SharedState(), configured().variables)


# The database


def test_an_unreachable_database_fails_every_day(sandbox, monkeypatch):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", "postgresql://user:so-secret@127.0.0.1:1/data")

    run = materialize(KEY, DAYS[:2])

    assert sorted(run.failed) == DAYS[:2]
    assert "the database cannot be used" in run.message
    assert "that AFFILIATE_DATABASE_URL is right" in run.message
    assert "Rows that had landed are unchanged" in run.message
    assert "so-secret" not in run.message
    assert sandbox.requests == []


def test_a_database_that_refuses_the_login_fails_every_day_without_revealing_the_password(
    sandbox, monkeypatch, database_url
):
    url = urlsplit(database_url)
    monkeypatch.setenv(
        "AFFILIATE_DATABASE_URL",
        url._replace(netloc=f"no_such_user:so-secret@{url.netloc.rpartition('@')[2]}").geturl(),
    )

    run = materialize(KEY, DAYS[:2])

    assert sorted(run.failed) == DAYS[:2]
    assert "the database cannot be used" in run.message
    assert "so-secret" not in run.message


def test_a_full_disk_of_the_database_is_reported_and_landed_rows_are_preserved(sandbox, query, rows):
    land(KEY, DAYS[:2])
    query(
        "create function full_disk() returns trigger language plpgsql as "
        "$$ begin raise exception 'could not extend file: No space left on device' using errcode = '53100'; end $$"
    )
    query("create trigger full_disk before insert on affiliate.landing execute function full_disk()")

    run = land(KEY, DAYS)

    assert set(run.failed) >= set(DAYS[2:])
    assert "the disk of the database is full" in run.failed[DAYS[-1]]
    for day in DAYS[:2]:
        assert landed(query, day) == sent(rows[day])


def test_a_full_temporary_folder_is_reported_and_landed_rows_are_preserved(sandbox, query, rows, monkeypatch):
    land(KEY, DAYS[:2])
    monkeypatch.setattr(
        "affiliate_pipeline.exchanges.spool.SpooledTemporaryFile", lambda max_size: open("/dev/full", "r+b")
    )

    run = land(KEY, DAYS)

    assert sorted(run.failed) == DAYS
    for day in DAYS:
        assert "the temporary folder cannot be written to (No space left on device)" in run.failed[day]
    for day in DAYS[:2]:
        assert landed(query, day) == sent(rows[day])


def end_all_sessions(database_url) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where datname = current_database() and pid <> pg_backend_pid()"
        )


def test_if_the_database_connection_is_lost_during_a_run_each_materialized_day_has_landed(
    sandbox, query, rows, declare, database_url
):
    # The rows fill several pages, the first of which arrives before the failure.
    declare(strategy=with_row_limit(PER_DAY + 40))
    first_failing = rows[DAYS[3]][0]["time"]

    def transform(row):
        if row["time"] == first_failing:
            end_all_sessions(database_url)
        return row

    sandbox.faults.transform_row = transform
    run = materialize(KEY, DAYS)

    assert not run.success
    assert sorted({*run.materialized, *run.failed}) == DAYS
    assert {DAYS[3], DAYS[4]} <= {*run.failed}
    assert "the database cannot be used" in run.message
    for day in run.materialized:
        assert landed(query, day) == sent(rows[day])


def test_a_lost_database_is_reported_even_if_the_run_fails_for_another_cause(sandbox, monkeypatch, database_url):
    def refuse(call):
        end_all_sessions(database_url)
        return Response(401, b'{"code":-2015,"msg":"Invalid API-key, IP, or permissions for action."}')

    monkeypatch.setattr(sandbox.binance, "respond", refuse)
    run = land(KEY, DAYS)

    assert sorted(run.failed) == DAYS
    for day in DAYS:
        assert "the database cannot be used" in run.failed[day]
        assert "Nothing of this day has landed" in run.failed[day]


def test_a_committed_day_is_not_reported_as_failed(sandbox, query, rows, monkeypatch, database_url):
    write = DayWriter.write

    def write_and_disconnect(*args, **kwargs):
        changed = write(*args, **kwargs)
        end_all_sessions(database_url)
        return changed

    monkeypatch.setattr(DayWriter, "write", write_and_disconnect)
    run = land(KEY, DAYS)

    assert run.landed
    assert [(day,) for day in run.landed] == query("select partition from affiliate.landing")


def test_the_next_run_lands_the_failed_day_and_a_later_failure_leaves_its_rows_unchanged(sandbox, query, rows):
    bad = DAYS[1]
    sandbox.faults.fail_day(bad, status=400, code=-1100)
    land(KEY, DAYS)
    # Once with the whole range and once alone.
    assert len(indices_of_requests_touching(sandbox, bad)) == 2

    sandbox.faults.clear()
    run = land(KEY, DAYS)

    assert run.success
    assert {day: outcome.changed for day, outcome in run.landed.items()} == {day: day == bad for day in DAYS}
    assert landed(query, bad) == sent(rows[bad])

    sandbox.faults.fail_day(bad, status=400, code=-1100)
    run = land(KEY, DAYS[:2])

    assert list(run.failed) == [bad]
    assert "What landed at" in run.failed[bad] and f"({PER_DAY} rows) is unchanged" in run.failed[bad]
    assert landed(query, bad) == sent(rows[bad])
