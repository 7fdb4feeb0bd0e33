"""Alerts: what people read about failures. `outbox` stores alerts until they are delivered, `delivery` sends them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from hashlib import sha256

from affiliate_pipeline.domain.days import fold, last_minute_before
from affiliate_pipeline.domain.problem import Problem
from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.exchanges.endpoint import Endpoint, retention_of

MAX_CAUSES = 5
MAX_IN_TITLE = 3
MAX_CAUSE_CHARACTERS = 500
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alert:
    """A message to people; one with a key that was raised before is not raised again.

    `failed`: the days concerned (none: the asset itself) by asset key; once all have landed, one message reports it.
    """

    key: str
    title: str
    text: str
    failed: Mapping[str, Sequence[date]] = field(default_factory=dict[str, Sequence[date]])
    good_news: bool = False

    def log(self) -> None:
        """Logs the alert, since no target may be configured."""
        level = logging.INFO if self.good_news else logging.ERROR
        log.log(level, "%s\n%s", redact(self.title), redact(self.text))


@dataclass(frozen=True)
class FailedAsset:
    """The days of an asset that a run should have landed and did not, with the problem of each day where it is known.

    No days: the asset is not partitioned. No endpoint: it is derived from others.
    """

    key: str
    days: Sequence[date]
    landed: int
    problems: Mapping[date, Problem]
    endpoint: Endpoint | None = None


def failed_run(key: str, assets: Sequence[FailedAsset], fallback: str, link: str, now_ms: int) -> Alert:
    """The one alert about a failed run; `fallback` is the cause of what has none of its own."""
    lines: list[str] = []
    for asset in assets:
        lines += _failed_days(asset, fallback, now_ms) if asset.days else [f"{asset.key}: {_line(fallback)}"]
    if not assets:
        lines.append(_line(fallback))
    else:
        what = "these days again (missing and failed only)" if any(asset.days for asset in assets) else "it again"
        lines.append(f"To do: fix the cause, then materialize {what}.")
    return Alert(
        key,
        _title([f"{asset.key} failed{_for(asset.days)}" for asset in assets]) or "A run failed",
        "\n".join([*lines, f"Run: {link}"]),
        {asset.key: tuple(asset.days) for asset in assets},
    )


def _failed_days(asset: FailedAsset, fallback: str, now_ms: int) -> Iterator[str]:
    noun = "day" if len(asset.days) == 1 else "days"
    yield f"{asset.key}: {len(asset.days)} {noun} failed, {asset.landed} landed. What had landed before is untouched."
    causes = {day: f"{problem.cause}." for day, problem in asset.problems.items()}
    by_cause = _by_text({day: causes.get(day, fallback) for day in asset.days})
    for cause, days in list(by_cause.items())[:MAX_CAUSES]:
        yield f"{fold(days)}: {cause}"
    if len(by_cause) > MAX_CAUSES:
        yield f"… and {len(by_cause) - MAX_CAUSES} other causes, named in the run."
    if asset.endpoint:
        yield f"At the source: {availability(asset.endpoint, asset.days, now_ms)}."


def _by_text(texts: Mapping[date | None, str] | Mapping[date, str]) -> dict[str, list[date]]:
    by_text: dict[str, list[date]] = {}
    for day, text in texts.items():
        by_text.setdefault(_line(text), []).extend([day] if day else [])
    return by_text


def _title(parts: Sequence[str]) -> str:
    more = len(parts) - MAX_IN_TITLE
    return "; ".join([*parts[:MAX_IN_TITLE], *([f"and {more} more"] if more > 0 else [])])


def _for(days: Sequence[date]) -> str:
    return f" for {fold(days)}" if days else ""


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CAUSE_CHARACTERS else f"{line[:MAX_CAUSE_CHARACTERS]}…"


def availability(endpoint: Endpoint, days: Sequence[date], now_ms: int) -> str:
    """Until when the source has the days, for people."""
    retained = [day for day in sorted(days) if endpoint.timetable.is_retained(day, now_ms)]
    expired = [day for day in sorted(days) if day not in retained]
    retention = retention_of(endpoint)
    provable = bool(retention and retention.proof)
    texts: list[str] = []
    if retained:
        deadline_ms = endpoint.timetable.deadline_ms(retained[0])
        if deadline_ms is None:
            return "no limit is known of how long it keeps them"
        first = f" ({retained[0]}; the later days longer)" if len(retained) > 1 else ""
        at_least = "at least " if provable else ""
        texts.append(f"fetchable {at_least}until {last_minute_before(deadline_ms)}{first}")
    if expired:
        texts.append(f"it no longer {'promises' if provable else 'has'} {fold(expired)}")
    if second := retention and retention.fallback:
        texts.append(f"{second.key} is a second chance: {availability(second, days, now_ms)}")
    return "; ".join(texts)


def failed_checks(key: str, failed: Mapping[tuple[str, str], Mapping[date | None, str]], link: str) -> Alert:
    """The one alert about the checks that failed in a run: their descriptions by day, by asset and check."""
    lines: list[str] = []
    titles: list[str] = []
    for (asset, check), descriptions in failed.items():
        titles.append(f"{asset}: check {check} failed{_for([day for day in descriptions if day])}")
        by_text = _by_text(descriptions)
        for text, days in list(by_text.items())[:MAX_CAUSES]:
            lines.append(f"{asset}, {check}" + (f", {fold(days)}" if days else "") + (f": {text}" if text else ""))
        if len(by_text) > MAX_CAUSES:
            lines.append(f"… and {len(by_text) - MAX_CAUSES} more of this check, in the run.")
    lines.append(
        "The days have landed as the source gave them; to do: see the asset's checks in the UI and the runbook."
    )
    return Alert(key, _title(titles), "\n".join([*lines, f"Run: {link}"]))


def failing_ticks(key: str, kind: str, name: str, cause: str, link: str) -> Alert:
    """A sensor or schedule fails; reported once until it succeeds again."""
    return Alert(
        key,
        f"The {kind} {name} fails",
        f"{_line(cause)}\nTo do: fix the cause; it then resumes automatically. What it should have started meanwhile has not "
        f"been started.\nIts ticks: {link}",
    )


def recovered(alerts: Sequence[Alert]) -> Alert:
    """All failed days of these alerts have landed."""
    days: dict[str, set[date]] = {}
    for alert in alerts:
        for asset, failed in alert.failed.items():
            days.setdefault(asset, set()).update(failed)
    landed = [_landed_since(asset, failed) for asset, failed in days.items()]
    earlier = dict.fromkeys(f"Told before: {alert.title}" for alert in alerts)
    keys = ", ".join(alert.key for alert in alerts)
    return Alert(
        # The hash bounds the key: an entry of PostgreSQL's index has room for 2,704 bytes.
        f"landed: {sha256(keys.encode()).hexdigest()}",
        _title(landed),
        "\n".join([*landed[MAX_IN_TITLE:], *earlier]),
        good_news=True,
    )


def _landed_since(asset: str, days: set[date]) -> str:
    if not days:
        return f"{asset} has been materialized since"
    return f"{asset}: {fold(days)} {'has' if len(days) == 1 else 'have'} landed since"
