"""Secrets in files: `NAME_FILE` names the file that has the value of `NAME`, in the environment and in `.env`."""

import os
from pathlib import Path

import pytest

from affiliate_pipeline import environment
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.settings import Mode, secret_variables
from affiliate_pipeline.exchanges.binance.exchange import Binance
from affiliate_pipeline.exchanges.registry import configured_catalog, unusable_variables
from affiliate_pipeline.monitoring.delivery import AlertSettings

KEY, CLIENT_SECRET = "BINANCE_PARTNER_API_KEY", "BINANCE_CLIENT_API_SECRET"
CONTENT = "hunter2"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text(f"{CONTENT}\n")
    return file


def value(name: str) -> str:
    return environment.configured().variables[name]


@pytest.mark.parametrize("name", sorted(secret_variables()))
def test_every_secret_variable_may_be_in_a_file(monkeypatch, secret, name):
    monkeypatch.setenv(f"{name}_FILE", str(secret))
    variables = environment.configured().variables
    assert variables[name] == CONTENT
    # `in` also finds the name with `_FILE`; only the iteration leaves it out.
    assert name in variables and f"{name}_FILE" not in {*variables}
    assert [*unusable_variables(variables)] == []


def test_keys_and_urls_with_passwords_are_secret_and_ids_paths_and_base_urls_are_not():
    # `secret_variables` has only the secrets of settings that are imported: this test imports those of alerts.
    assert AlertSettings.secrets() and secret_variables() >= {
        "AFFILIATE_DATABASE_URL",
        "ALERT_URLS",
        "HEARTBEAT_URL",
        "LBANK_API_SECRET",
        KEY,
        CLIENT_SECRET,
    }
    assert not secret_variables() & {"BINANCE_CUSTOMER_IDS", "LBANK_OPEN_ID", "BINANCE_BASE_URL"}


def test_a_file_named_in_the_env_file_is_read(secret):
    Path(".env").write_text(f"{KEY}_FILE={secret}\nAFFILIATE_DATABASE_URL_FILE=url\n")
    Path("url").write_text("postgresql://me:secret@db.example/data\n")
    assert value(KEY) == CONTENT
    assert environment.application().database_url() == "postgresql://me:secret@db.example/data"


def test_the_suffix_of_a_further_accounts_secrets_file_is_after_the_alias(monkeypatch, secret):
    monkeypatch.setenv(f"{KEY}__ACME_FILE", str(secret))
    variables = environment.configured().variables
    assert variables[f"{KEY}__ACME"] == CONTENT
    assert "acme" in {each.alias for each in configured_catalog(variables).endpoints}
    assert [*unusable_variables(variables)] == []


def test_an_alias_cannot_end_with_the_suffix_of_a_secrets_file(monkeypatch):
    monkeypatch.setenv("LBANK_OPEN_ID__ACME_FILE", "LBA1")
    [unusable] = unusable_variables(environment.configured().variables)
    assert "no _FILE at the end" in unusable.action


def test_a_secret_with_several_lines_loses_only_its_byte_order_mark_and_its_last_line_end(monkeypatch, secret):
    secret.write_bytes(b"\xef\xbb\xbf-----BEGIN\r\nabc\r\n-----END\r\n")
    monkeypatch.setenv(f"{KEY}_FILE", str(secret))
    assert value(KEY) == "-----BEGIN\r\nabc\r\n-----END"


def test_a_variable_that_is_not_secret_has_no_file(monkeypatch, secret):
    monkeypatch.setenv("LBANK_OPEN_ID_FILE", str(secret))
    variables = environment.configured().variables
    assert "LBANK_OPEN_ID" not in variables
    assert [each.name for each in unusable_variables(variables)] == ["LBANK_OPEN_ID_FILE"]


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfehunter2", b"caf\xe9"])
def test_a_file_that_cannot_be_used_is_an_error_by_the_variables_name(monkeypatch, secret, content):
    if content is None:
        secret.unlink()
    else:
        secret.write_bytes(content)
    monkeypatch.setenv(f"{KEY}_FILE", str(secret))
    with pytest.raises(SettingsError, match=f"^{KEY}_FILE names ") as raised:
        value(KEY)
    assert str(secret) not in str(raised.value) and CONTENT not in str(raised.value)


def test_a_folder_and_a_secret_in_place_of_the_path_are_errors_that_do_not_quote_it(monkeypatch, tmp_path):
    for path in (str(tmp_path), CONTENT, "x" * 5000):
        monkeypatch.setenv(f"{KEY}_FILE", path)
        with pytest.raises(SettingsError, match=f"^{KEY}_FILE names a file that cannot be read") as raised:
            value(KEY)
        assert path not in str(raised.value)


def test_a_file_that_this_user_may_not_read_is_an_error(monkeypatch, secret):
    secret.chmod(0)
    if os.access(secret, os.R_OK):
        pytest.skip("root may read every file")
    monkeypatch.setenv(f"{KEY}_FILE", str(secret))
    with pytest.raises(SettingsError, match="Permission denied"):
        value(KEY)


def test_a_value_and_a_file_of_the_same_variable_are_an_error(monkeypatch, secret):
    monkeypatch.setenv(KEY, "value")
    Path(".env").write_text(f"{KEY}_FILE={secret}\n")
    with pytest.raises(SettingsError, match=f"^{KEY} and {KEY}_FILE are both set") as raised:
        value(KEY)
    assert CONTENT not in str(raised.value)


def test_an_empty_variable_does_not_hide_the_file(monkeypatch, secret):
    monkeypatch.setenv(KEY, "")
    monkeypatch.setenv(f"{KEY}_FILE", str(secret))
    assert value(KEY) == CONTENT


def test_a_file_that_cannot_be_read_fails_only_what_needs_it(monkeypatch):
    for name in (KEY, "BINANCE_PARTNER_API_SECRET"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv(f"{CLIENT_SECRET}_FILE", "missing")
    variables = environment.configured().variables
    assert Binance.load(variables, KEY).secret(KEY) == "x"
    with pytest.raises(SettingsError) as raised:
        Binance.load(variables, "BINANCE_CLIENT_API_KEY", CLIENT_SECRET)
    assert {error.variable for error in raised.value.errors} == {"BINANCE_CLIENT_API_KEY", f"{CLIENT_SECRET}_FILE"}


@pytest.mark.parametrize("name", ["AFFILIATE_DATABASE_URL", KEY, "LBANK_API_SECRET__ACME"])
def test_a_variable_in_a_file_that_cannot_be_read_counts_as_configured(monkeypatch, name):
    # The sandbox, or an embedded database, must not take the place of what is configured.
    environment.home().mkdir()
    environment.save_sandbox_variables({KEY: "sandbox-key"})
    monkeypatch.setenv(f"{name}_FILE", "missing")
    assert environment.application().mode is Mode.PRODUCTION


def test_files_apply_together_with_the_variables_of_the_sandbox(monkeypatch, secret):
    environment.home().mkdir()
    environment.save_sandbox_variables({KEY: "sandbox-key"})
    monkeypatch.setenv("ALERT_URLS_FILE", str(secret))
    found = environment.application()
    assert found.mode is Mode.SANDBOX
    assert (found.variables[KEY], found.variables["ALERT_URLS"]) == ("sandbox-key", CONTENT)
