"""What people are told about failures, and how it reaches them (Apprise). Neither Dagster nor SQL: alerts are raised
in `defs/`, and kept until they are delivered in `postgres/outbox.py`."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

import apprise

from affiliate_pipeline.days import fold
from affiliate_pipeline.rest.redact import redact

CAUSES_SHOWN = 5
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
    """Days of an asset that a run should have landed and did not; `reasons` by day where they are known."""

    key: str
    days: Sequence[date]
    landed: int
    reasons: Mapping[date, str]


def failed_run(assets: Sequence[FailedAsset], fallback: str, link: str) -> tuple[str, str]:
    """Title and text of the one message about a failed run."""
    title = "; ".join(f"{asset.key} failed" + _for(asset.days) for asset in assets) or "A run failed"
    lines = []
    for asset in assets:
        if not asset.days:
            lines.append(f"{asset.key}: {fallback}")
            continue
        days = "day" if len(asset.days) == 1 else "days"
        lines.append(f"{asset.key}: {len(asset.days)} {days} failed, {asset.landed} landed.")
        by_reason: dict[str, list[date]] = {}
        for day in asset.days:
            by_reason.setdefault(asset.reasons.get(day, fallback), []).append(day)
        lines += [f"{fold(days)}: {reason}" for reason, days in list(by_reason.items())[:CAUSES_SHOWN]]
        if len(by_reason) > CAUSES_SHOWN:
            lines.append(f"… and {len(by_reason) - CAUSES_SHOWN} other causes, named in the run.")
    if not assets:
        lines.append(fallback)
    lines.append(f"Run: {link}")
    return redact(title), redact("\n".join(lines))


def _for(days: Sequence[date]) -> str:
    return f" for {fold(days)}" if days else ""


def send(urls: Sequence[str], title: str, text: str) -> bool:
    """True if every URL took the message; what is sent is logged as well, since there may be no URL."""
    log.error("%s\n%s", title, text)
    # Apprise's own log quotes the addresses, and they hold secrets.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    reached = []
    for number, url in enumerate(urls, start=1):
        target = apprise.Apprise()
        if not target.add(url):
            log.error("ALERT_URLS: entry %d is not an Apprise URL", number)
            reached.append(False)
            continue
        reached.append(bool(target.notify(body=text, title=title, notify_type=apprise.NotifyType.FAILURE)))
        if not reached[-1]:
            log.error("ALERT_URLS: entry %d could not be reached", number)
    return all(reached)
