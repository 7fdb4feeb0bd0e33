"""Which settings count in a Dagster instance. The instance's storage decides, since it makes an instance the application's.

The storage itself is in `storage`: importing it takes longer than the rest of the code location.
"""

from typing import ClassVar

import dagster as dg

from affiliate_pipeline.environment import Environment, application, configured


class Loaded:
    """What counted for the application's storage that this process loaded last."""

    environment: ClassVar[Environment | None] = None


def environment_of(instance: dg.DagsterInstance) -> Environment:
    """What counts for a run, schedule or sensor of the instance: what the application uses, if the instance has its storage
    on that very database; otherwise only what is configured.

    Another team's instance would show a day as landed that is in a server of ours which it knows nothing of, or that is
    the sandbox's.
    """
    environment = application()
    url = getattr(instance.event_log_storage, "postgres_url", "")
    return environment if environment.is_embedded_at(url) else configured()


def environment_of_tick(context: dg.SensorEvaluationContext | dg.ScheduleEvaluationContext) -> Environment:
    """The same for a tick. An instance in memory has no reference, and is not the application's."""
    return environment_of(context.instance) if context.instance_ref else configured()


def environment_of_process() -> Environment:
    """The same while the code location loads and no instance is at hand: each process of Dagster's loads its own first."""
    return Loaded.environment or configured()
