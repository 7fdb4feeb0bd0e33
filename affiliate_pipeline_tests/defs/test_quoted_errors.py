"""The reasons of failed days, the rows of action logs and the findings of `check` quote the exchange's error text."""

import json

import pytest

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.http.retry import MAX_ATTEMPTS
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.kickbacks import HISTORY, OLD, PATH, REQUEST, exports, kickbacks, posts
from affiliate_pipeline_tests.defs.rebates import KEY, SETTLED
from affiliate_pipeline_tests.defs.test_assignments import EMAILS, PARTNER_ASSIGNMENT, today

pytestmark = pytest.mark.usefixtures("verified_keys")

CUSTOMIZATION, INVITED = "binance/customization", "lbank/invite_user_list"
LOCATION = {"code": 0, "msg": "Service unavailable from a restricted location according to 'b. Eligibility'."}
PAGE = "<html><title>Maintenance</title><body>We are back at 10:00 of jane.doe@example.com</body></html>"
PAGE_TEXT = "Maintenance We are back at 10:00"


def add_response(sandbox, status: int, body: object, times: int = 1, **headers: str) -> None:
    """Respond to the next `times` requests with this response."""
    text = body if isinstance(body, str) else json.dumps(body)
    sandbox.faults.next_responses.extend([(status, headers, text.encode())] * times)


def test_the_reason_of_a_failed_day_quotes_binance(sandbox):
    for status, body, requests, quoted in (
        (400, {"code": -1121, "msg": "Invalid symbol."}, 1, "code -1121: Invalid symbol"),
        (200, {"success": False, "code": "000002", "message": "illegal parameter"}, 1, "code 2: illegal parameter"),
        (451, LOCATION, 1, "restricted location"),
        (404, PAGE, MAX_ATTEMPTS, PAGE_TEXT),
        (503, PAGE, MAX_ATTEMPTS, PAGE_TEXT),
        (200, {"msg": "系统维护"}, MAX_ATTEMPTS, "系统维护"),
        (200, {"rows": "none"}, 1, '{"rows": "none"}'),
    ):
        sandbox.requests.clear()
        sandbox.faults.next_responses.clear()
        add_response(sandbox, status, body, 10 * MAX_ATTEMPTS)

        reason = land(KEY, [SETTLED]).failed[SETTLED]

        assert quoted in reason and len(sandbox.requests) == requests, (status, body)
        assert status != 451 or "BINANCE_PARTNER_API_KEY" not in reason


def test_the_reason_of_a_failed_day_quotes_lbank(both_exchanges):
    for body, requests, quoted in (
        (
            {"result": "false", "error_code": 10007, "msg": "timestamp expired"},
            1,
            "error_code 10007: timestamp expired",
        ),
        ({"code": 1, "message": "系统繁忙"}, MAX_ATTEMPTS, "code 1: 系统繁忙"),
        ({"list": []}, MAX_ATTEMPTS, '{"list": []}'),
    ):
        both_exchanges.requests.clear()
        both_exchanges.faults.next_responses.clear()
        add_response(both_exchanges, 200, body, 10 * MAX_ATTEMPTS)

        reason = land(INVITED, [SETTLED]).failed[SETTLED]

        assert quoted in reason and "signature is wrong" not in reason, body
        assert len(both_exchanges.requests) == requests, body


def test_the_reason_of_a_failed_snapshot_quotes_the_exchange(sandbox):
    add_response(sandbox, 422, {"errors": [{"code": "E7", "detail": "Bad customer."}]})

    run = land(CUSTOMIZATION, [today()])

    assert "HTTP 422 (Unprocessable Entity): E7; Bad customer" in run.failed[today()]


def test_the_row_of_an_assignment_quotes_the_exchange(sandbox, query, monkeypatch, tmp_path):
    path = tmp_path / "customers.csv"
    path.write_text(f"customerId,email\nnew1,{EMAILS[0]}\n")
    monkeypatch.setenv("BINANCE_CUSTOMER_IDS", str(path))
    respond = sandbox.binance.respond

    def refuse(call):
        if call.method == "POST":
            add_response(sandbox, 409, {"error": {"code": -9001, "message": "The id is reserved."}})
        return respond(call)

    monkeypatch.setattr(sandbox.binance, "respond", refuse)
    land(PARTNER_ASSIGNMENT, [today()])

    assert query("select outcome, message from binance.customization_assignment") == [
        ("refused", "Binance returned HTTP 409, code -9001: The id is reserved")
    ]


@pytest.mark.parametrize("status", [200, 202, 403, 503])
def test_a_web_page_does_not_count_as_the_acceptance_of_an_export_request(sandbox, query, status):
    sandbox.faults.path = PATH
    add_response(sandbox, status, PAGE)

    land(REQUEST, OLD)

    [(note,)] = exports(query, "coalesce(msg, note)")
    assert len(posts(sandbox)) == 1 and PAGE_TEXT in note and "jane.doe" not in note


def test_a_refused_export_request_quotes_the_exchange(sandbox):
    sandbox.binance.kickbacks.set(kickbacks(OLD[0], 3))
    sandbox.faults.path = PATH
    add_response(sandbox, 400, {"message": "Too many exports this month.", "errorCode": "-18007"})

    run = land(REQUEST, OLD)

    assert "code -18007: Too many exports this month" in run.failed[OLD[0]]
    assert HISTORY not in run.message


@pytest.mark.parametrize(
    ("status", "body", "headers", "quoted", "action"),
    [
        (451, LOCATION, {}, "restricted location", "Check the network"),
        (
            302,
            "<html>Moved</html>",
            {"Location": "https://sso.corp.example/in?to=x"},
            "a redirect to sso.corp.example/in",
            "whether a proxy or a login page intercepts requests",
        ),
        (403, PAGE, {}, PAGE_TEXT, "Check the network"),
        (401, {"code": -2015, "msg": "API key expired"}, {}, "code -2015: API key expired", "Correct BINANCE"),
        (400, {"code": -1121, "msg": "Invalid symbol."}, {}, "code -1121: Invalid symbol", "Look up"),
    ],
)
def test_the_findings_of_check_quote_the_exchange(sandbox, monkeypatch, capsys, status, body, headers, quoted, action):
    monkeypatch.setenv("COLUMNS", "1000")
    sandbox.faults.path = "/sapi/"
    add_response(sandbox, status, body, **headers)

    app(["check"], standalone_mode=False)

    [line] = [line for line in capsys.readouterr().out.splitlines() if quoted in line]
    assert action in line
