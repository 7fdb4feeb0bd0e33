"""Which process executes a step, and on which machine."""

from types import SimpleNamespace

import pytest

from affiliate_pipeline.defs.executor import StepExecutor, executor_of
from affiliate_pipeline.domain.problem import SettingsError

CELERY = {
    "AFFILIATE_EXECUTOR": "celery",
    "AFFILIATE_CELERY_BROKER": "redis://:secret@127.0.0.1/0",
    "AFFILIATE_CELERY_BACKEND": "redis://:secret@127.0.0.1/1",
}


class Stub:
    """An executor that only returns its name."""

    def __init__(self, name: str):
        self.execute = lambda *_: name


@pytest.mark.parametrize(("steps", "executor"), [(["a"], "in process"), (["a", "b"], "processes"), ([], "processes")])
def test_only_a_single_step_is_executed_in_the_process_of_the_run(steps, executor):
    step_executor = StepExecutor(Stub("in process"), Stub("processes"))  # pyright: ignore[reportArgumentType]

    assert step_executor.execute(None, SimpleNamespace(step_keys_to_execute=steps)) == executor


@pytest.mark.parametrize(
    ("variables", "name"), [({}, "multiprocess"), (CELERY, "celery"), ({"AFFILIATE_EXECUTOR": "k8s"}, "k8s")]
)
def test_the_environment_chooses_the_executor(variables, name):
    assert executor_of(variables, str).name == name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"AFFILIATE_EXECUTOR": "threads"}, "AFFILIATE_EXECUTOR is not multiprocess, celery or k8s"),
        ({"AFFILIATE_CELERY_BROKER": ""}, "AFFILIATE_CELERY_BROKER is not set"),
        (
            {"AFFILIATE_CELERY_BACKEND": "rpc://"},
            "AFFILIATE_CELERY_BACKEND is not a redis:// URL; another backend, such as rpc",
        ),
        ({"AFFILIATE_CELERY_BACKEND": "redis://"}, "AFFILIATE_CELERY_BACKEND is not a redis:// URL"),
        (
            {"AFFILIATE_CELERY_BACKEND": "rediss://control/0"},
            "AFFILIATE_CELERY_BACKEND is a rediss:// URL, to which Celery",
        ),
        ({"AFFILIATE_CELERY_BROKER": "redis://:a/b@control"}, "AFFILIATE_CELERY_BROKER has a malformed host or port"),
    ],
)
def test_an_unusable_setting_is_refused_by_name(changed, message):
    with pytest.raises(SettingsError, match=message) as refused:
        executor_of({**CELERY, **changed}, str)
    assert "secret" not in f"{refused.value}"


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("AFFILIATE_CELERY_BROKER", "amqp://u:p@a:5672;amqp://u:p@b:5672//"),
        ("AFFILIATE_CELERY_BACKEND", "rediss://:p@control:6379/0?ssl_cert_reqs=CERT_REQUIRED"),
    ],
)
def test_several_brokers_and_an_encrypted_backend_are_permitted(variable, url):
    assert executor_of({**CELERY, variable: url}, str).name == "celery"


def test_dagster_shows_no_url_of_celery():
    config = executor_of(CELERY, str).config_schema
    assert config.default_provided is False or config.default_value == {}
