"""Settings: which source takes precedence, one error for all problems, and no value in any error."""

import os
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from affiliate_pipeline import environment as settings
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.domain.settings import (
    DATABASE_VARIABLE,
    SET_VARIABLES_ACTION,
    Mode,
    Project,
    Settings,
)
from affiliate_pipeline.exchanges.binance.exchange import Binance
from affiliate_pipeline.exchanges.lbank.exchange import LBank
from affiliate_pipeline.exchanges.registry import EXCHANGE_VARIABLES
from affiliate_pipeline.monitoring.delivery import AlertSettings

SECRET = "hunter2-hunter2"
KEY, SECRET_NAME = "BINANCE_PARTNER_API_KEY", "BINANCE_PARTNER_API_SECRET"
S = TypeVar("S", bound=Settings)
# The autouse fixtures run once for all examples. That is safe, because each example sets the same single variable.
EXAMPLES = hypothesis_settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def save_sandbox_settings(**variables: str) -> None:
    settings.home().mkdir(exist_ok=True)
    settings.save_sandbox_variables(variables)


def key(variables: Mapping[str, str] | None = None) -> str:
    return Binance.load(variables or settings.configured().variables, KEY).secret(KEY)


def load(model: type[S]) -> S:
    """The settings of one kind, as configured."""
    return model.load(settings.configured().variables)


def test_every_setting_has_a_default():
    assert load(Project).affiliate_start_date is None
    assert settings.application().start_date is None
    assert load(Binance).binance_base_url == "https://api.binance.com"
    assert load(Binance).binance_weight_per_minute == 6000
    assert load(LBank).lbank_base_url == "https://affiliate.lbankverify.com"
    assert (load(AlertSettings).urls(), load(AlertSettings).dagster_ui_url) == ([], "http://localhost:3000")
    assert settings.application().mode is Mode.PRODUCTION


def test_the_env_file_of_the_working_directory_takes_precedence_over_the_environment(monkeypatch):
    monkeypatch.setenv(KEY, "from the environment")
    assert key() == "from the environment"
    Path(".env").write_text(f"{KEY}='from the file'\nBINANCE_WEIGHT_PER_MINUTE=7\n")
    assert key() == "from the file"
    assert load(Binance).binance_weight_per_minute == 7
    assert os.environ[KEY] == "from the environment"


def test_the_file_is_read_each_time(monkeypatch):
    Path(".env").write_text(f"{KEY}=one\n")
    assert key() == "one"
    Path(".env").write_text(f"{KEY}=two\n")
    assert key() == "two"


def test_an_empty_variable_is_not_set(monkeypatch):
    monkeypatch.setenv(KEY, "")
    monkeypatch.setenv("BINANCE_BASE_URL", "")
    assert load(Binance).binance_base_url == "https://api.binance.com"
    with pytest.raises(SettingsError, match=f"{KEY} is not set"):
        key()
    # A caller of `load` may pass empty variables; `configured` leaves them out.
    with pytest.raises(SettingsError, match=f"{KEY} is not set"):
        Binance.load({KEY: ""}, KEY)


def test_sandbox_settings_apply_to_the_application_while_no_exchange_is_configured():
    save_sandbox_settings(BINANCE_PARTNER_API_KEY="sandbox-key", AFFILIATE_START_DATE="2026-10-01")
    environment = settings.application()
    assert environment.mode is Mode.SANDBOX
    assert (key(environment.variables), environment.start_date) == ("sandbox-key", date(2026, 10, 1))


def test_sandbox_settings_apply_to_the_application_only():
    save_sandbox_settings(BINANCE_PARTNER_API_KEY="sandbox-key", AFFILIATE_START_DATE="2026-10-01")
    assert settings.configured().mode is Mode.PRODUCTION
    assert settings.configured().start_date is None
    with pytest.raises(SettingsError, match=f"{KEY} is not set"):
        key()


def test_sandbox_settings_do_not_apply_with_a_configured_database(monkeypatch):
    save_sandbox_settings(BINANCE_PARTNER_API_KEY="sandbox-key", AFFILIATE_DATABASE_URL="postgresql://chosen.example/x")
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", "postgresql://db.example/production")
    environment = settings.application()
    assert environment.mode is Mode.PRODUCTION
    assert environment.database_url() == "postgresql://db.example/production"


