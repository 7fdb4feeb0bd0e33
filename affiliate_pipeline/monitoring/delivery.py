"""Delivery of alerts: targets, messages bundled to fit services' limits, and Apprise."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import SecretStr

from affiliate_pipeline.domain.settings import BaseUrl, Settings, check_http_url, malformed, quotation_mark_errors
from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.monitoring.alerts import Alert, Kind

# Discord's and Telegram's limits are 2000 and 4096; Apprise splits once more for a service with a lower limit.
MAX_MESSAGE_CHARACTERS = 3500
# Apprise's default is 4 s. A service that responds later may have accepted the message and would get it again.
READ_TIMEOUT_S = 20
NO_APPRISE_URL = "is not an Apprise URL"


class AlertSettings(Settings):
    """Where alerts go, and the base of the links in them."""

    alert_urls: SecretStr | None = None
    heartbeat_url: SecretStr | None = None
    dagster_ui_url: BaseUrl = "http://localhost:3000"

    def urls(self, variable: str = "ALERT_URLS") -> Sequence[str]:
        """The Apprise URLs, which contain secrets; raises `SettingsError` about `variable`, their variable's name."""
        value = self.alert_urls.get_secret_value() if self.alert_urls else ""
        if not value:
            return []
        for error in quotation_mark_errors(variable, value):
            raise error
        # A URL may contain commas (`to=a@x.com,b@x.com`), but no white space.
        parts = re.split(r",(?=[\s,]|$|\w+://)", value)
        urls = [part.strip() for part in parts if part.strip()]
        # A value of commas only is a mistake: as with an unset variable, all alerts would count as delivered.
        if not urls:
            raise malformed(variable, "has no URL")
        return urls

    def heartbeat(self, variable: str = "HEARTBEAT_URL") -> str | None:
        """The secret URL of the dead man's switch; raises `SettingsError` about `variable`, its variable's name."""
        if self.heartbeat_url is None:
            return None
        url = self.heartbeat_url.get_secret_value()
        for error in quotation_mark_errors(variable, url):
            raise error
        try:
            check_http_url(url)
        except ValueError as error:
            raise malformed(variable, f"{error}") from None
        return url


@dataclass(frozen=True)
class Message:
    """One alert unchanged, or several bundled."""

    title: str
    text: str
    alerts: Sequence[Alert]


def messages(alerts: Sequence[Alert]) -> list[Message]:
    """The alerts in order, bundled into as few messages as possible; then each digest alone.

    A bundle has at most `MAX_MESSAGE_CHARACTERS`; a longer alert is a message of its own. A digest's title has the
    total: a bundle's title would replace it.
    """
    digests = [alert for alert in alerts if alert.kind is Kind.DIGEST]
    to_bundle = [alert for alert in alerts if alert.kind is not Kind.DIGEST]
    bundles: list[list[Alert]] = []
    characters_left = 0
    for alert in to_bundle:
        length = len(_part(alert))
        if length > characters_left:
            bundles.append([])
            characters_left = MAX_MESSAGE_CHARACTERS
        bundles[-1].append(alert)
        characters_left -= length
    return [_message(bundle) for bundle in [*bundles, *([digest] for digest in digests)]]


def _message(alerts: Sequence[Alert]) -> Message:
    if len(alerts) == 1:
        return Message(alerts[0].title, alerts[0].text, alerts)
    recoveries = sum(alert.kind is Kind.RECOVERY for alert in alerts)
    others = len(alerts) - recoveries
    counts: list[str] = []
    if others:
        counts.append(count_of(others, "alert"))
    if recoveries:
        counts.append(count_of(recoveries, "recovery", "recoveries"))
    return Message(" and ".join(counts), "".join(map(_part, alerts)).rstrip(), alerts)


def _part(alert: Alert) -> str:
    return f"{alert.title}\n{alert.text}\n\n"


def fingerprint(url: str) -> str:
    """An id of a URL of ALERT_URLS.

    It is so short that many URLs have the same id: an equal id does not prove that guessed secrets are right.
    """
    return sha256(url.encode()).hexdigest()[:8]


def channels(urls: Sequence[str]) -> dict[str, str]:
    """The URLs by names without secrets: `entry 1 (mailto)`, or `entry 1` if it is not an Apprise URL."""
    urls_by_name: dict[str, str] = {}
    for position, url in enumerate(urls, start=1):
        scheme = url.partition("://")[0]
        name = f"entry {position} ({scheme})" if _targets(url) else f"entry {position}"
        urls_by_name[name] = url
    return urls_by_name


def problem_of(url: str) -> str | None:
    """Why a URL of ALERT_URLS cannot be used, or None; sends nothing."""
    return None if _targets(url) else NO_APPRISE_URL


def send(url: str, message: Message) -> str | None:
    """Send to one of ALERT_URLS; return why the message did not arrive, or None."""
    targets = _targets(url)
    if not targets:
        return NO_APPRISE_URL

    import apprise

    for target in targets:
        if target.overflow_mode == apprise.OverflowMode.UPSTREAM:
            # Otherwise services would truncate long messages.
            target.overflow_mode = apprise.OverflowMode.SPLIT
        # A target has this attribute of its own only if its URL sets the timeout (`rto=`); otherwise it has the class's.
        if "socket_read_timeout" not in vars(target):
            target.socket_read_timeout = max(target.socket_read_timeout, READ_TIMEOUT_S)

    kinds = {alert.kind for alert in message.alerts}
    if Kind.FAILURE in kinds:
        notify_type = apprise.NotifyType.FAILURE
    elif Kind.RECOVERY in kinds:
        notify_type = apprise.NotifyType.SUCCESS
    else:
        notify_type = apprise.NotifyType.INFO
    is_accepted = targets.notify(message.text, message.title, notify_type, body_format=apprise.NotifyFormat.TEXT)
    return None if is_accepted else "could not be reached, or did not accept the message"


def _targets(url: str) -> Any:
    """The URL's targets as an `apprise.Apprise`, false if it is not an Apprise URL."""
    # Imported here: the import is slow, and only the delivery needs it.
    import apprise

    # Apprise's own log quotes the addresses, which contain secrets.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    targets: Any = apprise.Apprise()
    targets.add(url)
    return targets
