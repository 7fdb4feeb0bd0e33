"""`alert --test` sends a message to each channel and reports which failed, without their secrets."""

import pytest

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.domain.problem import SettingsError

# Apprise imports all of its services. One of them imports `imghdr`, which Python 3.13 removed.
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")


@pytest.fixture
def send(capsys):
    """Runs the command and returns the exit code and the printed lines."""

    def run() -> tuple[int, list[str]]:
        code = app(["alert", "--test"], standalone_mode=False)
        return code, capsys.readouterr().out.splitlines()

    return run


def test_each_channel_gets_a_message(webhook, send, monkeypatch):
    monkeypatch.setenv("ALERT_URLS", f"{webhook.url}, {webhook.url}?second=1")
    assert send() == (0, ["ALERT_URLS, entry 1 (json): sent", "ALERT_URLS, entry 2 (json): sent"])
    assert [message["title"] for message in webhook.messages] == ["Test of the alerts"] * 2
    assert "Nothing is wrong" in webhook.messages[0]["message"]


def test_each_channel_that_fails_is_reported_without_its_secrets(webhook, send, monkeypatch):
    urls = [webhook.url, "json://user:hidden@127.0.0.1:1/hidden", "hidden"]
    monkeypatch.setenv("ALERT_URLS", ",\n".join(urls))
    assert send() == (
        1,
        [
            "ALERT_URLS, entry 1 (json): sent",
            "ALERT_URLS, entry 2 (json): failed: it could not be reached, or did not accept the message",
            "ALERT_URLS, entry 3: failed: it is not an Apprise URL",
        ],
    )
    assert len(webhook.messages) == 1


def test_without_a_channel_or_the_option_nothing_is_sent():
    with pytest.raises(SettingsError, match="ALERT_URLS is not set"):
        app(["alert", "--test"], standalone_mode=False)
    with pytest.raises(CommandError, match="Add --test"):
        app(["alert"], standalone_mode=False)