@pytest.mark.parametrize("name", EXCHANGE_VARIABLES)
def test_sandbox_settings_do_not_apply_once_an_exchange_is_configured(monkeypatch, name):
    save_sandbox_settings(BINANCE_PARTNER_API_KEY="sandbox-key", AFFILIATE_START_DATE="2026-10-01")
    monkeypatch.setenv(name, "https://example.com")
    environment = settings.application()
    assert environment.mode is Mode.PRODUCTION
    assert environment.start_date is None
    assert KEY not in environment.variables or name == KEY


def test_the_environment_takes_precedence_over_sandbox_settings(monkeypatch):
    save_sandbox_settings(AFFILIATE_START_DATE="2026-10-01", BINANCE_PARTNER_API_KEY="sandbox-key")
    monkeypatch.setenv("AFFILIATE_START_DATE", "2026-11-01")
    assert settings.application().start_date == date(2026, 11, 1)
    Path(".env").write_text("AFFILIATE_START_DATE=2026-11-02\n")
    assert settings.application().start_date == date(2026, 11, 2)
    assert key(settings.application().variables) == "sandbox-key"


def test_first_days_apply_to_the_mode_in_which_they_were_chosen():
    save_sandbox_settings(BINANCE_PARTNER_API_KEY="sandbox-key")
    sandbox = replace(settings.application(), first_days={"lbank/trade_user": date(2026, 11, 1)})
    real = replace(settings.configured(), first_days={"lbank/trade_user": date(2026, 1, 1)})
    settings.save_first_days(sandbox)
    settings.save_first_days(real)
    assert settings.application().first_days == sandbox.first_days
    assert settings.configured().first_days == real.first_days


@pytest.mark.parametrize("content", ["", "{", "[]", '{"affiliate": []}', '{"affiliate": {"lbank/trade_user": "soon"}}'])
def test_unreadable_first_days_are_reported(content):
    settings.home().mkdir()
    (settings.home() / "first_days.json").write_text(content)
    with pytest.raises(SettingsError, match=r"first_days.json does not contain the first days.*delete it"):
        settings.application()


def test_a_file_of_first_days_that_cannot_be_read_is_reported():
    (settings.home() / "first_days.json").mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"first_days.json cannot be read"):
        settings.application()


def test_sandbox_settings_are_read_back():
    variables = {"BINANCE_BASE_URL": "http://127.0.0.1:4711", "AFFILIATE_START_DATE": "2026-10-01"}
    save_sandbox_settings(**variables)
    assert settings.sandbox_variables() == variables


def test_the_project_is_found_from_a_folder_inside_it(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert settings.root() == tmp_path.resolve()
    assert settings.home() == tmp_path.resolve() / ".affiliate"


def test_a_command_in_a_subfolder_uses_the_env_file_of_the_project_and_no_sandbox(tmp_path, monkeypatch):
    save_sandbox_settings(BINANCE_PARTNER_API_KEY="sandbox-key")
    Path(".env").write_text("AFFILIATE_DATABASE_URL=postgresql://db.example/x\nBINANCE_PARTNER_API_KEY=real\n")
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path / "docs")
    environment = settings.application()
    assert environment.database_url() == "postgresql://db.example/x"
    assert (key(environment.variables), environment.mode) == ("real", Mode.PRODUCTION)
    Path(".env").write_text("BINANCE_PARTNER_API_KEY=nearer\n")
    assert key(settings.application().variables) == "nearer"
    # A process of Dagster reads only the `.env` of its working directory.
    assert settings.configured().variables.keys() & {"AFFILIATE_DATABASE_URL", KEY} == {KEY}


def test_one_error_names_everything_missing_and_malformed(monkeypatch):
    monkeypatch.setenv("BINANCE_BASE_URL", "api.binance.com")
    monkeypatch.setenv("BINANCE_WEIGHT_PER_MINUTE", "many")
    monkeypatch.setenv("AFFILIATE_RATE_SCALE", "-1")
    with pytest.raises(SettingsError) as raised:
        Binance.load(settings.configured().variables, KEY, SECRET_NAME)
    text = str(raised.value)
    for name in (KEY, SECRET_NAME, "BINANCE_BASE_URL", "BINANCE_WEIGHT_PER_MINUTE", "AFFILIATE_RATE_SCALE"):
        assert text.count(name) == 1
    assert ".env" in text
    assert "CLIENT" not in text


def test_an_error_names_only_variables_of_its_own_settings(monkeypatch):
    monkeypatch.setenv("AFFILIATE_START_DATE", "soon")
    load(Binance)
    with pytest.raises(SettingsError, match="^AFFILIATE_START_DATE "):
        load(Project)


VARIABLES = [
    (model, name)
    for model in (Project, Binance, LBank, AlertSettings)
    for name, field in model.model_fields.items()
    if "SecretStr" not in str(field.annotation)
]


