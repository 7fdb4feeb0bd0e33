"""Which parameters the sandbox's LBank refuses."""

import pytest

from affiliate_pipeline_tests.sandbox.lbank.lbank_requests import VALID_PARAMS


@pytest.mark.parametrize("path", VALID_PARAMS)
def test_every_parameter_except_start_is_required(lbank, lbank_caller, path):
    for name in VALID_PARAMS[path]:
        response = lbank_caller.get(path, **VALID_PARAMS[path] | {name: None})
        if name == "start":
            assert response.data == lbank_caller.get(path, **VALID_PARAMS[path]).data
        else:
            assert response.error_code == 10001 and name in response.json["msg"]
        if name not in ("start", "coin"):
            assert lbank_caller.get(path, **VALID_PARAMS[path] | {name: ""}).error_code == 10001


@pytest.mark.parametrize("path", VALID_PARAMS)
def test_invalid_values_and_unknown_parameters_are_refused(lbank, lbank_caller, path):
    # A startTime of 2 is after the endTime of `VALID_PARAMS`.
    invalid = {
        "startTime": ("-1", "1.5", "2"), "endTime": ("x",), "start": ("-1", "a", ""), "pageSize": ("1.0",),
        "tradeType": ("2", "spot", "00"), "userType": ("all", "SUBS"), "subInOutType": ("On-chain Deposit",),
        "coin": ("null",), "page": ("1",),
    }  # fmt: skip
    for name in [*VALID_PARAMS[path].keys() & invalid.keys(), "page"]:
        for value in invalid[name]:
            response = lbank_caller.get(path, **VALID_PARAMS[path] | {name: value})
            assert response.error_code == 10003, (name, value)


@pytest.mark.parametrize("path", [path for path in VALID_PARAMS if "pageSize" in VALID_PARAMS[path]])
@pytest.mark.parametrize(("size", "code"), [(0, 20026), (101, 20026), (1, 0), (100, 0)])
def test_a_page_size_outside_1_to_100_is_refused(lbank, lbank_caller, path, size, code):
    assert lbank_caller.get(path, **VALID_PARAMS[path] | {"pageSize": size}).json["error_code"] == code


@pytest.mark.parametrize(
    "path", [path for path in VALID_PARAMS if "openId" in VALID_PARAMS[path] and "info" not in path]
)
def test_an_unknown_open_id_and_one_set_as_refused_are_refused(lbank, lbank_caller, path):
    assert lbank_caller.get(path, **VALID_PARAMS[path] | {"openId": "LBA0H1XXXX"}).error_code == 10022
    lbank.refused_open_ids = {lbank.own_open_id: 10006}
    assert lbank_caller.get(path, **VALID_PARAMS[path]).error_code == 10006
    lbank.refused_open_ids.clear()
    assert lbank_caller.get(path, **VALID_PARAMS[path]).json["error_code"] == 0
