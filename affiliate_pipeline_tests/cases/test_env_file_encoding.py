"""Case env-file-encoding: a `.env` in UTF-8 or UTF-16 is read; any other encoding is reported with its line.

UTF-16 needs a byte order mark.
"""

import codecs
import os
import shutil
from pathlib import Path

import pytest

from affiliate_pipeline import environment as settings
from affiliate_pipeline.app.__main__ import main
from affiliate_pipeline.definitions import build_definitions
from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.exchanges.binance.exchange import Binance
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY

CASE = Path(__file__).parent / "env-file-encoding"
COMMANDS = [
    "check",
    "up --once",
    "psql",
    "report",
    "plan binance/rebate_recent_record 2026-10-01",
    "export binance.rebate_recent_record 2026-10-01",
]
TEXT = "# clé\nBINANCE_PARTNER_API_KEY=kkkk\nBINANCE_PARTNER_API_SECRET=ssss\n"
UNREADABLE = {
    "latin-1": ((CASE / "latin-1.env").read_bytes(), "line 1, is not UTF-8 text"),
    "latin-1 on a later line": (b"A=1\r\nB=2\r\n# cl\xe9\r\n", "line 3, is not UTF-8 text"),
    "code page 1252": ("A=1\n# €\n".encode("cp1252"), "line 2, is not UTF-8 text"),
    "UTF-16 without a byte order mark": ("A=1\n".encode("utf-16-le"), "line 1, has a NUL character"),
    "UTF-16 after UTF-8": (b"A=1\n" + "B=2\n".encode("utf-16-le"), "line 2, has a NUL character"),
    "UTF-16 cut off": (codecs.BOM_UTF16_LE + "A=1\nB=2".encode("utf-16-le")[:-1], "line 2, is not UTF-8 text"),
    "UTF-32": (TEXT.encode("utf-32"), "line 1, "),
    "NUL": (b"A=1\nB=\0\n", "line 2, has a NUL character"),
}


@pytest.mark.parametrize(
    "content",
    [(CASE / "utf-16.env").read_bytes(), TEXT.encode("utf-16"), codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be")]
    + [TEXT.encode("utf-8-sig"), TEXT.replace("\n", "\r\n").encode("utf-16")],
)
def test_a_file_with_a_byte_order_mark_is_read(content):
    Path(".env").write_bytes(content)
    names = ("BINANCE_PARTNER_API_KEY", "BINANCE_PARTNER_API_SECRET")
    read = Binance.load(settings.configured().variables, *names)
    assert [read.secret(name) for name in names] == ["kkkk", "ssss"]


def test_a_day_lands_with_settings_in_utf_16(sandbox, monkeypatch):
    names = ("BINANCE_PARTNER_API_KEY", "BINANCE_PARTNER_API_SECRET", "BINANCE_BASE_URL", "AFFILIATE_DATABASE_URL")
    Path(".env").write_text("".join(f"{name}={os.environ[name]}\n" for name in names), encoding="utf-16")
    for name in names:
        monkeypatch.delenv(name)
    assert land(KEY, DAYS[:1]).success


@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_is_reported_with_its_line(name):
    content, location = UNREADABLE[name]
    Path(".env").write_bytes(content)
    with pytest.raises(SettingsError, match=rf"\.env, {location}.*Save the file as UTF-8"):
        settings.configured()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_reports_the_file_and_its_line(run_failing_command, command):
    shutil.copyfile(CASE / "latin-1.env", ".env")
    printed = run_failing_command(*command.split())
    assert ".env, line 1, is not UTF-8 text" in printed and "Save the file as UTF-8" in printed


def test_down_needs_no_settings(monkeypatch):
    shutil.copyfile(CASE / "latin-1.env", ".env")
    monkeypatch.setattr("sys.argv", ["affiliate-pipeline", "down"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def test_each_failed_day_reports_the_line(sandbox, monkeypatch):
    # As in a code location that was loaded before the file changed.
    loaded = build_definitions()
    monkeypatch.setattr("affiliate_pipeline_tests.conftest.loaded_definitions", lambda: loaded)
    shutil.copyfile(CASE / "latin-1.env", ".env")
    run = materialize(KEY, DAYS[:2])
    assert set(run.failed) == set(DAYS[:2])
    assert all("line 1, is not UTF-8 text" in reason for reason in run.failed.values())


def test_an_env_file_that_cannot_be_opened_is_reported(run_failing_command, monkeypatch):
    Path(".env").mkdir()
    assert "/.env cannot be read (Is a directory)" in run_failing_command("check")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    assert "/.env cannot be read (Permission denied)" in run_failing_command("check")


def test_the_settings_that_up_wrote_may_be_in_utf_16(run_failing_command):
    settings.home().mkdir()
    (settings.home() / "settings.env").write_bytes(TEXT.encode("utf-16"))
    assert settings.sandbox_variables()["BINANCE_PARTNER_API_KEY"] == "kkkk"
    (settings.home() / "settings.env").write_bytes(TEXT.encode("latin-1"))
    assert "settings.env, line 1, is not UTF-8 text" in run_failing_command("check")


def test_up_saves_utf_16_as_utf_8_because_dagster_reads_only_utf_8():
    shutil.copyfile(CASE / "utf-16.env", ".env")
    Path(".env").chmod(0o640)
    assert settings.save_env_file_as_utf8()
    assert Path(".env").read_bytes().decode("utf-8").splitlines()[1] == "BINANCE_PARTNER_API_KEY=kkkk"
    assert Path(".env").stat().st_mode & 0o777 == 0o640
    assert not settings.save_env_file_as_utf8()