@pytest.mark.parametrize(("model", "name"), VARIABLES, ids=lambda value: getattr(value, "__name__", value))
@EXAMPLES
@given(value=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=8).filter(lambda v: len(v.encode()) < 90))
def test_no_error_contains_a_value(model, name, value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), value)
        try:
            load(model)
        except SettingsError as error:
            # Hypothesis also generates strings from the code, such as this ending or a part of the name.
            text = str(error).removesuffix(f". {SET_VARIABLES_ACTION}")
            assert name.upper() in text and value not in text.replace(name.upper(), "")
            assert error.__cause__ is None or value not in str(error.__cause__)


@pytest.mark.parametrize(
    "url",
    [
        "api.binance.com",
        "ftp://example.com",
        "https://",
        f"https://me:{SECRET}@example.com",
        f"https://example.com?key={SECRET}",
        f"https://[{SECRET}",
        f"https://{SECRET}.exa\u2100mple.com",
        f"https://{SECRET}:99999",
    ],
)
def test_an_invalid_url_is_rejected_without_quoting_it(monkeypatch, url):
    monkeypatch.setenv("BINANCE_BASE_URL", url)
    with pytest.raises(SettingsError, match="BINANCE_BASE_URL") as raised:
        load(Binance)
    assert "is not an http(s) URL" in str(raised.value)
    assert SECRET not in str(raised.value)


def test_a_base_url_loses_its_trailing_slash(monkeypatch):
    monkeypatch.setenv("BINANCE_BASE_URL", "https://proxy.example/binance/")
    assert load(Binance).binance_base_url == "https://proxy.example/binance"


def test_secrets_do_not_show_when_settings_are_printed(monkeypatch):
    for name in (KEY, SECRET_NAME, "ALERT_URLS", "AFFILIATE_DATABASE_URL", "LBANK_API_SECRET"):
        monkeypatch.setenv(name, SECRET)
    assert SECRET not in repr(settings.application())
    for model in (Project, Binance, LBank, AlertSettings):
        assert SECRET not in repr(load(model)) + str(load(model)) + str(load(model).model_dump())


@pytest.mark.parametrize("model", [Binance, LBank])
@pytest.mark.parametrize(
    ("url", "permitted"),
    [
        ("http://127.0.0.1:8080", True),
        ("http://localhost:8080", True),
        ("http://[::1]:8080", True),
        ("http://127.9.8.7", True),
        ("http://10.1.2.3:8080", True),
        ("http://172.31.255.255", True),
        ("http://192.168.0.1:8080", True),
        ("http://169.254.1.1", True),
        ("http://[fd00::1]:8080", True),
        ("http://[fe80::1]:8080", True),
        ("http://172.32.0.1", False),
        ("http://8.8.8.8", False),
        ("http://0.0.0.0", False),
        ("http://[2001:db8::1]", False),
        ("http://[::ffff:8.8.8.8]", False),
        ("http://control", False),
        ("http://127.1", False),
        ("https://10.0.0.1.example.com", False),
        ("https://api.binance.com", False),
        ("https://localhost.example.com", False),
        ("https://127.0.0.1.example.com", False),
        ("https://127.0.0.1@example.com", False),
    ],
)
def test_a_rate_scale_above_one_is_accepted_for_private_addresses_only(monkeypatch, model, url, permitted):
    name = f"{model.__name__.upper()}_BASE_URL"
    monkeypatch.setenv(name, url)
    monkeypatch.setenv("AFFILIATE_RATE_SCALE", "50")
    if permitted:
        assert load(model).affiliate_rate_scale == 50
    else:
        with pytest.raises(SettingsError, match=f"AFFILIATE_RATE_SCALE|{name}"):
            load(model)


@pytest.mark.parametrize("scale", ["1", "0.5", "0.001"])
def test_a_rate_scale_up_to_one_is_accepted_for_every_host(monkeypatch, scale):
    monkeypatch.setenv("AFFILIATE_RATE_SCALE", scale)
    assert load(Binance).affiliate_rate_scale == float(scale)


@pytest.mark.parametrize("scale", ["0", "-1", "nan", "inf"])
def test_an_invalid_rate_scale_is_rejected(monkeypatch, scale):
    monkeypatch.setenv("BINANCE_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AFFILIATE_RATE_SCALE", scale)
    with pytest.raises(SettingsError, match="AFFILIATE_RATE_SCALE"):
        load(Binance)


