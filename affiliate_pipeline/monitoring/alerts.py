"""The texts of alerts. `outbox` stores alerts, `delivery` sends them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import StrEnum
from hashlib import sha256

from affiliate_pipeline.domain.days import format_days, last_minute_before
from affiliate_pipeline.domain.problem import Problem
from affiliate_pipeline.domain.wording import count_of
from affiliate_pipeline.exchanges.endpoint import Endpoint, retention_of

MAX_CAUSES = 5
MAX_IN_TITLE = 3
MAX_CAUSE_CHARACTERS = 500


class Kind(StrEnum):
    """What an alert reports."""

    FAILURE = "failure"
    RECOVERY = "recovery"
    DIGEST = "digest"


@dataclass(frozen=True)
class Alert:
    """A message to people; only one is raised per key.

    `failed`: the failed days by asset key (empty: the asset itself); once all have landed, one message reports it.
    """

    key: str
    title: str
    text: str
    failed: Mapping[str, Sequence[date]] = field(default_factory=dict[str, Sequence[date]])
    kind: Kind = Kind.FAILURE


@dataclass(frozen=True)
class FailedAsset:
    """The days of an asset that a run should have landed but did not, and the known problems of these days.

    No days: the asset is not partitioned. No endpoint: it is derived from others, or a reference table.
    """

    key: str
    days: Sequence[date]
    landed: int
    problems: Mapping[date, Problem]
    endpoint: Endpoint | None = None


def failed_run(key: str, assets: Sequence[FailedAsset], default_cause: str, link: str, now_ms: int) -> Alert:
    """The alert about a failed run; `default_cause` is that of days without a known problem."""
    if assets:
        title = _title([f"{asset.key} failed{_for(asset.days)}" for asset in assets])
        lines: list[str] = []
        for asset in assets:
            lines += _failed_asset(asset, default_cause, now_ms)
        what = "these days again (missing and failed only)" if any(asset.days for asset in assets) else "it again"
        lines.append(f"To do: fix the cause, then materialize {what}.")
    else:
        title = "A run failed"
        lines = [_line(default_cause)]
    failed = {asset.key: tuple(asset.days) for asset in assets}
    return Alert(key, title, "\n".join([*lines, f"Run: {link}"]), failed)


def _failed_asset(asset: FailedAsset, default_cause: str, now_ms: int) -> Iterator[str]:
    if not asset.days:
        yield f"{asset.key}: {_line(default_cause)}"
        return
    noun = "day" if len(asset.days) == 1 else "days"
    counts = f"{count_of(len(asset.days), 'day')} failed, {asset.landed} landed"
    yield f"{asset.key}: {counts}. Rows of the failed {noun} that had landed earlier are unchanged."
    causes = {day: f"{problem.cause}." for day, problem in asset.problems.items()}
    yield from _by_text({day: causes.get(day, default_cause) for day in asset.days})
    if asset.endpoint:
        yield f"At the source: {availability(asset.endpoint, asset.days, now_ms)}."


def _by_text(texts: Mapping[date, str] | Mapping[date | None, str], about: str = "") -> Iterator[str]:
    """A line for each of the first `MAX_CAUSES` distinct texts, with its days, and one that counts the other texts."""
    days_by_text: dict[str, list[date]] = {}
    for day, text in texts.items():
        days = days_by_text.setdefault(_line(text), [])
        if day:
            days.append(day)

    for text, days in list(days_by_text.items())[:MAX_CAUSES]:
        subject = _joined(", ", about, format_days(days))
        yield _joined(": ", subject, text)
    if len(days_by_text) > MAX_CAUSES:
        yield f"… and {count_of(len(days_by_text) - MAX_CAUSES, 'other cause')}, named in the run."


def _joined(separator: str, *parts: str) -> str:
    """The parts that are not empty, joined."""
    return separator.join(filter(None, parts))


def _title(parts: Sequence[str]) -> str:
    title = "; ".join(parts[:MAX_IN_TITLE])
    more = len(parts) - MAX_IN_TITLE
    return f"{title}; and {more} more" if more > 0 else title


def _for(days: Iterable[date]) -> str:
    return f" for {format_days(days)}" if days else ""


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_CAUSE_CHARACTERS else f"{line[:MAX_CAUSE_CHARACTERS]}…"


def availability(endpoint: Endpoint, days: Sequence[date], now_ms: int) -> str:
    """Until when the source has the days, and which it no longer has, as text; also about its fallback."""
    retained = [day for day in sorted(days) if endpoint.timetable.is_retained(day, now_ms)]
    expired = [day for day in days if day not in retained]
    retention = retention_of(endpoint)
    may_exceed_promise = retention is not None and retention.proof is not None

    texts: list[str] = []
    if retained:
        deadline_ms = endpoint.timetable.deadline_ms(retained[0])
        if deadline_ms is None:
            return "it is not known how long the exchange retains them"
        until = f"until {last_minute_before(deadline_ms)}"
        if may_exceed_promise:
            until = f"at least {until}"
        if len(retained) > 1:
            until = f"{until} ({retained[0]}; the later days longer)"
        texts.append(f"fetchable {until}")
    if expired:
        verb = "promises" if may_exceed_promise else "has"
        texts.append(f"it no longer {verb} {format_days(expired)}")
    if retention and retention.fallback:
        texts.append(f"as a fallback, {retention.fallback.key}: {availability(retention.fallback, days, now_ms)}")
    return "; ".join(texts)


def failed_checks(key: str, failed: Mapping[tuple[str, str], Mapping[date | None, str]], link: str) -> Alert:
    """The alert about a run's failed checks.

    `failed` has their descriptions by asset and check, then by day; None: the evaluation of the whole run.
    """
    titles: list[str] = []
    lines: list[str] = []
    for (asset, check), texts in failed.items():
        days = [day for day in texts if day]
        titles.append(f"{asset}: check {check} failed{_for(days)}")
        lines += _by_text(texts, about=f"{asset}, {check}")
    lines.append(
        "The days have landed as the source sent them. To do: see the asset's checks in the UI and the runbook."
    )
    return Alert(key, _title(titles), "\n".join([*lines, f"Run: {link}"]))


def failing_ticks(key: str, kind: str, name: str, cause: str, link: str) -> Alert:
    """The alert about the failing sensor or schedule `name`; `kind` is which of the two it is."""
    return Alert(
        key,
        f"The {kind} {name} is failing",
        f"{_line(cause)}\nTo do: fix the cause; it then resumes automatically. Runs that it should have started in the "
        f"meantime have not been started.\nIts ticks: {link}",
    )


def recovered(alerts: Sequence[Alert]) -> Alert:
    """The alert which reports that all failed days of these alerts have landed."""
    days_by_asset: dict[str, set[date]] = {}
    for alert in alerts:
        for asset, days in alert.failed.items():
            days_by_asset.setdefault(asset, set()).update(days)

    landed: list[str] = []
    for asset, days in days_by_asset.items():
        if days:
            verb = "has" if len(days) == 1 else "have"
            landed.append(f"{asset}: {format_days(days)} {verb} landed since")
        else:
            landed.append(f"{asset} has been materialized since")

    earlier = dict.fromkeys(f"Earlier alert: {alert.title}" for alert in alerts)
    keys = ", ".join(alert.key for alert in alerts)
    return Alert(
        # The hash bounds the key's length: an entry of PostgreSQL's index has room for 2,704 bytes.
        f"landed: {sha256(keys.encode()).hexdigest()}",
        _title(landed),
        "\n".join([*landed[MAX_IN_TITLE:], *earlier]),  # the title has the first ones
        kind=Kind.RECOVERY,
    )
