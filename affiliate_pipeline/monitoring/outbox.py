"""Alerts, kept from the moment they are raised until every target has taken them, and their failed days until they have
landed. What an alert says and how it is sent is in `alerts`."""

from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

from psycopg.types.json import Jsonb

from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.landing import ledger
from affiliate_pipeline.monitoring.alerts import Alert
from affiliate_pipeline.postgres.errors import unavailable
from affiliate_pipeline.postgres.locks import Lock, try_locked
from affiliate_pipeline.postgres.table_store import TableStore

TABLE: Final = "affiliate.alert"
# One row per alert and target that it was sent to; a target that has taken an alert gets no other one before the row's
# next_attempt_at.
DELIVERIES: Final = "affiliate.alert_delivery"


@dataclass(frozen=True)
class Open:
    """An alert whose failed days have not all landed since, and those that the ledger does not show, by asset. An asset
    without days has to be materialized itself."""

    alert: Alert
    raised_at: datetime
    missing: dict[str, frozenset[date]]


class Delivery(NamedTuple):
    """An alert to be sent to a target, and how often that has failed."""

    alert: Alert
    attempts: int


class Outbox(TableStore):
    """The alerts and their deliveries."""

    def add(self, alert: Alert, raised_at: datetime | None = None) -> bool:
        """Whether the alert is new: one with a key that was ever added changes nothing.

        `raised_at`: since when (now, if not given) its failed days have to land to be reported as recovered.
        """
        added = self._execute(
            f"insert into {TABLE} (key, title, text, failed, good_news, raised_at) "
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

    def try_exclusive(self) -> AbstractContextManager[bool]:
        """Yields whether no other process delivers meanwhile: two at once would send everything twice."""
        return try_locked(self._connection, Lock("affiliate_pipeline.alert"), "the delivery of alerts")

    def due(self, target: str) -> list[Delivery]:
        """What may be sent to the target now: the alerts that failed least often first, then the oldest.

        Nothing within the interval after an alert that it has taken; within the pause after a failure, only what was never
        sent to it: the target may be down, or may have rejected only that one alert.
        """
        rows = self._execute(
            "select key, title, text, failed, good_news, coalesce(attempts, 0) "
            f"from {TABLE} left join {DELIVERIES} on alert = key and target = %(target)s "
            f"cross join (select bool_or(delivered_at is null) as failing, bool_or(delivered_at is not null) as taken "
            f"from {DELIVERIES} where target = %(target)s and next_attempt_at > now()) resting "
            "where alert.delivered_at is null and alert_delivery.delivered_at is null "
            "and taken is not true and (attempts is null or failing is not true) "
            "order by coalesce(attempts, 0), raised_at, key",
            {"target": target},
        )
        return [Delivery(_alert(*alert), attempts) for *alert, attempts in rows]

    def waiting(self, target: str) -> int:
        """How many alerts the target has not taken yet."""
        [(count,)] = self._execute(
            f"select count(*) from {TABLE} where delivered_at is null and not exists (select from {DELIVERIES} "
            "where alert = key and target = %s and alert_delivery.delivered_at is not null)",
            (target,),
        )
        return count

    def failing(self) -> set[str]:
        """The targets that have not taken everything that was sent to them."""
        return {target for (target,) in self._execute(f"select target from {DELIVERIES} where delivered_at is null")}

    def delivered(self, target: str, alerts: Iterable[Alert], min_interval: timedelta) -> None:
        """The target has taken these: it gets nothing else for the interval, and then what failed before."""
        with unavailable(), self._connection.transaction():
            self._execute(
                f"insert into {DELIVERIES} select key, %(target)s, 1, now() + %(interval)s, now() "
                "from unnest(%(keys)s::text[]) key on conflict (alert, target) do update set "
                "attempts = alert_delivery.attempts + 1, next_attempt_at = excluded.next_attempt_at, "
                "delivered_at = excluded.delivered_at",
                {"target": target, "keys": [alert.key for alert in alerts], "interval": min_interval},
            )
            self._execute(
                f"update {DELIVERIES} set next_attempt_at = least(next_attempt_at, now()) "
                "where target = %s and delivered_at is null",
                (target,),
            )

    def failed(
        self, target: str, alerts: Iterable[Alert], first_pause: timedelta, max_pause: timedelta
    ) -> tuple[int, datetime]:
        """The target has not taken these: how often in a row it was tried by now, and when (UTC) it may be tried again.

        The pause doubles with each attempt, except for alerts that were sent within a pause.
        """
        with unavailable(), self._connection.transaction():
            self._execute(
                f"insert into {DELIVERIES} select key, %(target)s, 1, now(), null from unnest(%(keys)s::text[]) key "
                "on conflict (alert, target) do update set attempts = alert_delivery.attempts + 1",
                {"target": target, "keys": [alert.key for alert in alerts]},
            )
            # One alert is tried again at a time, so that the attempts after each one's first are those of the target.
            [(attempts, next_attempt_at)] = self._execute(
                f"with tried as (select 1 + sum(attempts - 1) as attempts, max(next_attempt_at) as until "
                f"from {DELIVERIES} where target = %(target)s and delivered_at is null) "
                f"update {DELIVERIES} each set next_attempt_at = case when until > now() then until "
                "else now() + least(%(max)s, %(first)s * 2 ^ least(tried.attempts - 1, 30)) end from tried "
                "where target = %(target)s and delivered_at is null and alert = any(%(keys)s) "
                "returning tried.attempts::int, next_attempt_at",
                {"target": target, "keys": [alert.key for alert in alerts], "first": first_pause, "max": max_pause},
            ).fetchall()[:1]
        return attempts, next_attempt_at

    def overdue(self, after: timedelta) -> int:
        """How many alerts have not been delivered so long after they were raised."""
        [(count,)] = self._execute(
            f"select count(*) from {TABLE} where delivered_at is null and raised_at < now() - %s", (after,)
        )
        return count

    def settle(self, targets: Collection[str]) -> None:
        """Alerts that all of the targets, if there are any, have taken are delivered; other targets are dropped."""
        with unavailable(), self._connection.transaction():
            self._execute(
                f"update {TABLE} set delivered_at = now() where delivered_at is null and %s::text[] <@ array("
                f"select target from {DELIVERIES} where alert = key and alert_delivery.delivered_at is not null)",
                (list(targets),),
            )
            self._execute(
                f"delete from {DELIVERIES} where delivered_at is null and not target = any(%s)", (list(targets),)
            )

    def open(self) -> list[Open]:
        """The alerts whose failed days have not been reported as landed, with what is missing according to the ledger."""
        rows = self._execute(
            f"select key, title, text, failed, good_news, raised_at from {TABLE} "
            "where recovered_at is null and failed <> '{}' order by raised_at, key"
        ).fetchall()
        return [self._open(_alert(*alert), raised_at.astimezone(UTC)) for *alert, raised_at in rows]

    def _open(self, alert: Alert, raised_at: datetime) -> Open:
        missing = ledger.missing_since(self._connection, alert.failed, raised_at)
        return Open(
            alert, raised_at, {asset: days for asset, days in missing.items() if days or not alert.failed[asset]}
        )

    def recover(self, recovered: Iterable[Alert], news: Alert) -> None:
        """The failed days of these alerts have landed, which the new alert reports."""
        with unavailable(), self._connection.transaction():
            keys = [alert.key for alert in recovered]
            self._execute(f"update {TABLE} set recovered_at = now() where key = any(%s)", (keys,))
            self.add(news)


def _alert(key: str, title: str, text: str, failed: dict[str, list[str]], good_news: bool) -> Alert:
    days = {asset: tuple(map(date.fromisoformat, days)) for asset, days in failed.items()}
    return Alert(key, title, text, days, good_news)
