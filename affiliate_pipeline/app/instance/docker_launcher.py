"""The launcher for runs in Docker, for a `dagster.yaml` of the user's; needs the package `dagster-docker`."""

from dagster_docker import DockerRunLauncher

from affiliate_pipeline.app.instance.launcher import RunHealth


class DockerLauncher(RunHealth, DockerRunLauncher):
    """Dagster's launcher for Docker, which also notices runs whose processes have died.

    Its configuration is that of `DockerRunLauncher`.
    """
