"""Alerts on their way to people: kept from the moment they are raised until every target has taken them, and their
failed days until they have landed. What an alert says and how it is sent is in `alerts.py`."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Self

from psycopg.types.json import Jsonb

from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.monitoring.alerts import Alert
from affiliate_pipeline.postgres.connection import Lock, connect_prepared, try_lock, unavailable, unlock


@dataclass(frozen=True)
class Open:
    """An alert whose failed days have not all been seen to land: those that the ledger does not show, by asset. An
    asset without days has to be materialized itself."""

    alert: Alert
    raised_at: datetime
    missing: dict[str, frozenset[date]]


class Outbox:
    """One connection to the table of alerts."""

    def __init__(self, url: str):
        self._connection = connect_prepared(url, autocommit=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def add(self, alert: Alert, raised_at: datetime | None = None) -> bool:
        """Whether the alert is new: one with a key that was ever added changes nothing.

        `raised_at`: since when (now, if not given) its failed days have to land to be told of as recovered.
        """
        with unavailable():
            added = self._connection.execute(
                "insert into affiliate.alert (key, title, text, failed, good_news, raised_at) "
                "values (%s, %s, %s, %s, %s, coalesce(%s, now())) on conflict do nothing",
                (
                    alert.key,
                    redact(alert.title),
                    redact(alert.text),
                    Jsonb({asset: [day.isoformat() for day in days] for asset, days in alert.failed.items()}),
                    alert.good_news,
                    raised_at,
                ),
            )
        if added.rowcount:
            alert.log()
        return bool(added.rowcount)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody else delivers meanwhile: two at once would send everything twice."""
        lock = Lock("affiliate_pipeline.alert")
        if not try_lock(self._connection, lock, "the delivery of alerts"):
            yield False
            return
        try:
            yield True
        finally:
            unlock(self._connection, lock)

    def waiting(self, target: str) -> list[Alert]:
        """The alerts that the target has not taken: those first that it was asked least often to take, then the oldest."""
        with unavailable():
            rows = self._connection.execute(
                "select key, title, text, failed, good_news from affiliate.alert "
                "where delivered_at is null and not %(target)s = any(reached) "
                "order by coalesce((missed ->> %(target)s)::int, 0), raised_at, key",
                {"target": target},
            ).fetchall()
        return [_alert(*row) for row in rows]

    def misses(self, target: str) -> dict[str, int]:
        """How often the target has not taken an alert, by the keys of those that it was asked to take and has not."""
        with unavailable():
            return dict(
                self._connection.execute(
                    "select key, (missed ->> %(target)s)::int from affiliate.alert "
                    "where delivered_at is null and not %(target)s = any(reached) and missed ? %(target)s",
                    {"target": target},
                ).fetchall()
            )

    def reached(self, target: str, alerts: Iterable[Alert], quiet: timedelta) -> None:
        """The target has taken these, and is left in peace for a while."""
        keys = [alert.key for alert in alerts]
        with unavailable(), self._connection.transaction():
            self._connection.execute(
                "update affiliate.alert set reached = reached || %s::text where key = any(%s)", (target, keys)
            )
            self._connection.execute(
                "insert into affiliate.alert_target values (%s, 0, now() + %s) on conflict (target) do update "
                "set failures = excluded.failures, next_try_at = excluded.next_try_at",
                (target, quiet),
            )

    def missed(
        self, target: str, alerts: Iterable[Alert], first_pause: timedelta, longest_pause: timedelta
    ) -> tuple[int, datetime]:
        """The target has not taken these: how often in a row that is by now, and when (UTC) it may be tried again. The
        pause doubles each time, except that what is tried within one leaves it as it is."""
        with unavailable(), self._connection.transaction():
            self._connection.execute(
                "update affiliate.alert set missed = missed || "
                "jsonb_build_object(%(target)s::text, coalesce((missed ->> %(target)s)::int, 0) + 1) "
                "where key = any(%(keys)s)",
                {"target": target, "keys": [alert.key for alert in alerts]},
            )
            self._connection.execute(
                "insert into affiliate.alert_target as known values (%(target)s, 1, now() + %(first)s) "
                "on conflict (target) do update set failures = known.failures + 1, "
                "next_try_at = now() + least(%(longest)s, %(first)s * 2 ^ least(known.failures, 30)) "
                "where known.failures = 0 or known.next_try_at <= now()",
                {"target": target, "first": first_pause, "longest": longest_pause},
            )
            row = self._connection.execute(
                "select failures, next_try_at from affiliate.alert_target where target = %s", (target,)
            ).fetchone()
        assert row
        return row

    def pauses(self) -> dict[str, int]:
        """The targets that have a pause, and how often each has not taken a message since it last did: 0 of one that is
        left in peace."""
        with unavailable():
            return dict(
                self._connection.execute(
                    "select target, failures from affiliate.alert_target where next_try_at > now()"
                ).fetchall()
            )

    def overdue(self, after: timedelta) -> int:
        """How many alerts have not been delivered so long after they were raised."""
        with unavailable():
            row = self._connection.execute(
                "select count(*) from affiliate.alert where delivered_at is null and raised_at < now() - %s", (after,)
            ).fetchone()
        assert row
        return row[0]

    def settle(self, targets: Collection[str]) -> None:
        """Alerts that all of the targets, if there are any, have taken are delivered."""
        with unavailable():
            self._connection.execute(
                "update affiliate.alert set delivered_at = now() where delivered_at is null and reached @> %s::text[]",
                (list(targets),),
            )
            self._connection.execute("delete from affiliate.alert_target where not target = any(%s)", (list(targets),))

    def open(self) -> list[Open]:
        """The alerts whose failed days have not been told of as landed, with what is missing according to the ledger."""
        with unavailable():
            rows = self._connection.execute(
                "select key, title, text, failed, good_news, raised_at, array(select jsonb_build_array(asset, day) "
                "from jsonb_each(failed) each (asset, days), jsonb_array_elements_text(days) day "
                "where exists (select from affiliate.landing where landing.asset = each.asset "
                "and partition = day::date and checked_at >= raised_at)) "
                "from affiliate.alert where recovered_at is null and failed <> '{}' order by raised_at, key"
            ).fetchall()
        return [self._open(_alert(*alert), raised_at, landed) for *alert, raised_at, landed in rows]

    @staticmethod
    def _open(alert: Alert, raised_at: datetime, landed: Sequence[Sequence[str]]) -> Open:
        seen = {(asset, date.fromisoformat(day)) for asset, day in landed}
        missing = {
            asset: frozenset(day for day in days if (asset, day) not in seen) for asset, days in alert.failed.items()
        }
        return Open(
            alert,
            raised_at.astimezone(UTC),
            {asset: days for asset, days in missing.items() if days or not alert.failed[asset]},
        )

    def recover(self, recovered: Iterable[Alert], told: Alert) -> None:
        """The failed days of these alerts have landed, which is told."""
        with unavailable(), self._connection.transaction():
            self._connection.execute(
                "update affiliate.alert set recovered_at = now() where key = any(%s)",
                ([alert.key for alert in recovered],),
            )
            self.add(told)

    def _one(self, statement: str) -> Any:
        with unavailable():
            row = self._connection.execute(statement).fetchone()
        return row[0] if row else None


def _alert(key: str, title: str, text: str, failed: dict[str, list[str]], good_news: bool) -> Alert:
    days = {asset: tuple(map(date.fromisoformat, days)) for asset, days in failed.items()}
    return Alert(key, title, text, days, good_news)
