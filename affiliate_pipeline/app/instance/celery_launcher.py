"""The launcher for runs in Celery, for a `dagster.yaml` of the user's; needs the package `dagster-celery`."""

from dagster_celery.launcher import CeleryRunLauncher

from affiliate_pipeline.app.instance.launcher import RunHealth


class CeleryLauncher(RunHealth, CeleryRunLauncher):
    """Dagster's launcher for Celery, which also notices runs whose processes have died.

    Its configuration is that of `CeleryRunLauncher`. A run waits in the broker's queue with the status STARTING, so
    `start_timeout_seconds` of the run monitoring has to exceed the longest wait.
    """
