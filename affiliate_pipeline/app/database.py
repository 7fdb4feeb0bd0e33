"""Where the application's database is started: the configured one is used as it is, otherwise the embedded server."""

from dataclasses import replace

from affiliate_pipeline.app.embedded_server import server
from affiliate_pipeline.domain.environment import DATABASE_VARIABLE, Environment


def is_embedded(environment: Environment) -> bool:
    return DATABASE_VARIABLE not in environment.variables


def started(environment: Environment) -> Environment:
    """The environment with its database running; raises `ServerError`."""
    if not is_embedded(environment):
        return environment
    return replace(environment, embedded_url=server.ensure(environment.home, environment.mode))


def if_running(environment: Environment) -> Environment | None:
    """`started`, without starting or creating anything: None if the embedded server does not run."""
    if not is_embedded(environment):
        return environment
    url = server.url_if_running(environment.home, environment.mode)
    return replace(environment, embedded_url=url) if url else None
