"""Case password-in-a-traceback: no command prints any part of a database URL that cannot be parsed."""

from pathlib import Path

import dagster as dg
import pytest

from affiliate_pipeline.app.instance.storage import StorageUnavailable
from affiliate_pipeline.postgres.connection import connect
from affiliate_pipeline.postgres.errors import StoreUnavailable
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY, SETTLED

URL = "postgresql://joe:Zq%8secretX@db.example.com:5432/app"
DAGSTER_YAML = Path(__file__).parents[2] / "dagster.yaml"


@pytest.mark.parametrize("url", [URL, URL.replace("%8", " ")], ids=["percent", "blank"])
@pytest.mark.parametrize(
    "command",
    [
        ["check"],
        ["psql"],
        ["pg_dump"],
        ["report"],
        ["plan", KEY, f"{SETTLED}"],
        ["export", KEY, f"{SETTLED}"],
        ["up", "--once"],
    ],
    ids=lambda command: command[0],
)
def test_no_command_prints_the_url(sandbox, command, url, monkeypatch, run_failing_command):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", url)
    printed = run_failing_command(*command)
    assert "secretX" not in printed and "Zq" not in printed
    assert "AFFILIATE_DATABASE_URL cannot be parsed" in printed and "%25 %2F" in printed
    if command == ["check"]:
        assert "binance partner" in printed


def test_no_run_prints_the_url(sandbox, monkeypatch):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", URL)
    run = materialize(KEY, DAYS)
    assert sorted(run.failed) == DAYS
    assert "AFFILIATE_DATABASE_URL cannot be parsed" in run.message
    assert "secretX" not in f"{run} {run.events}"


def test_dagsters_own_commands_print_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("AFFILIATE_DATABASE_URL", URL)
    (tmp_path / "dagster.yaml").write_text(DAGSTER_YAML.read_text())
    with pytest.raises(StorageUnavailable, match="cannot be parsed") as raised:
        dg.DagsterInstance.from_config(str(tmp_path))
    assert "secretX" not in f"{raised.value}" and raised.value.__suppress_context__


# Each URL has an invalid part: the password, another part that contains the secret, or a part without the secret.
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://joe:pa@secretX@127.0.0.1:1/app",
        "postgresql://joe:pa/secretX@127.0.0.1:1/app",
        "postgresql://joe:12/secretX@127.0.0.1:1/app",
        "postgresql://joe:secretX",
        "postgresql://joe:secretX/",
        "postgresql://joe:secretX@[::1/app",
        "postgresql://joe:secretX@::1]/app",
        "postgresql://joe:secretX@127.0.0.1:secretX/app",
        "postgresql://joe:secretX@127.0.0.1:99999/app",
        "postgresql://joe:secretX@127.0.0.1:1/app?sslmod=secretX",
        "postgresql://joe:secretX@127.0.0.1:1/app?sslmode=secretX",
        "postgresql://joe:secretX@127.0.0.1:1/app?port=secretX",
        "postgresql://joe:secretX@127.0.0.1:1/app?hostaddr=secretX",
        "postgresql://joe:secretX@127.0.0.1:1/app?service=secretX",
        "postgresql://joe:secretX@127.0.0.1:1/app?target_session_attrs=secretX",
        "postgresql://joe:secretX@127.0.0.1:1/app?keepalives=secretX",
        "postgresql://joe:secretX@127.0.0.1:1/app?x=%8secretX",
        "postgresql://joe:secretX@127.0.0.1:1,127.0.0.1:2/app?secretX",
        "postgresql://joe:secretX%FF@127.0.0.1:1/app",
        "postgresql://joe:secretX%00@127.0.0.1:1/app",
        "postgresql://joe:secretX\udcff@127.0.0.1:1/app",
        "postgresql://joe:sécretX secretX@hö st/app",
    ],
)
def test_nothing_of_a_url_that_cannot_be_used_is_quoted(url):
    with pytest.raises(StoreUnavailable, match="the database's URL (cannot be parsed|has a parameter)") as raised:
        connect(url)
    assert "secretX" not in f"{raised.value!r}" and "127.0.0.1" not in f"{raised.value!r}"
