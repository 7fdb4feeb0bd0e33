"""Case secret-with-a-line-end: white space around a value is ignored; quotes around it are reported."""

import os

import pytest

from affiliate_pipeline.domain.settings import quotation_mark_errors, stripped
from affiliate_pipeline.environment import configured
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY

VARIABLES = [
    "AFFILIATE_DATABASE_URL", "BINANCE_BASE_URL", "BINANCE_PARTNER_API_KEY", "BINANCE_PARTNER_API_SECRET", "LBANK_API_KEY",
    "LBANK_API_SECRET", "LBANK_BASE_URL", "LBANK_OPEN_ID",
]  # fmt: skip
SURROUNDED = ["{}\n", "{}\r\n", "{} ", "\t{}", "\ufeff{}", "{}\u00a0", "{}\u200b", "\u200b \r\n{}\u2060\n"]
QUOTED = ['"{}"', "'{}'", "\u201c{}\u201d", "\u2018{}\u2019", "`{}`", ' "{}"\n', '"{}']


@pytest.fixture
def change(monkeypatch):
    def run(name: str, form: str) -> None:
        monkeypatch.setenv(name, form.format(os.environ[name]))

    return run


def test_white_space_around_values_is_ignored(both_exchanges, run_check, change, monkeypatch):
    expected = {name: os.environ[name] for name in VARIABLES}
    for form in SURROUNDED:
        with monkeypatch.context() as patch:
            for name, value in expected.items():
                patch.setenv(name, form.format(value))
            variables = configured().variables
            assert {name: variables[name] for name in VARIABLES} == expected, ascii(form)
    for name, form in zip(VARIABLES, SURROUNDED, strict=True):
        change(name, form)
    printed = run_check()
    assert printed.count("accepts the credentials") == 3
    assert "database │ PostgreSQL" in " ".join(printed.split())


def test_a_day_lands_with_white_space_around_the_values(both_exchanges, change):
    for name in VARIABLES:
        change(name, " {}\r\n")
    assert land(KEY, DAYS[:1]).success


def test_quotes_are_reported_before_any_request(both_exchanges, run_check, change):
    for name, value in ((name, os.environ[name]) for name in VARIABLES):
        reported = {
            form: [f"{error}" for error in quotation_mark_errors(name, stripped(form.format(value)))] for form in QUOTED
        }
        assert [form for form, errors in reported.items() if f"{name} is in quotes" not in "".join(errors)] == []
    for name, form in zip(VARIABLES, QUOTED + QUOTED[:1], strict=True):
        change(name, form)
    printed = run_check()
    assert [name for name in VARIABLES if f"{name} is in quotes" not in printed] == []
    assert both_exchanges.requests == []


@pytest.mark.parametrize("name", ["AFFILIATE_DATABASE_URL", "BINANCE_BASE_URL", "BINANCE_PARTNER_API_SECRET"])
def test_each_failed_day_names_the_quotes(both_exchanges, change, name):
    change(name, '"{}"')
    run = materialize(KEY, DAYS[:2])
    assert set(run.failed) == set(DAYS[:2])
    assert all(f"{name} is in quotes" in reason for reason in run.failed.values())
    assert both_exchanges.requests == []


def test_quotes_in_one_account_do_not_fail_another(both_exchanges, change):
    change("BINANCE_CLIENT_API_SECRET", '"{}"')
    assert land(KEY, DAYS[:1]).success


def test_quotes_around_alert_urls_are_reported(run_check, monkeypatch):
    monkeypatch.setenv("ALERT_URLS", '"json://127.0.0.1"')
    assert "ALERT_URLS is in quotes" in run_check()


def test_a_key_or_secret_with_an_unusable_character_is_reported(run_check, monkeypatch):
    of_header, of_secret = "has a character that a header cannot carry", "has white space or another character that"
    checks = [
        {"BINANCE_PARTNER_API_KEY": ("two words", of_header), "LBANK_API_KEY": ("two words", of_header)},
        {"BINANCE_PARTNER_API_SECRET": ("a\u00e9b", of_secret), "LBANK_API_SECRET": ("a\tb", of_secret)},
        {"LBANK_API_KEY": ("-----BEGIN PRIVATE KEY-----\\nMIIE", "were key and secret swapped")},
    ]
    for unusable in checks:
        with monkeypatch.context() as patch:
            for name, (value, _) in unusable.items():
                patch.setenv(name, value)
            printed = run_check()
        for name, (value, expected) in unusable.items():
            [line] = [line for line in printed.splitlines() if f"{name} cannot be used" in line]
            assert expected in line
            assert value not in printed


def test_an_api_key_equal_to_its_secret_is_reported(run_check, monkeypatch):
    exchanges = ["BINANCE_PARTNER", "LBANK"]
    for exchange in exchanges:
        monkeypatch.setenv(f"{exchange}_API_KEY", "x" * 32)
        monkeypatch.setenv(f"{exchange}_API_SECRET", "x" * 32)
    printed = run_check()
    for exchange in exchanges:
        assert f"{exchange}_API_KEY cannot be used: the API key and its secret are the same" in printed
