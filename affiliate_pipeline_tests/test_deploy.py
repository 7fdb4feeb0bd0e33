"""The files in `deploy/` and the commands in docs/deploying.md: they parse, agree with each other and with the code."""

import re
import shlex
import shutil
import subprocess
import tomllib
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from affiliate_pipeline.app.dagster_client import LOCATION
from affiliate_pipeline.domain.settings import known_variables
from affiliate_pipeline.monitoring.delivery import AlertSettings
from affiliate_pipeline_tests.e2e.containerfile import Image, instructions

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
CONTAINERFILE = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
VALUES: dict[str, Any] = yaml.safe_load((DEPLOY / "kubernetes" / "values.yaml").read_text(encoding="utf-8"))
DOCUMENT = (ROOT / "docs" / "deploying.md").read_text(encoding="utf-8")
INSTANCE: dict[str, Any] = yaml.safe_load((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
APPLICATION = {name: each for name, each in SERVICES.items() if each.get("image", "").startswith("affiliate-pipeline:")}
EXTRAS = {"ui", "celery", "k8s"}
# Keys of the Compose specification: those of a file, and those of a service that compose.yaml uses.
TOP_LEVEL = {"name", "services", "configs", "secrets", "volumes", "networks", "include"}
SERVICE = {
    *(
        "build",
        "cap_drop",
        "command",
        "configs",
        "depends_on",
        "env_file",
        "environment",
        "healthcheck",
        "image",
        "init",
    ),
    *("logging", "ports", "read_only", "restart", "secrets", "security_opt", "shm_size", "stop_grace_period", "tmpfs"),
    *("user", "volumes"),
}
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
# Variables that Dagster and its chart read.
OF_DAGSTER = {
    "DAGSTER_HOME",
    "DAGSTER_EVENT_BATCH_SIZE",
    "DAGSTER_K8S_INSTANCE_CONFIG_MAP",
    "DAGSTER_K8S_PG_PASSWORD_SECRET",
    "DAGSTER_K8S_PIPELINE_RUN_ENV_CONFIGMAP",
}


def blocks(kind: str) -> list[str]:
    """The code blocks of the document whose fence has this kind."""
    return re.findall(rf"(?ms)^ *```{re.escape(kind)}\n(.*?)^ *```$", DOCUMENT)


def programs() -> set[str]:
    """The commands that the dependencies and the extras of an image install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = [each for name, each in project["optional-dependencies"].items() if name in EXTRAS]
    declared = {canonicalize_name(Requirement(each).name) for each in chain(project["dependencies"], *optional)}
    return {
        each.name
        for each in entry_points(group="console_scripts")
        if each.dist and canonicalize_name(each.dist.name) in declared | {"affiliate-pipeline"}
    }


def final(command: list[str]) -> list[str]:
    """The program that the command executes in the end, and its arguments."""
    if command[0] != "sh":
        return command
    script = command[-1].replace("$$", "$")
    return shlex.split(script.partition("exec ")[2].partition("<<")[0])


def test_compose_has_only_keys_of_the_specification_and_declares_what_it_uses():
    assert {key for key in COMPOSE if not key.startswith("x-")} <= TOP_LEVEL
    for name, service in SERVICES.items():
        assert service.keys() <= SERVICE, name
        for other, dependency in service.get("depends_on", {}).items():
            assert dependency["condition"] in CONDITIONS
            if dependency["condition"] == "service_healthy":
                # The application's image has a HEALTHCHECK.
                assert "test" in SERVICES[other].get("healthcheck", {}) or SERVICES[other] in APPLICATION.values()
        volumes = [volume.split(":")[0] for volume in service.get("volumes", [])]
        assert {volume for volume in volumes if not volume.startswith(".")} <= COMPOSE["volumes"].keys()
        assert {*service.get("secrets", [])} <= COMPOSE["secrets"].keys()
        assert {each["source"] for each in service.get("configs", [])} <= COMPOSE["configs"].keys()


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_restricted_and_restarted(name):
    service = SERVICES[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    user = Image(CONTAINERFILE).user if name in APPLICATION else service["user"]
    assert re.fullmatch("[1-9][0-9]*:[1-9][0-9]*", user)
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert name == "migration" or (
        service["restart"] == "unless-stopped" and not service.get("healthcheck", {}).get("disable")
    )


def test_compose_has_every_process_two_workers_and_a_persistent_queue():
    workers = [name for name, service in SERVICES.items() if "worker" in final(service.get("command", ["dagster"]))]
    assert len(workers) == 2
    assert {"postgres", "redis", "code-server", "webserver", "daemon", *workers} < SERVICES.keys()
    assert "--appendonly" in final(SERVICES["redis"]["command"])


def test_every_command_is_a_program_that_the_extras_install():
    commands = [
        Image(CONTAINERFILE).command,
        *(final(service["command"]) for service in APPLICATION.values() if "command" in service),
        *(
            shlex.split(line)
            for kind in ("sh control", "sh worker")
            for text in blocks(kind)
            for line in text.splitlines()
        ),
    ]
    assert len(commands) > 10
    assert {command[0] for command in commands} <= programs()


def test_the_document_and_compose_run_the_same_commands():
    [control], [worker] = blocks("sh control"), blocks("sh worker")
    documented = [shlex.split(line) for line in (control + worker).splitlines()]
    containers = [
        Image(CONTAINERFILE).command,
        *(final(each["command"]) for each in APPLICATION.values() if "command" in each),
    ]

    def without_addresses(command: list[str]) -> tuple[str, ...]:
        text = " ".join(command).partition(" -n worker")[0]
        return tuple(re.sub(r" -h [0-9.]+", "", text).split())

    assert {without_addresses(each) for each in documented} == {without_addresses(each) for each in containers}


def test_shell_commands_have_no_syntax_errors():
    scripts = [each for kind in ("sh", "sh control", "sh worker") for each in blocks(kind)]
    for service in SERVICES.values():
        texts = [service.get("command", []), service.get("healthcheck", {}).get("test", [])]
        scripts += [text[-1].replace("$$", "$") for text in texts if text and text[0] in ("sh", "CMD-SHELL")]
    assert len(scripts) > 8
    for script in scripts:
        checked = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True)
        assert (checked.returncode, checked.stderr) == (0, ""), script


@pytest.mark.parametrize(
    "path", ["Containerfile", "compose.yaml", "celery.yaml", "workspace.yaml", "kubernetes/values.yaml", ""]
)
def test_only_variables_that_exist_are_used(path):
    assert AlertSettings  # Its variables are known once it is imported.
    text = (DEPLOY / path).read_text(encoding="utf-8") if path else DOCUMENT
    used = {*re.findall(r"\b(?:AFFILIATE|ALERT|BINANCE|DAGSTER|HEARTBEAT|LBANK)_[A-Z0-9_]+", text)}
    assert used <= known_variables() | OF_DAGSTER


def test_the_code_location_has_one_name():
    workspaces = [
        yaml.safe_load((DEPLOY / "workspace.yaml").read_text()),
        yaml.safe_load(COMPOSE["configs"]["workspace"]["content"]),
    ]
    servers = [each["load_from"][0]["grpc_server"] for each in workspaces]
    assert {(server["location_name"], server["port"]) for server in servers} == {(LOCATION, 4000)}
    assert servers[1]["host"] in SERVICES
    command = Image(CONTAINERFILE).command
    assert command[command.index("--location-name") + 1] == LOCATION


def test_the_image_copies_no_file_that_is_ignored_or_missing():
    sources = [
        source
        for name, rest in instructions(CONTAINERFILE)
        if name == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    permitted = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sources and all((ROOT / source).exists() for source in sources)
    assert all(any(source == each or source.startswith(f"{each}/") for each in permitted) for source in sources)


def test_the_base_image_is_pinned_and_the_last_stage_installs_nothing():
    [base] = {rest for name, rest in instructions(CONTAINERFILE) if name == "ARG" and rest.startswith("PYTHON=")}
    assert re.search(r":3\.13-slim@sha256:[0-9a-f]{64}$", base)
    last = CONTAINERFILE.rpartition("\nFROM ")[2]
    assert not re.search(r"\b(apt|apt-get|pip|gcc)\b", last)


def test_the_writable_folders_of_the_image_are_mounted():
    created = (
        next(rest for name, rest in reversed(instructions(CONTAINERFILE)) if name == "RUN").split("&&")[0].split()[1:]
    )
    for name, service in APPLICATION.items():
        mounted = {
            *(each.split(":")[1] for each in service["volumes"]),
            *(each.split(":")[0] for each in service["tmpfs"]),
        }
        assert {f"/app/{folder}" for folder in created} | {"/tmp"} <= mounted, name


def test_kubernetes_runs_with_the_settings_of_the_repository():
    daemon, coordinator = VALUES["dagsterDaemon"], VALUES["dagsterDaemon"]["runCoordinator"]
    assert coordinator["type"] == INSTANCE["run_coordinator"]["class"]
    assert coordinator["config"]["queuedRunCoordinator"] == {
        "maxConcurrentRuns": INSTANCE["concurrency"]["runs"]["max_concurrent_runs"],
        "dequeueIntervalSeconds": INSTANCE["run_coordinator"]["config"]["dequeue_interval_seconds"],
    }
    monitoring = {
        re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name): value
        for name, value in daemon["runMonitoring"].items()
    }
    assert monitoring.pop("max_resume_run_attempts") == 0
    assert monitoring | {"start_timeout_seconds": 0} == INSTANCE["run_monitoring"] | {"start_timeout_seconds": 0}
    assert VALUES["retention"]["schedule"]["purgeAfterDays"] == INSTANCE["retention"]["schedule"]["purge_after_days"]
    assert VALUES["retention"]["sensor"]["purgeAfterDays"] == INSTANCE["retention"]["sensor"]["purge_after_days"]
    assert VALUES["pythonLogs"]["managedPythonLoggers"] == INSTANCE["python_logs"]["managed_python_loggers"]


def test_kubernetes_mounts_every_secret_file_and_writable_folder():
    [deployment] = VALUES["dagster-user-deployments"]["deployments"]
    mounts = {each["mountPath"]: each["name"] for each in deployment["volumeMounts"]}
    assert {*mounts.values()} == {each["name"] for each in deployment["volumes"]}
    assert {"/app/storage", "/app/reports", "/tmp"} < mounts.keys()
    files = [each["value"] for each in deployment["env"] if each["name"].endswith("_FILE")]
    assert files and all(str(Path(each).parent) in mounts for each in files)
    for part in (deployment, VALUES["dagsterWebserver"], VALUES["dagsterDaemon"]):
        assert part["securityContext"]["readOnlyRootFilesystem"] and part["podSecurityContext"]["runAsNonRoot"]
        assert (
            f"{part['podSecurityContext']['runAsUser']}:{part['podSecurityContext']['runAsGroup']}"
            == Image(CONTAINERFILE).user
        )


def test_the_launcher_of_kubernetes_exists_and_accepts_its_configuration():
    dagster_k8s = pytest.importorskip("dagster_k8s")
    launcher = VALUES["runLauncher"]["config"]["customRunLauncher"]
    config = dagster_k8s.K8sRunLauncher.config_type()
    assert launcher["config"].keys() <= config.keys()
    assert {name for name, field in config.items() if getattr(field, "is_required", False)} <= launcher["config"].keys()


@pytest.mark.skipif(not shutil.which("docker"), reason="needs docker")
def test_compose_is_valid(tmp_path):
    """As docker compose itself checks it, where it is installed."""
    (tmp_path / "application.env").touch()
    shutil.copy(DEPLOY / "compose.yaml", tmp_path)
    if subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        pytest.skip("needs docker compose")
    checked = subprocess.run(["docker", "compose", "config", "--quiet"], cwd=tmp_path, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
