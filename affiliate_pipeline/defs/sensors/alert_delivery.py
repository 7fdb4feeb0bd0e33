"""The sensor that sends what is in the outbox, and tells when what failed has landed. What alerts there are is decided
elsewhere."""

import time
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from itertools import groupby
from operator import itemgetter

import dagster as dg
from dagster import DagsterInstance

from affiliate_pipeline.defs.dagster_internals import sensor
from affiliate_pipeline.defs.resources import Installation
from affiliate_pipeline.exchanges.endpoint import retention_of
from affiliate_pipeline.exchanges.registry import ENDPOINTS
from affiliate_pipeline.monitoring import alerts, delivery
from affiliate_pipeline.monitoring.delivery import Alerts
from affiliate_pipeline.monitoring.outbox import TABLE, Open, Outbox

# A burst that lasts longer than a tick is folded by sending to nobody more often than this.
QUIET = timedelta(seconds=30)
FIRST_PAUSE = timedelta(seconds=15)
LONGEST_PAUSE = timedelta(minutes=30)
# A tick has to end within 60 s; what is left is sent by the next.
SENDING_S = 25
MATERIALIZATIONS_READ = 1000
# Assets by the key of the one whose days they can land as well.
SECOND_CHANCES = {
    endpoint.key: (retention.fallback.key,)
    for endpoint in ENDPOINTS
    if (retention := retention_of(endpoint)) and retention.fallback
}


class Undelivered(Exception):
    """Some of ALERT_URLS have not taken what they were sent; they are tried again."""


@sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=10,
    description="Sends alerts to ALERT_URLS: several at once as one message, again where one could not be reached, and "
    "a message when all failed days of an alert have landed.",
)
def alert_delivery(context: dg.SensorEvaluationContext, installation: dg.ResourceParam[Installation]) -> dg.SkipReason:
    urls = Alerts.load(installation.environment.variables).urls()
    with Outbox(installation.database_url()) as outbox, outbox.try_exclusive() as is_exclusive:
        if not is_exclusive:
            return dg.SkipReason("another process is delivering")
        try:
            tell_recovered(outbox, context.instance)
        finally:
            # What waits is sent even if nobody can be told what has landed.
            problems = deliver(outbox, urls)
            for problem in problems:
                context.log.error(problem)
    if problems:
        raise Undelivered("; ".join(problems))
    return dg.SkipReason("what could be sent has been sent")


def deliver(outbox: Outbox, urls: Sequence[str]) -> list[str]:
    """Sends what waits; the problems met, in which URLs are named by their place only.

    What may be sent to a target that failed is decided by `Outbox.due`.
    """
    targets = {delivery.fingerprint(url): (place, url) for place, url in enumerate(urls, start=1)}
    problems: list[str] = []
    failing = outbox.failing()
    deadline = time.monotonic() + SENDING_S
    # Targets that have failed come last, because they may take all the time.
    for target, (place, url) in sorted(targets.items(), key=lambda each: each[0] in failing):
        for message in _messages(outbox.due(target)):
            if time.monotonic() > deadline:
                break
            if problem := delivery.send(url, message):
                attempts, next_attempt = outbox.failed(target, message.alerts, FIRST_PAUSE, LONGEST_PAUSE)
                problems.append(
                    f"ALERT_URLS: entry {place} {problem} (try {attempts}: {message.title}); {outbox.waiting(target)} "
                    f"alerts wait for it in {TABLE}; next try at {next_attempt:%H:%M:%S} UTC"
                )
                break
            outbox.delivered(target, message.alerts, QUIET)
    outbox.settle(targets)
    return problems


def _messages(due: Sequence[tuple[alerts.Alert, int]]) -> Iterator[delivery.Message]:
    """Bundles alerts that failed equally often; of those that failed before, the first is sent alone.

    So an alert that is always rejected ends up alone, and after an outage nearly all are bundled.
    """
    for attempts, each in groupby(due, key=itemgetter(1)):
        group = [alert for alert, _ in each]
        alone = 1 if attempts else 0
        yield from delivery.messages(group[:alone])
        yield from delivery.messages(group[alone:])


def tell_recovered(outbox: Outbox, instance: DagsterInstance) -> None:
    """Raises one message about all alerts whose failed days have landed since."""
    waiting = outbox.open()
    materialized = _materialized(instance, waiting)
    recovered = [
        each.alert
        for each in waiting
        if all(
            any(at >= each.raised_at.timestamp() for at in materialized.get((asset, day), ()))
            for asset, days in each.missing.items()
            for day in days or (None,)
        )
    ]
    if recovered:
        outbox.recover(recovered, alerts.recovered(recovered))


def _materialized(instance: DagsterInstance, waiting: Sequence[Open]) -> dict[tuple[str, date | None], list[float]]:
    """When assets were materialized (Unix time), by asset and day, as far as that may matter: of a day that was kept, or
    landed otherwise, and of an asset that is no endpoint, the ledger does not tell."""
    found: dict[tuple[str, date | None], list[float]] = {}
    for asset in sorted({asset for each in waiting for asset in each.missing}):
        concerned = [each for each in waiting if asset in each.missing]
        for key in (asset, *SECOND_CHANCES.get(asset, ())):
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(
                    dg.AssetKey.from_user_string(key),
                    asset_partitions=sorted({f"{day}" for each in concerned for day in each.missing[asset]}) or None,
                    after_timestamp=min(each.raised_at for each in concerned).timestamp(),
                ),
                limit=MATERIALIZATIONS_READ,
            ).records
            for record in records:
                day = date.fromisoformat(record.partition_key) if record.partition_key else None
                found.setdefault((asset, day), []).append(record.timestamp)
    return found
