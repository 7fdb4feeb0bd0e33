"""An export of the client's kickbacks, as its row in the database describes it."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

from affiliate_pipeline.domain.days import DAY, days_from, start_ms

# The asset that lands exports.
ASSET = "binance/kickback_historical_record"
RETENTION = timedelta(days=30)
ZONE = ZoneInfo("UTC")


@dataclass(frozen=True)
class KickbackExport:
    """Days that were, or will be, requested together.

    `msg` is the exchange's response to the POST, None until there is one; `note` says what happened last. `path` is that
    of the export's file, `path_before` and `other_paths` are those of files known to be another request's. `is_kept`: the
    file could not be read and is stored. `is_due`: it may be polled again; `is_overdue`: it is time to give up.
    """

    id: int
    first_day: date
    last_day: date
    state: str
    requested_at: datetime | None
    code: int | None
    msg: str | None
    note: str | None
    path: str | None
    path_before: str | None
    other_paths: list[str]
    expires_at: datetime | None
    is_kept: bool
    is_due: bool
    is_overdue: bool
    is_just_expired: bool
    age_s: float

    @property
    def days(self) -> list[date]:
        return days_from(self.first_day, self.last_day)

    @property
    def start_ms(self) -> int:
        return start_ms(self.first_day, ZONE)

    @property
    def end_ms(self) -> int:
        """The first millisecond after its days."""
        return start_ms(self.last_day + DAY, ZONE)

    @property
    def requested_ms(self) -> int | None:
        return (
            None if self.requested_at is None or self.state == "waiting" else int(self.requested_at.timestamp() * 1000)
        )

    def covers(self, *days: date) -> bool:
        return all(self.first_day <= day <= self.last_day for day in days)


def is_retained(day: date, at_ms: int) -> bool:
    """Whether an export requested at that instant has the whole day."""
    return start_ms(day, ZONE) >= at_ms - RETENTION // timedelta(milliseconds=1)
