"""`make bench`: measure, print tables, and replace the measured parts' sections in `results.md`.

python -m benchmarks            all parts, in more than twenty minutes
python -m benchmarks c e        only these parts
python -m benchmarks --quick    small sizes, to check that the benchmarks work; writes nothing
"""

import argparse
import importlib.metadata
import os
import platform
import re
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import landing, limits, overhead, ranges, report, scaling, startup
from benchmarks.harness import isolated_project

RESULTS = Path(__file__).with_name("results.md")
PARTS = {
    "a": ("Landing", landing.run),
    "b": ("Rate limit utilization", limits.run),
    "c": ("Dagster overhead", overhead.run),
    "d": ("A long range bound by a rate limit", ranges.run),
    "e": ("Startup", startup.run),
    "f": ("Growth", scaling.run),
    "g": ("The report", report.run),
}
PACKAGES = ("dagster", "dlt", "pandas", "pandera", "pyarrow", "psycopg", "httpx", "msgspec")


def main() -> None:
    """Measure the given parts, print their tables, and update results.md."""
    options = _options()
    console = Console()
    sections = _sections()
    for name in options.parts or PARTS:
        title, _ = PARTS[name]
        console.print(f"({name}) {title}")
        section = _measured_section(name, options.quick, 1 if options.quick else options.rounds)
        console.print(Markdown(section))
        sections[name] = section
        if not options.quick:
            RESULTS.write_text("\n".join([_head(), *(sections[part] for part in sorted(sections))]))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure, print tables, and update benchmarks/results.md."
    )
    parts = ", ".join(f"{name}: {title}" for name, (title, _) in PARTS.items())
    # The default, an empty list, has to be one of the choices.
    parser.add_argument(
        "parts", nargs="*", metavar="PART", choices=[*PARTS, []], default=[], help=f"default: all ({parts})"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes; writes nothing")
    parser.add_argument("--rounds", type=int, default=3, help="measurements per value; the median is reported")
    return parser.parse_args()


def _measured_section(name: str, quick: bool, rounds: int) -> str:
    """Measure the part; return its section of `results.md`."""
    title, run = PARTS[name]
    began = time.monotonic()
    load, _, _ = os.getloadavg()
    tables = run(quick, rounds)
    seconds = time.monotonic() - began
    lines = [
        f"## ({name}) {title}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d}, load average before: {load:.1f}; duration: {seconds:.0f} s.",
        "",
        *(table.markdown() for table in tables),
    ]
    return "\n".join(lines)


def _sections() -> dict[str, str]:
    """The sections of `results.md`, by part."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    _, *sections = re.split(r"^(?=## \([a-g]\) )", text, flags=re.MULTILINE)
    name_at = len("## (")
    return {section[name_at]: section.rstrip("\n") + "\n" for section in sections}


def _head() -> str:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    with isolated_project() as project:
        postgresql = project.postgresql_version()
    return "\n".join(
        [
            "# Benchmark results",
            "",
            f"Written by `make bench`. {psutil.cpu_count()} cores ({platform.machine()}), shared by the measured "
            f"process, the sandbox exchange and PostgreSQL; {psutil.virtual_memory().total / 2**30:.0f} GB of memory; "
            f"{platform.system()}; Python {platform.python_version()}; PostgreSQL {postgresql}; {versions}.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
