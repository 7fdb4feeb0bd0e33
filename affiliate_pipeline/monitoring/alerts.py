"""What people are told about failures, and how it reaches them (Apprise). Neither Dagster nor SQL: alerts are raised
in `defs/`, and kept until they are delivered in `postgres/outbox.py`."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256

from affiliate_pipeline.domain.days import fold, last_minute_before
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.exchanges.spec import Endpoint

CAUSES_SHOWN = 5
MOST_IN_TITLE = 3
LONGEST_CAUSE = 500
# Discord's and Telegram's limits are 2000 and 4096; a service's own limit is kept by splitting once more.
LONGEST_MESSAGE = 3500
# Apprise waits for 4 s: who answers later has taken the message, and would be sent it again and again.
READ_TIMEOUT_S = 20
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alert:
    """A message to people.

    One with a key that was ever raised is not told again. `failed`: the days (none: the asset itself) by asset key that
    it is about; once all have landed, one message says so.
    """

    key: str
    title: str
    text: str
    failed: Mapping[str, Sequence[date]] = field(default_factory=dict)
    good_news: bool = False

    def log(self) -> None:
        """Since there may be nobody to send it to."""
        level = logging.INFO if self.good_news else logging.ERROR
        log.log(level, "%s\n%s", redact(self.title), redact(self.text))


@dataclass(frozen=True)
class FailedAsset:
    """Days of an asset that a run should have landed and did not, and why, by day, where that is known.

    No days: the asset is not partitioned. No endpoint: it does not come from a source.
    """

    key: str
    days: Sequence[date]
    landed: int
    reasons: Mapping[date, str]
    endpoint: Endpoint | None = None


def failed_run(key: str, assets: Sequence[FailedAsset], fallback: str, link: str, now_ms: int) -> Alert:
    """The one message about a failed run; `fallback` is the cause of what has none of its own."""
    lines = []
    for asset in assets:
        lines += _failed_days(asset, fallback, now_ms) if asset.days else [f"{asset.key}: {_cause(fallback)}"]
    if not assets:
        lines.append(_cause(fallback))
    elif any(asset.days for asset in assets):
        lines.append("To do: mend the cause, then materialize these days again (missing and failed only).")
    else:
        lines.append("To do: mend the cause, then materialize it again.")
    return Alert(
        key,
        _title([f"{asset.key} failed" + (f" for {fold(asset.days)}" if asset.days else "") for asset in assets])
        or "A run failed",
        "\n".join([*lines, f"Run: {link}"]),
        {asset.key: tuple(asset.days) for asset in assets},
    )


def _failed_days(asset: FailedAsset, fallback: str, now_ms: int) -> Iterator[str]:
    days = "day" if len(asset.days) == 1 else "days"
    yield f"{asset.key}: {len(asset.days)} {days} failed, {asset.landed} landed. What had landed before is untouched."
    by_cause: dict[str, list[date]] = {}
    for day in asset.days:
        by_cause.setdefault(_cause(asset.reasons.get(day, fallback)), []).append(day)
    for cause, caused in list(by_cause.items())[:CAUSES_SHOWN]:
        yield f"{fold(caused)}: {cause}"
    if len(by_cause) > CAUSES_SHOWN:
        yield f"… and {len(by_cause) - CAUSES_SHOWN} other causes, named in the run."
    if asset.endpoint:
        yield f"At the source: {still_there(asset.endpoint, asset.days, now_ms)}."


def _title(parts: Sequence[str]) -> str:
    more = len(parts) - MOST_IN_TITLE
    return "; ".join([*parts[:MOST_IN_TITLE], *([f"and {more} more"] if more > 0 else [])])


def _cause(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_CAUSE else f"{line[:LONGEST_CAUSE]}…"


def still_there(endpoint: Endpoint, days: Sequence[date], now_ms: int) -> str:
    """Until when the source has the days, as a person needs to know it."""
    if endpoint.fetchable_until_ms(days[0]) is None:
        return "no limit is known of how long it keeps them"
    provable = bool(endpoint.memory and endpoint.memory.provable)
    here = [day for day in sorted(days) if endpoint.is_remembered(day, now_ms)]
    over = [day for day in sorted(days) if day not in here]
    told = []
    if here:
        until_ms = endpoint.fetchable_until_ms(here[0])
        assert until_ms is not None
        first = f" ({here[0]}; the later days longer)" if len(here) > 1 else ""
        at_least = "at least " if provable else ""
        told.append(f"fetchable {at_least}until {last_minute_before(until_ms)}{first}")
    if over:
        promised = "it no longer promises" if provable else "it no longer has"
        told.append(f"{promised} {fold(over)}")
    if second := endpoint.memory and endpoint.memory.second_chance:
        told.append(f"{second.key} is a second chance: {still_there(second, days, now_ms)}")
    return "; ".join(told)


def failed_checks(key: str, failed: Mapping[tuple[str, str], Mapping[date | None, str]], link: str) -> Alert:
    """The one message about the checks, named by asset and check, that failed in a run, with what each said by day."""
    lines = []
    for (asset, check), said in failed.items():
        by_text: dict[str, list[date]] = {}
        for day, text in said.items():
            by_text.setdefault(_cause(text), []).extend([day] if day else [])
        for text, days in list(by_text.items())[:CAUSES_SHOWN]:
            lines.append(f"{asset}, {check}" + (f", {fold(days)}" if days else "") + (f": {text}" if text else ""))
        if len(by_text) > CAUSES_SHOWN:
            lines.append(f"… and {len(by_text) - CAUSES_SHOWN} more of this check, in the run.")
    return Alert(
        key,
        _title(
            [
                f"{asset}: check {check} failed"
                + (f" for {fold(days)}" if (days := [day for day in said if day]) else "")
                for (asset, check), said in failed.items()
            ]
        ),
        "\n".join(
            [
                *lines,
                "The days have landed as the source gave them; to do: see the asset's checks in the UI and the runbook.",
                f"Run: {link}",
            ]
        ),
    )


def failing_ticks(key: str, kind: str, name: str, cause: str, link: str) -> Alert:
    """A sensor or schedule no longer does its work; told once until it does again."""
    return Alert(
        key,
        f"The {kind} {name} fails",
        f"{_cause(cause)}\nTo do: mend the cause; it goes on by itself. What it should have started meanwhile has not "
        f"been started.\nIts ticks: {link}",
    )


def recovered(alerts: Sequence[Alert]) -> Alert:
    """All failed days of these alerts have landed."""
    days: dict[str, set[date]] = {}
    for alert in alerts:
        for asset, failed in alert.failed.items():
            days.setdefault(asset, set()).update(failed)
    landed = [_landed_since(asset, failed) for asset, failed in days.items()]
    told = dict.fromkeys(f"Told before: {alert.title}" for alert in alerts)
    keys = ", ".join(alert.key for alert in alerts)
    return Alert(
        # However many recover together: the key is indexed, and an entry of an index has room for 2,704 bytes.
        f"landed: {sha256(keys.encode()).hexdigest()}",
        _title(landed),
        "\n".join([*landed[MOST_IN_TITLE:], *told]),
        good_news=True,
    )


def _landed_since(asset: str, days: set[date]) -> str:
    if not days:
        return f"{asset} has been materialized since"
    return f"{asset}: {fold(days)} {'has' if len(days) == 1 else 'have'} landed since"


@dataclass(frozen=True)
class Message:
    """What is sent at once: one alert as it is, or several folded."""

    title: str
    text: str
    alerts: Sequence[Alert]

    @property
    def is_good_news(self) -> bool:
        return all(alert.good_news for alert in self.alerts)


def messages(alerts: Sequence[Alert]) -> list[Message]:
    """All of the alerts, in their order, in as few messages as fit into `LONGEST_MESSAGE`."""
    bundles: list[list[Alert]] = []
    room = 0
    for alert in alerts:
        length = len(_told(alert))
        if length > room:
            bundles.append([])
            room = LONGEST_MESSAGE
        bundles[-1].append(alert)
        room -= length
    return [_message(bundle) for bundle in bundles]


def _message(alerts: Sequence[Alert]) -> Message:
    if len(alerts) == 1:
        return Message(alerts[0].title, alerts[0].text, alerts)
    good = sum(alert.good_news for alert in alerts)
    counts = [f"{len(alerts) - good} alerts" if len(alerts) - good > 1 else "1 alert"] if good < len(alerts) else []
    counts += [f"{good} recoveries" if good > 1 else "1 recovery"] if good else []
    return Message(" and ".join(counts), "".join(map(_told, alerts)).rstrip(), alerts)


def _told(alert: Alert) -> str:
    return f"{alert.title}\n{alert.text}\n\n"


def fingerprint(url: str) -> str:
    """What a URL of ALERT_URLS is known by; too short to find its secrets by trying."""
    return sha256(url.encode()).hexdigest()[:8]


def send(url: str, message: Message) -> str | None:
    """Sends to one of ALERT_URLS; why it did not arrive, None if it did."""
    # It takes long to import, and only whoever sends needs it.
    import apprise

    # Apprise's own log quotes the addresses, and they hold secrets.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    targets = apprise.Apprise()
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
