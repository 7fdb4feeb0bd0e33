"""The launcher for runs in Kubernetes, for a `dagster.yaml` of the user's; needs the package `dagster-k8s`."""

from dagster_k8s import K8sRunLauncher

from affiliate_pipeline.app.instance.launcher import RunHealth


class K8sLauncher(RunHealth, K8sRunLauncher):
    """Dagster's launcher for Kubernetes, which also notices runs whose processes have died.

    Its configuration is that of `K8sRunLauncher`.
    """
