"""(e) Startup time: importing the code location, and `up` until the first day has landed."""

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import MB, ROOT, Table, peaks

IMPORTS = {
    "its three largest imports": "import dagster, dagster_postgres, pandera.pandas",
    "the code location": "import affiliate_pipeline.definitions",
}
TIMED = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"
IMPORT_ROUNDS = 7
MAX_RATIO = 1.25
LANDED = re.compile(r": [1-9][0-9]* of [0-9]+ days$", re.MULTILINE)
MAX_WAIT_S = 180


def import_s(statement: str) -> float:
    """Return the seconds of the imports in a new interpreter, with compiled modules cached."""
    command = [sys.executable, "-W", "ignore", "-c", TIMED.format(statement)]
    return float(subprocess.check_output(command, cwd=ROOT, text=True))


def first_day_landed() -> tuple[float, float, int]:
    """Run `affiliate-pipeline up` in a new copy of the project.

    Returns the seconds until the first day and until all newest days have landed, and the peak memory (bytes).
    """
    # The end-to-end tests' copy of the project.
    from affiliate_pipeline_tests.e2e.project import Project, free_port, wait_for

    project = Project(Path(tempfile.mkdtemp(prefix="benchmark_")))
    try:
        began = time.perf_counter()

        def landed() -> bool:
            return bool(LANDED.search(up.printed))

        with project.started(project.command("up", "--port", str(free_port()))) as up:
            with peaks(up=up.process.pid) as memory:
                wait_for(landed, MAX_WAIT_S)
                landed_s = time.perf_counter() - began
                up.wait_to_print("Dagster's UI:", MAX_WAIT_S)
                ready_s = time.perf_counter() - began
            up.stop(2)
        return landed_s, ready_s, memory["up"]
    finally:
        project.remove()


def run(quick: bool, rounds: int) -> list[Table]:
    os.environ["PYTHONPATH"] = str(ROOT)
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for statement in IMPORTS.values():
        import_s(statement)
    for _ in range(2 if quick else IMPORT_ROUNDS):
        for name, statement in IMPORTS.items():
            seconds[name].append(import_s(statement))
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    three, ours = middle.values()
    landed_s, ready_s, memory = first_day_landed()
    return [
        Table(
            f"Imports, median of {len(seconds['the code location'])}",
            ["", "s", "times"],
            [[name, f"{found:.2f}", f"{found / three:.2f}"] for name, found in middle.items()],
            [
                f"The target for the code location is {MAX_RATIO} times {IMPORTS['its three largest imports']!r} at "
                "most."
            ],
        ),
        Table(
            "`affiliate-pipeline up` in a new folder, everything installed",
            ["until", "s"],
            [
                ["the first day has landed", f"{landed_s:.1f}"],
                ["Dagster's UI is ready and the newest days have landed", f"{ready_s:.1f}"],
                ["peak memory of all processes, MB", f"{memory / MB:,.0f}"],
            ],
        ),
    ]
