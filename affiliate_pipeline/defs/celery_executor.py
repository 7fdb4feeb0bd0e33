"""Executes each step of a run as a Celery task, with Dagster's own task, workers and executor loop.

`dagster_celery`'s executor waits for results in Celery's backend, forever if a worker dies. This one reads the events
in Dagster's storage, as Dagster's other remote executors do, and fails a step that no worker will ever finish.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import dagster_celery.make_app
import dagster_celery.tasks
import kombu.transport.pyamqp
from dagster_celery import defaults
from dagster_celery.tags import (
    DAGSTER_CELERY_QUEUE_TAG,
    DAGSTER_CELERY_RUN_PRIORITY_TAG,
    DAGSTER_CELERY_STEP_PRIORITY_TAG,
)
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from affiliate_pipeline.defs.dagster_internals import (
    NO_RETRIES,
    CheckStepHealthResult,
    EngineEventData,
    StepDelegatingExecutor,
    StepHandler,
    StepHandlerContext,
    pack_value,
)
from affiliate_pipeline.domain.problem import AffiliateError
from affiliate_pipeline.domain.redaction import redact

CHECK_S = 10
# How long a task may be invisible (in neither the broker nor any worker) before its step fails. While a task passes
# from the queue to a worker, it is invisible for less than a second; a worker on a busy machine may miss a few queries.
LOST_S = 60
# How long workers have to respond to a query, and to a second query about the tasks that were found nowhere.
RESPONSE_S = 2
LATE_RESPONSE_S = 8
# How long to repeat the submission of a task while the broker cannot be reached.
SUBMIT_S = 300

# These packages have no types.
_untyped_make_app: Any = dagster_celery.make_app
_untyped_tasks: Any = dagster_celery.tasks
_defaults: Any = defaults
_untyped_rabbitmq: Any = kombu.transport.pyamqp.Transport
# What is raised if the broker or the result backend cannot be reached or used.
BROKER_ERRORS: tuple[type[Exception], ...] = (
    OperationalError,
    RedisError,
    OSError,
    *_untyped_rabbitmq.connection_errors,
    *_untyped_rabbitmq.channel_errors,
)

_SETTINGS: dict[str, Any] = {
    "broker_transport_options": _defaults.broker_transport_options,
    "task_publish_retry_policy": {
        "max_retries": SUBMIT_S,  # about a second apart
        "interval_start": 0,
        "interval_step": 0.2,
        "interval_max": 1,
    },
}
# Whether a process that executes the step of a run is connected to the database.
IsStepLive = Callable[[str, str], bool]

log = logging.getLogger(__name__)


def responding_workers(broker: str) -> list[str]:
    """The names of the workers that respond; raises `BROKER_ERRORS`, or ValueError if the URL is malformed."""
    app = _app_of(broker)
    if broker.startswith("redis"):
        # Otherwise, kombu would wait forever for a server that does not respond.
        limits = {"socket_connect_timeout": RESPONSE_S, "socket_timeout": RESPONSE_S}
        app.conf.broker_transport_options = {**app.conf.broker_transport_options, **limits}
    for timeout_s in (RESPONSE_S, LATE_RESPONSE_S):
        responses = app.control.inspect(timeout=timeout_s).ping()
        if responses:
            return sorted(responses)
    return []


def ping_backend(broker: str, backend: str) -> None:
    """Raise `BROKER_ERRORS` if the result backend does not respond, or ValueError if its URL is malformed."""
    limits = {"redis_socket_connect_timeout": RESPONSE_S, "redis_socket_timeout": RESPONSE_S}
    app = _untyped_make_app.make_app({"broker": broker, "backend": backend, "config_source": {**_SETTINGS, **limits}})
    app.backend.client.ping()


def _app_of(broker: str) -> Any:
    # Without a backend: with one, Celery subscribes to each task's result, and the subscription fails for good once the
    # backend has been restarted.
    return _untyped_make_app.make_app({"broker": broker, "backend": "disabled://", "config_source": _SETTINGS})


class CeleryExecutor(StepDelegatingExecutor):
    """Dagster's executor of remote steps, with Celery's workers."""

    def __init__(self, broker: str, backend: str, is_step_live: IsStepLive):
        self._steps = CelerySteps(broker, backend, is_step_live)
        super().__init__(self._steps, retries=NO_RETRIES, check_step_health_interval_seconds=CHECK_S)
        self._ended_steps: set[str | None] = set()

    def _pop_events(
        self, instance: dg.DagsterInstance, run_id: str, seen_storage_ids: set[int]
    ) -> Sequence[dg.DagsterEvent]:
        """The run's new events, without those that a step records after its success or failure.

        A step that was failed as lost may still be running: its worker has regained its network, or the broker has
        delivered its task again.
        """
        events: list[dg.DagsterEvent] = []
        for event in super()._pop_events(instance, run_id, seen_storage_ids):
            if event.step_key is None or event.step_key not in self._ended_steps:
                events.append(event)
            if event.is_step_failure or event.is_step_success:
                self._ended_steps.add(event.step_key)
                self._steps.drop(event.step_key)
        return events


@dataclass
class _Task:
    """The Celery task of a step, with the last worker that reported it, and when it was last seen."""

    id: str
    run_id: str
    step_key: str
    queue: str
    seen_at: float
    worker: str | None = None


class CelerySteps(StepHandler):
    """Submits steps to Celery's workers, and checks whether a worker still executes them."""

    def __init__(self, broker: str, backend: str, is_step_live: IsStepLive):
        self._app = _app_of(broker)
        # Only reads the state of tasks.
        self._results: Any = _untyped_make_app.make_app({"broker": broker, "backend": backend}).backend
        self._is_step_live = is_step_live
        self._celery_task: Any = _untyped_tasks.create_task(self._app)
        self._tasks: dict[str, _Task] = {}
        self._queried_at = 0.0

    @property
    def name(self) -> str:
        """How Dagster names this in its events."""
        return "CelerySteps"

    def launch_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Submit the step's task to its queue."""
        step_key = _step_key(step_handler_context)
        context: Any = step_handler_context.get_step_context(step_key)
        tags = context.step.tags
        queue = tags.get(DAGSTER_CELERY_QUEUE_TAG, _defaults.task_default_queue)
        step_priority = int(tags.get(DAGSTER_CELERY_STEP_PRIORITY_TAG, _defaults.task_default_priority))
        run_priority = int(step_handler_context.dagster_run.tags.get(DAGSTER_CELERY_RUN_PRIORITY_TAG, 0))

        signature = self._celery_task.si(
            execute_step_args_packed=pack_value(step_handler_context.execute_step_args),
            executable_dict=context.reconstructable_job.to_dict(),
        )
        result = signature.apply_async(
            priority=step_priority + run_priority,
            queue=queue,
            routing_key=f"{queue}.execute_plan",
        )
        self._tasks[step_key] = _Task(
            id=result.id,
            run_id=step_handler_context.execute_step_args.run_id,
            step_key=step_key,
            queue=queue,
            seen_at=time.monotonic(),
        )
        yield _event(context, f"Submitted to Celery's queue {queue} as task {result.id}")

    def check_step_health(self, step_handler_context: StepHandlerContext) -> CheckStepHealthResult:
        """Unhealthy if the task failed outside of Dagster, or if it has not been seen for `LOST_S`."""
        task = self._tasks[_step_key(step_handler_context)]
        try:
            meta = self._results.get_task_meta(task.id)
            if meta["status"] == "FAILURE":
                reason = redact(f"{type(meta['result']).__name__}: {meta['result']}")
                return CheckStepHealthResult.unhealthy(f"the worker could not execute the step ({reason})")
            self._mark_existing_tasks()
        except (*BROKER_ERRORS, AffiliateError) as error:
            what = "database" if isinstance(error, AffiliateError) else "broker or the result backend of Celery"
            log.warning("The %s cannot be reached (%s): the run continues when it can", what, type(error).__name__)
            self._mark_all_tasks()

        if time.monotonic() - task.seen_at < LOST_S:
            return CheckStepHealthResult.healthy()

        worker = _executing_worker(step_handler_context) or task.worker
        where = f"worker {worker} no longer has it" if worker else "no worker has reported it"
        return CheckStepHealthResult.unhealthy(
            f"its Celery task {task.id} is lost: {where}, and it is not in the queue {task.queue}. A worker was "
            "killed or has lost its network, or the broker has lost its data. Rows that had landed are unchanged; "
            "materialize again the days that are shown as failed"
        )

    def terminate_step(self, step_handler_context: StepHandlerContext) -> Iterator[dg.DagsterEvent]:
        """Interrupt the step's task, or remove it from the queue."""
        step_key = _step_key(step_handler_context)
        # Dagster raises SIGINT as an exception of the step.
        self._app.control.revoke(self._tasks[step_key].id, terminate=True, signal="SIGINT")
        yield _event(step_handler_context.get_step_context(step_key), "Revoked the step's Celery task")

    def drop(self, step_key: str | None) -> None:
        """Stop checking the task of this step, which has ended."""
        self._tasks.pop(step_key or "", None)

    def _mark_all_tasks(self) -> None:
        """Set `seen_at` of all tasks: while none can be looked up, none counts as lost. The next check queries at once."""
        self._queried_at = 0.0
        for task in self._tasks.values():
            task.seen_at = time.monotonic()

    def _mark_existing_tasks(self) -> None:
        """Set `seen_at` of the tasks that still exist; queries at most once in `CHECK_S`, for all steps of the run."""
        started_at = time.monotonic()
        if started_at - self._queried_at < CHECK_S:
            return

        def unseen() -> list[_Task]:
            return [task for task in self._tasks.values() if task.seen_at < started_at]

        self._query_workers(unseen(), RESPONSE_S)

        for queue in {task.queue for task in unseen()}:
            queued_ids = self._queued_ids(queue)
            for task in unseen():
                if queued_ids is None or task.id in queued_ids:
                    task.seen_at = started_at

        # A worker on an overloaded machine may not respond in time.
        for task in unseen():
            if self._is_step_live(task.run_id, task.step_key):
                task.seen_at = started_at
        still_unseen = unseen()
        if still_unseen:
            self._query_workers(still_unseen, LATE_RESPONSE_S)

        # The queries may have taken longer than the time between two checks.
        self._queried_at = time.monotonic()

    def _query_workers(self, tasks: Sequence[_Task], timeout_s: float) -> None:
        """Set `worker` and `seen_at` of those tasks that a worker reports within the timeout."""
        by_id = {task.id: task for task in tasks}
        responses: dict[str, dict[str, Any]] = self._app.control.inspect(timeout=timeout_s).query_task(*by_id) or {}
        for worker, tasks_of_worker in responses.items():
            for task_id in tasks_of_worker:
                by_id[task_id].worker = worker
                by_id[task_id].seen_at = time.monotonic()

    def _queued_ids(self, queue: str) -> set[str] | None:
        """The ids of the tasks in the queue; None unless the broker is Redis.

        For None, the caller counts every task as queued: RabbitMQ itself requeues a task as soon as the worker that
        reserved it has lost its connection.
        """
        with self._app.connection_for_read() as connection:
            channel = connection.default_channel
            if connection.transport.driver_type != "redis":
                return None
            with channel.conn_or_acquire() as client:
                # One list per priority; that of priority 0 has the name of the queue.
                other_priorities = [priority for priority in channel.priority_steps if priority]
                lists = [queue, *(f"{queue}{channel.sep}{priority}" for priority in other_priorities)]
                messages: list[Mapping[str, Any]] = [
                    json.loads(text) for key in lists for text in client.lrange(key, 0, -1)
                ]
        return {message["headers"]["id"] for message in messages}


def _executing_worker(context: StepHandlerContext) -> str | None:
    """The worker that has begun to execute the step, from the run's log, where its Celery task records it.

    Needed because a worker may be killed before it has responded to any query.
    """
    run_id = context.execute_step_args.run_id
    step_key = _step_key(context)
    entries = context.instance.all_logs(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
    for entry in reversed(entries):
        if entry.dagster_event is None or entry.step_key != step_key:
            continue
        worker = entry.dagster_event.engine_event_data.metadata.get("Celery worker")
        if worker:
            return f"{worker.value}"
    return None


def _event(step_context: Any, message: str) -> dg.DagsterEvent:
    return dg.DagsterEvent.engine_event(step_context, message, EngineEventData())


def _step_key(context: StepHandlerContext) -> str:
    [step_key] = context.execute_step_args.step_keys_to_execute or []
    return step_key
