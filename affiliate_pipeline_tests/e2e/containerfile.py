"""Runs the steps of deploy/Containerfile without a container engine: as root, in folders that are the images' roots.

The base image is this machine's programs, mounted read-only. Contains no tests.
"""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
# This machine's programs and their settings, which are mounted read-only.
BASE = ("bin", "etc", "lib", "lib32", "lib64", "sbin", "usr")
PYTHON = Path(sys.base_prefix)


def instructions(text: str) -> list[tuple[str, str]]:
    """The name and the arguments of each instruction."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", text)).splitlines()
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines if line.strip())]


class Image:
    """The instructions of the last stage that apply to a container."""

    def __init__(self, text: str):
        last = [*instructions(text)]
        last = last[max(i for i, (name, _) in enumerate(last) if name == "FROM") :]
        self.user = next(rest for name, rest in last if name == "USER")
        self.folder = next(rest for name, rest in last if name == "WORKDIR")
        self.command: list[str] = next(json.loads(rest) for name, rest in last if name == "CMD")
        self.environment = dict(
            each.split("=", 1) for name, rest in last if name == "ENV" for each in shlex.split(rest)
        )


def mounts(root: Path) -> Iterator[str]:
    """Shell commands that mount the base image in an empty folder."""
    for entry in (Path("/") / name for name in BASE):
        if entry.is_symlink():
            yield f"ln -s {os.readlink(entry)} {root}{entry}"
        elif entry.is_dir():
            yield bind(root, entry)
    # Where pip may find packages.
    yield from (bind(root, entry) for entry in sorted(Path("/opt").iterdir()) if entry.is_dir())
    if PYTHON.parts[1] not in BASE:
        yield bind(root, PYTHON)
    yield f"mkdir -p {root}/tmp {root}/proc {root}/dev {root}/opt {root}/var"
    yield f"chmod 1777 {root}/tmp"
    yield f"mount --rbind /dev {root}/dev"
    yield f"mount -t proc proc {root}/proc"


def bind(root: Path, folder: Path) -> str:
    return f"mkdir -p {root}{folder}; mount --bind {folder} {root}{folder}; mount -o remount,bind,ro {root}{folder}"


def build(text: str, folder: Path, arguments: dict[str, str]) -> list[str]:
    """Shell commands that build each stage in a folder (`stage0`, `stage1`, …): the last one is the image's root."""
    script, stages, variables = ["set -eu", "umask 022"], dict[str, Path](), dict(arguments)
    root, workdir, environment = folder, "/", [f"PATH={PYTHON}/bin:$PATH"]
    for name, rest in instructions(text):
        instruction_arguments = shlex.split(re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], rest))
        match name:
            case "ARG":
                key, _, default = rest.partition("=")
                variables.setdefault(key, default)
            case "FROM":
                root, workdir, environment = folder / f"stage{len(stages)}", "/", environment[:1]
                stages[instruction_arguments[-1] if "AS" in instruction_arguments else "last"] = root
                script += [f"mkdir {root}", *mounts(root)]
            case "WORKDIR":
                workdir = rest
                script.append(f"mkdir -p {root}{workdir}")
            case "COPY":
                script.append(copy(root, workdir, stages, instruction_arguments))
            case "ENV":
                environment += instruction_arguments
            case "RUN":
                command = re.sub(r"\$\{(\w+)\}", lambda found: variables[found[1]], rest)
                inside = f"cd {workdir} && {command}"
                script.append(f"env {' '.join(environment)} chroot {root} /bin/sh -euc {shlex.quote(inside)}")
            case _:
                assert name in ("USER", "EXPOSE", "HEALTHCHECK", "CMD"), name
    return script


def copy(root: Path, workdir: str, stages: dict[str, Path], arguments: Sequence[str]) -> str:
    *sources, target = (each for each in arguments if not each.startswith("--"))
    stage = next((each.removeprefix("--from=") for each in arguments if each.startswith("--from=")), None)
    to = root / target.lstrip("/") if target.startswith("/") else root / workdir.lstrip("/") / target
    origin = stages[stage] if stage else ROOT
    commands: list[str] = []
    for each in sources:
        source = origin / each.lstrip("/")
        # As in a container engine, a folder's content is copied. A stage's files exist only when the script runs: copy
        # its sources as folders, with hard links (`-l`).
        commands.append(
            f"mkdir -p {to}; cp -r{'l' * bool(stage)} {source}/. {to}/"
            if source.is_dir() or stage
            else f"cp {source} {to}/"
        )
    return "; ".join(commands)


def container_mounts(root: Path, image: Image, writable: Sequence[str]) -> list[str]:
    """Shell commands that make the image's root read-only, and mount an empty folder on each of the writable ones."""
    owner = "uid={},gid={}".format(*image.user.split(":"))
    return [
        f"mount --rbind {root} {root}",
        *(f"mount -t tmpfs -o {owner},mode=755 tmpfs {root}{each}" for each in writable),
        f"mount -o remount,bind,ro {root}",
    ]


def command(root: Path, image: Image, arguments: Sequence[str], variables: dict[str, str]) -> str:
    """A shell command that runs a program in the image as its user."""
    uid, gid = image.user.split(":")
    own = {**image.environment, "PATH": image.environment["PATH"].replace("$PATH", "/usr/bin:/bin"), **variables}
    run = f"cd {image.folder} && exec {shlex.join(arguments)}"
    return shlex.join([
        "chroot", f"--userspec={uid}:{gid}", "--groups=", str(root),
        "/usr/bin/env", "-i", *(f"{name}={value}" for name, value in own.items()), "/bin/sh", "-euc", run,
    ])  # fmt: skip
