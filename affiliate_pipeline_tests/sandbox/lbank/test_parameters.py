"""Which parameters the sandbox's LBank refuses."""

import pytest

from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import NEEDED


@pytest.mark.parametrize("path", NEEDED)
def test_every_parameter_is_needed_but_start(lbank, lbank_caller, path):
    for name in NEEDED[path]:
        reply = lbank_caller.get(path, **NEEDED[path] | {name: None})
        if name == "start":
            assert reply.data == lbank_caller.get(path, **NEEDED[path]).data
        else:
            assert reply.error_code == 10001 and name in reply.json["msg"]
        if name not in ("start", "coin"):
            assert lbank_caller.get(path, **NEEDED[path] | {name: ""}).error_code == 10001


@pytest.mark.parametrize("path", NEEDED)
def test_senseless_and_unknown_parameters_are_refused(lbank, lbank_caller, path):
    wrong = {
        "startTime": ("-1", "1.5", "2"), "endTime": ("x",), "start": ("-1", "a", ""), "pageSize": ("1.0",),
        "tradeType": ("2", "spot", "00"), "userType": ("all", "SUBS"), "subInOutType": ("On-chain Deposit",),
        "coin": ("null",), "page": ("1",),
    }  # fmt: skip
    for name in [*NEEDED[path].keys() & wrong.keys(), "page"]:
        for value in wrong[name]:
            reply = lbank_caller.get(path, **NEEDED[path] | {name: value})
            assert reply.error_code == 10003, (name, value)


@pytest.mark.parametrize("path", [path for path in NEEDED if "pageSize" in NEEDED[path]])
@pytest.mark.parametrize(("size", "code"), [(0, 20026), (101, 20026), (1, 0), (100, 0)])
def test_a_page_has_1_to_100_rows(lbank, lbank_caller, path, size, code):
    assert lbank_caller.get(path, **NEEDED[path] | {"pageSize": size}).json["error_code"] == code


@pytest.mark.parametrize("path", [path for path in NEEDED if "openId" in NEEDED[path] and "info" not in path])
def test_a_foreign_or_refused_open_id_is_refused(lbank, lbank_caller, path):
    assert lbank_caller.get(path, **NEEDED[path] | {"openId": "LBA0H1XXXX"}).error_code == 10022
    lbank.refused_open_ids = {lbank.own_open_id: 10006}
    assert lbank_caller.get(path, **NEEDED[path]).error_code == 10006
    lbank.refused_open_ids.clear()
    assert lbank_caller.get(path, **NEEDED[path]).json["error_code"] == 0
