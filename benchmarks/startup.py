"""(e) Startup time: importing the code location, and `affiliate-pipeline up` until days have landed."""

import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.harness import MB, ROOT, Table, peaks

IMPORTS = {
    "the three largest dependencies": "import dagster, dagster_postgres, pandera.pandas",
    "the code location": "import affiliate_pipeline.definitions",
    "the code location and what landing uses": "import affiliate_pipeline.definitions, affiliate_pipeline.landing.blocks",
}
TIMED = "import time; began = time.perf_counter(); {}; print(time.perf_counter() - began)"
IMPORT_ROUNDS = 7
MAX_RATIO = 1.25
LANDED = re.compile(r": [1-9][0-9]* of [0-9]+ days? landed$", re.MULTILINE)
MAX_WAIT_S = 180


def import_s(statement: str) -> float:
    """Return the seconds that the imports take in a new interpreter, with modules already compiled."""
    command = [sys.executable, "-W", "ignore", "-c", TIMED.format(statement)]
    return float(subprocess.check_output(command, cwd=ROOT, text=True))


def up_until_landed() -> tuple[float, float, int]:
    """Run `affiliate-pipeline up` in a new copy of the project.

    Returns the seconds until the first day has landed, the seconds until the UI is ready and the newest days have
    landed, and the peak memory (bytes) of all processes except PostgreSQL's, which are not descendants of `up`.
    """
    from affiliate_pipeline_tests.e2e.project import Project, free_port, wait_for

    project = Project(Path(tempfile.mkdtemp(prefix="benchmark_")))
    try:
        began = time.perf_counter()
        with project.started(project.command("up", "--port", str(free_port()))) as up:

            def a_day_has_landed() -> bool:
                return bool(LANDED.search(up.printed))

            with peaks(up=up.process.pid) as memory:
                wait_for(a_day_has_landed, MAX_WAIT_S)
                first_day_s = time.perf_counter() - began
                up.wait_for_output("Dagster's UI:", MAX_WAIT_S)
                ready_s = time.perf_counter() - began
            up.stop(signal.SIGINT)
        return first_day_s, ready_s, memory["up"]
    finally:
        project.remove()


def run(quick: bool, rounds: int) -> list[Table]:
    """Measure imports, and the time that `up` takes until days have landed."""
    os.environ["PYTHONPATH"] = str(ROOT)
    imports = measure_imports(2 if quick else IMPORT_ROUNDS)
    first_day_s, ready_s, memory = up_until_landed()
    up = Table(
        "`affiliate-pipeline up` in a new folder, everything installed",
        ["until", "s"],
        [
            ["the first day has landed", f"{first_day_s:.1f}"],
            ["Dagster's UI is ready and the newest days have landed", f"{ready_s:.1f}"],
            ["peak memory of all processes except PostgreSQL's, MB", f"{memory / MB:,.0f}"],
        ],
    )
    return [imports, up]


def measure_imports(rounds: int) -> Table:
    """Measure each of `IMPORTS`."""
    # Compile the modules, so that no measured import does.
    for statement in IMPORTS.values():
        import_s(statement)
    seconds: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(rounds):
        for name, statement in IMPORTS.items():
            seconds[name].append(import_s(statement))

    medians = {name: statistics.median(measured) for name, measured in seconds.items()}
    reference = "the three largest dependencies"
    return Table(
        f"Imports, median of {rounds}",
        ["", "s", "ratio"],
        [[name, f"{median:.2f}", f"{median / medians[reference]:.2f}"] for name, median in medians.items()],
        [f"Target for what a landing run imports: at most {MAX_RATIO} times {IMPORTS[reference]!r}."],
    )
