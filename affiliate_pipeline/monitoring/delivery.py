"""Delivery of alerts: targets, messages bundled to fit services' limits, and Apprise."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pydantic import SecretStr

from affiliate_pipeline.domain.settings import BaseUrl, Settings, check_http_url, malformed, quote_errors
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
        for error in quote_errors(variable, value) if value else ():
            raise error
        # A URL may contain commas (`to=a@x.com,b@x.com`), but no white space.
        urls = [url.strip() for url in re.split(r",(?=[\s,]|$|\w+://)", value) if url.strip()]
        # Without a target, alerts would count as delivered.
        if value and not urls:
            raise malformed(variable, "has no URL")
        return urls

    def heartbeat(self, variable: str = "HEARTBEAT_URL") -> str | None:
        """The secret URL of the dead man's switch; raises `SettingsError` about `variable`, its variable's name."""
        if self.heartbeat_url is None:
            return None
        url = self.heartbeat_url.get_secret_value()
        for error in quote_errors(variable, url):
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
    bundles: list[list[Alert]] = []
    room = 0
    for alert in alerts:
        if alert.kind is Kind.DIGEST:
            continue
        length = len(_part(alert))
        if length > room:
            bundles.append([])
            room = MAX_MESSAGE_CHARACTERS
        bundles[-1].append(alert)
        room -= length
    bundles += [[alert] for alert in alerts if alert.kind is Kind.DIGEST]
    return [_message(bundle) for bundle in bundles]


def _message(alerts: Sequence[Alert]) -> Message:
    if len(alerts) == 1:
        return Message(alerts[0].title, alerts[0].text, alerts)
    recoveries = sum(alert.kind is Kind.RECOVERY for alert in alerts)
    counts = (len(alerts) - recoveries, "alert", "alerts"), (recoveries, "recovery", "recoveries")
    title = " and ".join(count_of(*each) for each in counts if each[0])
    return Message(title, "".join(map(_part, alerts)).rstrip(), alerts)


def _part(alert: Alert) -> str:
    return f"{alert.title}\n{alert.text}\n\n"


def fingerprint(url: str) -> str:
    """An id of a URL of ALERT_URLS, too short to find its secrets by brute force."""
    return sha256(url.encode()).hexdigest()[:8]


def channels(urls: Sequence[str]) -> dict[str, str]:
    """The URLs by names without secrets: `entry 1 (mailto)`, or `entry 1` if it is not an Apprise URL."""
    schemes = [f" ({url.partition('://')[0]})" if _targets(url) else "" for url in urls]
    return {f"entry {place}{scheme}": url for place, (url, scheme) in enumerate(zip(urls, schemes, strict=True), 1)}


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
        if "socket_read_timeout" not in vars(target):  # the URL has no `rto`
            target.socket_read_timeout = max(target.socket_read_timeout, READ_TIMEOUT_S)
    kinds = {alert.kind for alert in message.alerts}
    sent_as = apprise.NotifyType.INFO
    if Kind.FAILURE in kinds:
        sent_as = apprise.NotifyType.FAILURE
    elif Kind.RECOVERY in kinds:
        sent_as = apprise.NotifyType.SUCCESS
    sent = targets.notify(message.text, message.title, sent_as, body_format=apprise.NotifyFormat.TEXT)
    return None if sent else "could not be reached, or did not accept the message"


def _targets(url: str) -> Any:
    """The URL's targets as an `apprise.Apprise`, false if it is not an Apprise URL."""
    # Imported here: the import is slow, and only the delivery needs it.
    import apprise

    # Apprise's own log quotes the addresses, which contain secrets.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    targets: Any = apprise.Apprise()
    targets.add(url)
    return targets
