"""The settings that apply in a Dagster instance: the application's if the instance uses the application's storage.

The storage itself is in `storage`: importing it takes longer than the rest of the code location.
"""

from typing import ClassVar

import dagster as dg

from affiliate_pipeline.environment import Environment, application, configured


class Loaded:
    """The environment of the application's storage that this process loaded last."""

    environment: ClassVar[Environment | None] = None


def environment_of(instance: dg.DagsterInstance) -> Environment:
    """The settings for a run, schedule or sensor of the instance: the application's if Dagster's storage is in the
    application's database; otherwise only what is configured.

    Without this rule, another team's instance would report days as landed that are in our embedded server or are
    sandbox data.
    """
    environment = application()
    url = getattr(instance.event_log_storage, "postgres_url", "")
    return environment if environment.is_embedded_at(url) else configured()


def environment_of_tick(context: dg.SensorEvaluationContext | dg.ScheduleEvaluationContext) -> Environment:
    """`environment_of` for a tick. An in-memory instance has no reference and is never the application's."""
    return environment_of(context.instance) if context.instance_ref else configured()


def environment_of_process() -> Environment:
    """The settings while the code location loads, without an instance: the process has loaded Dagster's storage before."""
    return Loaded.environment or configured()
