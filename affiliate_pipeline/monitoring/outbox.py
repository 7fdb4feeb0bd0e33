"""Storage of alerts, of their deliveries, and of whether their failed days have landed."""

import logging
from collections.abc import Collection, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final, LiteralString

from psycopg.types.json import Jsonb

from affiliate_pipeline.domain.redaction import redact
from affiliate_pipeline.landing import ledger
from affiliate_pipeline.monitoring.alerts import Alert, Kind
from affiliate_pipeline.postgres.errors import as_store_unavailable
from affiliate_pipeline.postgres.locks import Lock, try_locked
from affiliate_pipeline.postgres.table_store import TableStore

TABLE: Final = "affiliate.alert"
# One row per alert and target it was sent to. A target that has accepted an alert gets no other before next_attempt_at.
DELIVERIES: Final = "affiliate.alert_delivery"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenAlert:
    """An alert and, by asset, the failed days that the ledger does not show as landed since.

    An empty set of days: the asset itself has to be materialized.
    """

    alert: Alert
    raised_at: datetime
    missing: dict[str, frozenset[date]]


class Outbox(TableStore):
    """The alerts of one scope, and their deliveries.

    Sets of definitions that share a database have a scope each, since their alerts may have different targets.
    """

    def __init__(self, url: str, scope: str = "") -> None:
        super().__init__(url)
        self._scope = scope

    def add(self, alert: Alert, raised_at: datetime | None = None) -> bool:
        """Add and log the alert unless its key was ever added before; return whether it is new.

        `raised_at` (default: now): the alert's failed days count as recovered only if they land after this time.
        """
        title, text = redact(alert.title), redact(alert.text)
        failed = Jsonb({asset: [day.isoformat() for day in days] for asset, days in alert.failed.items()})
        is_new = self._execute(
            f"insert into {TABLE} (scope, key, title, text, failed, kind, raised_at) "
            "values (%s, %s, %s, %s, %s, %s, coalesce(%s, now())) on conflict do nothing",
            (self._scope, f"{self._scope}{alert.key}", title, text, failed, alert.kind, raised_at),
        ).rowcount
        if is_new:
            # Log it too: perhaps no target is configured.
            log_level = logging.ERROR if alert.kind is Kind.FAILURE else logging.INFO
            log.log(log_level, "%s\n%s", title, text)
        return bool(is_new)

    def has(self, key: str) -> bool:
        """Whether an alert with this key was ever added."""
        return bool(self._execute(f"select from {TABLE} where key = %s", (f"{self._scope}{key}",)).rowcount)

    def try_exclusive(self) -> AbstractContextManager[bool]:
        """Lock the delivery against other processes; yields whether that succeeded.

        Two processes would send everything twice.
        """
        lock = Lock("affiliate_pipeline.alert", self._scope or None)
        return try_locked(self._connection, lock, "the delivery of alerts")

    def due(self, target: str) -> list[tuple[Alert, int]]:
        """The target's due alerts with the number of failed attempts; fewest attempts first, then oldest.

        No alert is due within the interval after the target accepted one. Within the pause after a failure, only alerts
        never sent to it are due: the target may be down, or may have rejected only that one alert.
        """
        rows = self._execute(
            "with paused as ("
            "select bool_or(delivered_at is null) as any_failed, bool_or(delivered_at is not null) as any_accepted "
            f"from {DELIVERIES} "
            "where target = %(target)s and next_attempt_at > now()) "
            "select coalesce(attempts, 0), key, title, text, failed, kind "
            f"from {TABLE} "
            f"left join {DELIVERIES} on alert = key and target = %(target)s "
            "cross join paused "
            "where scope = %(scope)s and alert.delivered_at is null and alert_delivery.delivered_at is null "
            "and any_accepted is not true "
            "and (attempts is null or any_failed is not true) "
            "order by coalesce(attempts, 0), raised_at, key",
            {"target": target, "scope": self._scope},
        )
        return [(_alert(*alert), attempts) for attempts, *alert in rows]

    def count_undelivered(self, target: str) -> int:
        """How many alerts the target has not accepted yet."""
        return self._count_undelivered_where(
            f"not exists (select from {DELIVERIES} delivery "
            "where alert = key and target = %s and delivery.delivered_at is not null)",
            target,
        )

    def count_undelivered_after(self, after: timedelta) -> int:
        """How many alerts are not delivered to every target this long after they were raised."""
        return self._count_undelivered_where("raised_at < now() - %s", after)

    def _count_undelivered_where(self, condition: LiteralString, value: object) -> int:
        query = f"select count(*) from {TABLE} where scope = %s and delivered_at is null and {condition}"
        [(count,)] = self._execute(query, (self._scope, value))
        return count

    def failing_targets(self) -> set[str]:
        """The targets that have not accepted everything that was sent to them."""
        return {target for (target,) in self._execute(f"select target from {DELIVERIES} where delivered_at is null")}

    def record_delivery(self, target: str, alerts: Iterable[Alert], min_interval: timedelta) -> None:
        """Record that the target accepted the alerts: nothing is due for `min_interval`, then its failed alerts are."""
        with as_store_unavailable(), self._connection.transaction():
            self._execute(
                f"insert into {DELIVERIES} (alert, target, attempts, next_attempt_at, delivered_at) "
                "select key, %s, 1, now() + %s, now() from unnest(%s::text[]) key "
                "on conflict (alert, target) do update set attempts = alert_delivery.attempts + 1, "
                "next_attempt_at = excluded.next_attempt_at, delivered_at = excluded.delivered_at",
                (target, min_interval, [alert.key for alert in alerts]),
            )
            self._execute(
                f"update {DELIVERIES} set next_attempt_at = least(next_attempt_at, now()) "
                "where target = %s and delivered_at is null",
                (target,),
            )

    def record_failure(
        self, target: str, alerts: Iterable[Alert], first_pause: timedelta, max_pause: timedelta
    ) -> tuple[int, datetime]:
        """Record that the target did not accept the alerts; return the attempt's number and when (UTC) to retry.

        The number is 1 plus the failed retries of all alerts that the target has not accepted yet. The pause doubles with
        each of these retries. An alert that fails within a pause does not extend it.
        """
        keys = [alert.key for alert in alerts]
        with as_store_unavailable(), self._connection.transaction():
            self._execute(
                f"insert into {DELIVERIES} (alert, target, attempts, next_attempt_at, delivered_at) "
                "select key, %s, 1, now(), null from unnest(%s::text[]) key "
                "on conflict (alert, target) do update set attempts = alert_delivery.attempts + 1",
                (target, keys),
            )
            # While a target is down, a tick of the sensor `alert_delivery` retries at most one alert: the sensor sends
            # the first alert to be retried as a message of its own, and sends the target nothing more in this tick once
            # a message has failed. So the sum of `attempts - 1` over the failed alerts is the number of retries.
            return self._execute(
                "with failing as (select 1 + sum(attempts - 1) as attempts, max(next_attempt_at) as paused_until "
                f"from {DELIVERIES} "
                "where target = %(target)s and delivered_at is null) "
                f"update {DELIVERIES} set next_attempt_at = "
                "case when paused_until > now() then paused_until "
                "else now() + least(%(max)s, %(first)s * 2 ^ least(failing.attempts - 1, 30)) end "
                "from failing "
                "where target = %(target)s and delivered_at is null and alert = any(%(keys)s) "
                "returning failing.attempts::int, next_attempt_at",
                {"target": target, "keys": keys, "first": first_pause, "max": max_pause},
            ).fetchall()[0]

    def complete_deliveries(self, targets: Collection[str]) -> None:
        """Mark as delivered the alerts that all targets accepted; drop failures of removed targets."""
        with as_store_unavailable(), self._connection.transaction():
            self._execute(
                f"update {TABLE} set delivered_at = now() "
                "where scope = %s and delivered_at is null and %s::text[] <@ array("
                f"select target from {DELIVERIES} where alert = key and alert_delivery.delivered_at is not null)",
                (self._scope, list(targets)),
            )
            self._execute(
                f"delete from {DELIVERIES} using {TABLE} "
                "where key = alert and scope = %s and alert_delivery.delivered_at is null and not target = any(%s)",
                (self._scope, list(targets)),
            )

    def open_alerts(self) -> list[OpenAlert]:
        """The alerts whose failed days have not been reported as landed."""
        rows = self._execute(
            f"select raised_at, key, title, text, failed, kind from {TABLE} "
            "where scope = %s and recovered_at is null and failed <> '{}' "
            "order by raised_at, key",
            (self._scope,),
        ).fetchall()
        return [self._open_alert(raised_at, _alert(*alert)) for raised_at, *alert in rows]

    def _open_alert(self, raised_at: datetime, alert: Alert) -> OpenAlert:
        not_landed_since = ledger.missing_since(self._connection, alert.failed, raised_at)
        missing = {
            asset: days
            for asset, days in not_landed_since.items()
            # An asset without failed days stays missing: the ledger does not show whether it has been materialized.
            if days or not alert.failed[asset]
        }
        return OpenAlert(alert, raised_at, missing)

    def recover(self, recovered: Iterable[Alert], news: Alert) -> None:
        """Mark these alerts, as returned by `open_alerts`, as recovered, and add the alert that reports it."""
        with as_store_unavailable(), self._connection.transaction():
            # Keys as stored, which begin with the scope, unlike that of `news`.
            keys = [alert.key for alert in recovered]
            self._execute(f"update {TABLE} set recovered_at = now() where key = any(%s)", (keys,))
            self.add(news)


def _alert(key: str, title: str, text: str, failed: dict[str, list[str]], kind: str) -> Alert:
    """The alert as stored; its key has the scope as prefix."""
    days = {asset: tuple(map(date.fromisoformat, texts)) for asset, texts in failed.items()}
    return Alert(key, title, text, days, Kind(kind))
