"""The sensor that sends the outbox's alerts and reports when failed days have landed."""

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, timedelta
from itertools import groupby
from operator import itemgetter

import dagster as dg

from affiliate_pipeline.defs.dagster_internals import sensor
from affiliate_pipeline.defs.placement import OWN, Placement
from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.monitoring import alerts, delivery
from affiliate_pipeline.monitoring.outbox import TABLE, OpenAlert, Outbox

# After a tick that sent to a target, nothing more is sent to it for this long: so alerts of several ticks are bundled.
MIN_INTERVAL = timedelta(seconds=30)
# The pause after a failed attempt doubles with each further failure, from the first to the longest.
FIRST_PAUSE = timedelta(seconds=15)
MAX_PAUSE = timedelta(minutes=30)
# A tick has to end within 60 s; the next tick sends the rest.
MAX_SENDING_S = 25
MATERIALIZATIONS_READ = 1000
# Unix times, by asset and day; the day is None if the asset is not partitioned.
_LastMaterialized = Mapping[tuple[str, date | None], float]


class Undelivered(Exception):
    """Some of ALERT_URLS did not accept their alerts; delivery to them is retried."""


def build_alert_delivery(endpoints: Sequence[Endpoint], placement: Placement = OWN) -> dg.SensorDefinition:
    """The sensor that delivers the outbox's alerts and reports when failed days have landed.

    A day of one of the `endpoints` also counts as landed if its fallback has landed it.
    """
    # By asset, the other asset that can land its days as a fallback.
    fallbacks: dict[str, str] = {}
    for endpoint in endpoints:
        fallback = endpoint.timetable.fallback
        if fallback:
            fallbacks[endpoint.key] = fallback.asset

    @sensor(
        name=placement.name("alert_delivery"),
        default_status=placement.monitoring,
        required_resource_keys=placement.required,
        minimum_interval_seconds=10,
        description="Sends alerts to their targets, several at once as one message; retries targets that did not accept theirs; "
        "reports when all failed days of an alert have landed.",
    )
    def alert_delivery(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        return _evaluate(context, placement, fallbacks)

    return alert_delivery


def _evaluate(context: dg.SensorEvaluationContext, placement: Placement, fallbacks: Mapping[str, str]) -> dg.SkipReason:
    """Report recoveries, then deliver due alerts; raises `Undelivered` if a target did not accept its alerts."""
    pipeline = placement.pipeline(context)
    variable = pipeline.variable("ALERT_URLS")  # its name, for messages
    urls = pipeline.alerts().urls(variable)
    with pipeline.outbox() as outbox, outbox.try_exclusive() as is_exclusive:
        if not is_exclusive:
            return dg.SkipReason("another process is delivering")
        try:
            _report_recovered(outbox, context.instance, placement, fallbacks)
        finally:
            # Send alerts even if the search for landed days fails.
            problems = _deliver(outbox, urls, variable)
            for problem in problems:
                context.log.error(problem)
    if problems:
        raise Undelivered("; ".join(problems))
    return dg.SkipReason("every alert that could be sent in this tick has been sent")


def _deliver(outbox: Outbox, urls: Sequence[str], variable: str) -> list[str]:
    """Send due alerts for up to `MAX_SENDING_S` and record the results; return the failures.

    They name a URL, which contains secrets, only by its position.
    """
    targets = {delivery.fingerprint(url): (position, url) for position, url in enumerate(urls, start=1)}
    # Targets that have failed come last, because they may take all the time.
    failing = outbox.failing_targets()
    in_order = sorted(targets, key=lambda target: target in failing)
    deadline = time.monotonic() + MAX_SENDING_S

    problems: list[str] = []
    for target in in_order:
        position, url = targets[target]
        problem = _send_due(outbox, target, url, deadline)
        if problem:
            problems.append(f"{variable}: entry {position} {problem}")
    outbox.complete_deliveries(targets)
    return problems


def _send_due(outbox: Outbox, target: str, url: str, deadline: float) -> str | None:
    """Send the target's due alerts and record the results, until the deadline or a failure; return the failure."""
    for message in _messages(outbox.due(target)):
        if time.monotonic() > deadline:
            break
        problem = delivery.send(url, message)
        if problem:
            attempts, next_attempt = outbox.record_failure(target, message.alerts, FIRST_PAUSE, MAX_PAUSE)
            return (
                f"{problem} (attempt {attempts}: {message.title}); undelivered alerts for it in "
                f"{TABLE}: {outbox.count_undelivered(target)}; next attempt at {next_attempt:%H:%M:%S} UTC"
            )
        outbox.record_delivery(target, message.alerts, MIN_INTERVAL)
    return None


def _messages(due: Sequence[tuple[alerts.Alert, int]]) -> Iterator[delivery.Message]:
    """Bundle alerts with the same number of failed attempts; unless it is 0, the first of each group is alone.

    So an alert that is always rejected ends up alone, and after an outage nearly all are bundled.
    """
    for attempts, pairs in groupby(due, key=itemgetter(1)):
        group = [alert for alert, _ in pairs]
        sent_alone = 1 if attempts else 0
        yield from delivery.messages(group[:sent_alone])
        yield from delivery.messages(group[sent_alone:])


def _report_recovered(
    outbox: Outbox, instance: dg.DagsterInstance, placement: Placement, fallbacks: Mapping[str, str]
) -> None:
    """Mark as recovered the alerts whose failed days have all landed since, and add one alert about them."""
    open_alerts = outbox.open_alerts()
    materialized_at = _last_materialized(instance, open_alerts, placement, fallbacks)
    recovered = [each.alert for each in open_alerts if _has_recovered(each, materialized_at)]
    if recovered:
        outbox.recover(recovered, alerts.recovered(recovered))


def _has_recovered(open_alert: OpenAlert, materialized_at: _LastMaterialized) -> bool:
    """Whether everything that the alert lists as missing has been materialized since it was raised."""
    missing = [(asset, day) for asset, days in open_alert.missing.items() for day in days or (None,)]
    raised_at = open_alert.raised_at.timestamp()
    return all(materialized_at.get(partition, 0) >= raised_at for partition in missing)


def _last_materialized(
    instance: dg.DagsterInstance, open_alerts: Sequence[OpenAlert], placement: Placement, fallbacks: Mapping[str, str]
) -> _LastMaterialized:
    """When each asset and day that an alert lists as missing was last materialized, by the asset or its fallback.

    Read from Dagster's events: the ledger does not show days that were retained or landed by a fallback, nor assets
    without an endpoint.
    """
    materialized_at: dict[tuple[str, date | None], float] = {}
    for asset in sorted({asset for each in open_alerts for asset in each.missing}):
        about_asset = [each for each in open_alerts if asset in each.missing]
        days = {f"{day}" for each in about_asset for day in each.missing[asset]}
        oldest = min(each.raised_at for each in about_asset)
        for key in filter(None, (asset, fallbacks.get(asset))):
            records_filter = dg.AssetRecordsFilter(
                placement.key(key), asset_partitions=sorted(days) or None, after_timestamp=oldest.timestamp()
            )
            for record in _materializations(instance, records_filter):
                day = date.fromisoformat(record.partition_key) if record.partition_key else None
                materialized_at[asset, day] = max(record.timestamp, materialized_at.get((asset, day), 0))
    return materialized_at


def _materializations(
    instance: dg.DagsterInstance, records_filter: dg.AssetRecordsFilter
) -> Iterator[dg.EventLogRecord]:
    """All materializations that match the filter, fetched page by page."""
    cursor, has_more = None, True
    while has_more:
        page = instance.fetch_materializations(records_filter, MATERIALIZATIONS_READ, cursor)
        yield from page.records
        cursor, has_more = page.cursor, page.has_more