@pytest.mark.parametrize(
    "scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+psycopg2", "postgresql+asyncpg"]
)
def test_the_database_may_be_given_with_a_driver(monkeypatch, scheme):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", f"{scheme}://me:p%40w@db.example/data?sslmode=require")
    assert settings.configured().database_url() == "postgresql://me:p%40w@db.example/data?sslmode=require"


@pytest.mark.parametrize(
    "url", [f"mysql://me:{SECRET}@h/x", f"host=h password={SECRET}", SECRET, f"postgresqlx://{SECRET}"]
)
def test_a_url_of_another_kind_of_database_is_rejected_without_quoting_it(monkeypatch, url):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", url)
    with pytest.raises(SettingsError, match="AFFILIATE_DATABASE_URL") as raised:
        settings.configured().database_url()
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize("value", [None, ""])
def test_settings_alone_never_select_the_embedded_server(monkeypatch, tmp_path, value):
    if value is not None:
        monkeypatch.setenv("AFFILIATE_DATABASE_URL", value)
    save_sandbox_settings(BINANCE_PARTNER_API_KEY="sandbox-key")
    for environment in (settings.configured(), settings.application()):
        with pytest.raises(SettingsError, match="^AFFILIATE_DATABASE_URL is not set"):
            environment.database_url()
    assert [path.name for path in (tmp_path / ".affiliate").iterdir()] == ["settings.env"]
    assert settings.application().mode == "affiliate_sandbox"
    monkeypatch.setenv(KEY, "a real key")
    assert settings.application().mode == "affiliate"


def test_alert_urls_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("ALERT_URLS", " json://one , nonsense, mailto://two,json://three,,")
    assert load(AlertSettings).urls() == ["json://one", "nonsense", "mailto://two", "json://three"]


def test_alert_urls_without_a_url_are_refused(monkeypatch):
    monkeypatch.setenv("ALERT_URLS", ", ,")
    with pytest.raises(SettingsError, match="ALERT_URLS has no URL"):
        load(AlertSettings).urls()


def test_an_alert_url_may_contain_commas(monkeypatch):
    mail = "mailto://me:secret@example.com?to=a@example.com,b@example.com"
    monkeypatch.setenv("ALERT_URLS", f"{mail},json://one/a,b,{mail}")
    assert load(AlertSettings).urls() == [mail, "json://one/a,b", mail]


def test_file_hosts_are_a_list_of_host_names(monkeypatch):
    assert load(Binance).binance_file_hosts == ()
    monkeypatch.setenv("BINANCE_FILE_HOSTS", " *.Files.example.com,.partner.example , ")
    assert load(Binance).binance_file_hosts == ("files.example.com", "partner.example")


@pytest.mark.parametrize("hosts", ["com", "127.0.0.1", "localhost", "https://a.example", "a.example/x", "[::1]", "*"])
def test_an_invalid_file_host_is_rejected(monkeypatch, hosts):
    monkeypatch.setenv("BINANCE_FILE_HOSTS", f"files.example.com,{hosts}")
    with pytest.raises(SettingsError, match="BINANCE_FILE_HOSTS is not a list of host names"):
        load(Binance)


def test_every_variable_is_listed_here_and_no_other():
    listed = {
        "AFFILIATE_DATABASE_URL", "AFFILIATE_START_DATE", "AFFILIATE_RATE_SCALE", "AFFILIATE_SCHEDULES", "ALERT_URLS", "HEARTBEAT_URL",
        "DAGSTER_UI_URL", "BINANCE_BASE_URL", "BINANCE_PARTNER_API_KEY", "BINANCE_PARTNER_API_SECRET",
        "BINANCE_CLIENT_API_KEY", "BINANCE_CLIENT_API_SECRET", "BINANCE_API_AGENT_CODE", "BINANCE_CUSTOMER_IDS",
        "BINANCE_USER_CUSTOMER_ID", "BINANCE_WEIGHT_PER_MINUTE", "LBANK_BASE_URL", "LBANK_API_KEY", "LBANK_API_SECRET",
        "LBANK_SIGNATURE_METHOD", "LBANK_OPEN_ID", "BINANCE_FILE_HOSTS", "BINANCE_START_DATE", "LBANK_START_DATE",
        "AFFILIATE_EXECUTOR", "AFFILIATE_CELERY_BROKER", "AFFILIATE_CELERY_BACKEND", "AFFILIATE_PRICES", "AFFILIATE_DIGEST",
    }  # fmt: skip
    named = {name.upper() for model in Settings.__subclasses__() for name in model.model_fields}
    named |= {DATABASE_VARIABLE, *EXCHANGE_VARIABLES}
    assert named == listed
