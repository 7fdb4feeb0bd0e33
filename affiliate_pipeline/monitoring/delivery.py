"""Alerts as messages: bundled to fit what services accept, and sent by Apprise."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from affiliate_pipeline.monitoring.alerts import Alert

# Discord's and Telegram's limits are 2000 and 4096; Apprise splits once more for a service with a lower limit.
MAX_MESSAGE = 3500
# Apprise waits for 4 s by default. A service that responds later has accepted the message, and would get it again.
READ_TIMEOUT_S = 20


@dataclass(frozen=True)
class Message:
    """One alert as it is, or several bundled."""

    title: str
    text: str
    alerts: Sequence[Alert]

    @property
    def is_good_news(self) -> bool:
        return all(alert.good_news for alert in self.alerts)


def messages(alerts: Sequence[Alert]) -> list[Message]:
    """All of the alerts, in their order, in as few messages as fit into `MAX_MESSAGE`."""
    bundles: list[list[Alert]] = []
    room = 0
    for alert in alerts:
        length = len(_part(alert))
        if length > room:
            bundles.append([])
            room = MAX_MESSAGE
        bundles[-1].append(alert)
        room -= length
    return [_message(bundle) for bundle in bundles]


def _message(alerts: Sequence[Alert]) -> Message:
    if len(alerts) == 1:
        return Message(alerts[0].title, alerts[0].text, alerts)
    good = sum(alert.good_news for alert in alerts)
    counts = [f"{len(alerts) - good} alerts" if len(alerts) - good > 1 else "1 alert"] if good < len(alerts) else []
    counts += [f"{good} recoveries" if good > 1 else "1 recovery"] if good else []
    return Message(" and ".join(counts), "".join(map(_part, alerts)).rstrip(), alerts)


def _part(alert: Alert) -> str:
    return f"{alert.title}\n{alert.text}\n\n"


def fingerprint(url: str) -> str:
    """What identifies a URL of ALERT_URLS; too short to find its secrets by trying."""
    return sha256(url.encode()).hexdigest()[:8]


def send(url: str, message: Message) -> str | None:
    """Sends to one of ALERT_URLS; returns why the message did not arrive, None if it did."""
    # The import is slow, and only the delivery needs it.
    import apprise

    # Apprise's own log quotes the addresses, which hold secrets.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    targets: Any = apprise.Apprise()
    if not targets.add(url):
        return "is not an Apprise URL"
    for target in targets:
        if target.overflow_mode == apprise.OverflowMode.UPSTREAM:
            # Services cut what is too long for them.
            target.overflow_mode = apprise.OverflowMode.SPLIT
        if "socket_read_timeout" not in vars(target):  # the URL has no `rto`
            target.socket_read_timeout = max(target.socket_read_timeout, READ_TIMEOUT_S)
    kind = apprise.NotifyType.SUCCESS if message.is_good_news else apprise.NotifyType.FAILURE
    sent = targets.notify(
        body=message.text, title=message.title, notify_type=kind, body_format=apprise.NotifyFormat.TEXT
    )
    return None if sent else "could not be reached, or refused the message"
