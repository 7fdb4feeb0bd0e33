"""Rules for the whole repository: imports, owners of tables, names, docstrings, dependencies, no path of this machine."""

import ast
import os
import pwd
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, distributions, requires
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from affiliate_pipeline.exchanges.registry import ENDPOINTS

ROOT = Path(__file__).parent.parent
PACKAGE = "affiliate_pipeline"
MODULES = sorted((ROOT / PACKAGE).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}

# Lowest layer first. A folder may import itself and the folders of lower layers, but no other folder of its own layer.
LAYERS = [
    {"domain"},
    {"schema"},
    {"http", "postgres"},
    {"exchanges"},
    {"landing"},
    {"monitoring", "commission"},
    {"environment", "defs"},
    {"definitions"},
    {"app"},
]
BELOW = {folder: set().union(*LAYERS[:rank]) for rank, layer in enumerate(LAYERS) for folder in layer} | {
    "sandbox": set(),
    # The package itself: the public API.
    "": {"defs", "landing"},
}


def name_of(path: Path) -> str:
    """The module's dotted name inside the package, empty for the package itself."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


# The modules that may import a library. If several entries match an import, the longest one applies.
PERMITTED_IMPORTERS = {
    "dagster": ("defs", "definitions", "app.instance"),
    "dagster_postgres": ("app.instance",),
    "dagster_shared": ("defs", "app.instance"),
    "httpx": (
        "http",
        "app.dagster_client",
        *(name_of(path) for path in MODULES if re.fullmatch(r"exchanges\.\w+\.signing", name_of(path))),
    ),
    # Owners of tables run their SQL; the connection comes from `postgres`.
    "psycopg": ("postgres", "app.embedded_server", "landing", "commission", "monitoring", "exchanges"),
    "psycopg2": (),
    "sqlalchemy": ("app.instance",),
    "apprise": ("monitoring.delivery",),
    "typer": ("app",),
    "click": ("app.instance",),
    "rich": ("app",),
    "dotenv": ("environment",),
    "pandera": ("schema",),
    "numpy": ("schema",),
    "pandas": ("schema", "landing.frames"),
    "pyarrow": ("schema", "commission.export", "http.unpacking"),
    "jinja2": ("app.data_dictionary", "commission.report"),
    "celery": (),
    "kombu": ("defs.celery_executor",),
    "redis": ("defs.celery_executor",),
    "dagster_celery": ("defs.celery_executor", "app.instance.celery_launcher"),
    "requests": (),
    "aiohttp": (),
    "urllib3": (),
}
# The module that owns a shared table. Only the owner and the migrations name the table. A table in an exchange's schema is
# owned by one module of the exchange's folder.
OWNERS = {
    "affiliate.account": "exchanges.identity",
    "affiliate.alert": "monitoring.outbox",
    "affiliate.alert_delivery": "monitoring.outbox",
    "affiliate.answer": "exchanges.lbank.response_cache",
    "affiliate.attempt": "exchanges.pending_actions",
    "affiliate.computed_day": "commission.rollup",
    "affiliate.daily_commission": "commission.rollup",
    "affiliate.daily_customer_commission": "commission.customers",
    "affiliate.landing": "landing.ledger",
    "affiliate.lease": "postgres.rate_limiter",
    "affiliate.price": "commission.prices",
    "affiliate.price_market": "commission.prices",
    "affiliate.priced_day": "commission.prices",
    "affiliate.rejected_row": "landing.quarantine",
    "affiliate.schema_migration": "postgres.migrations",
    "affiliate.superseded_row": "landing.day_writer",
    "affiliate.unknown_field": "landing.day_writer",
    "affiliate.watch": "monitoring.overdue",
}
FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "common", "base", "manager", "managers", "misc"}


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Every node of the module."""
    return [*ast.walk(TREES[path])]


@cache
def imports(path: Path) -> list[str]:
    """The dotted names that the module imports, at any depth."""
    found: list[str] = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            # In `from package import module`, the module is the imported name.
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def is_below(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


def imports_upward(path: Path) -> set[str]:
    """The imports from other folders of the same layer or from higher layers."""
    name = name_of(path)
    folder = name.split(".")[0]
    own = {imported.removeprefix(f"{PACKAGE}.") for imported in imports(path) if is_below(imported, PACKAGE)}
    up = {each for each in own if each.split(".")[0] not in BELOW.get(folder, set()) | {folder}}
    return {each for each in up if not is_below(each, "sandbox")} if name == "app.sandbox" else up


def test_imports_point_down_only():
    assert {name_of(path): up for path in MODULES if (up := imports_upward(path))} == {}


def test_every_module_has_a_layer():
    assert {name_of(path).split(".")[0] for path in MODULES} - BELOW.keys() == set()


def test_libraries_are_imported_only_where_permitted():
    forbidden = [
        (name_of(path), imported)
        for path in MODULES
        for imported in imports(path)
        if (library := max((each for each in PERMITTED_IMPORTERS if is_below(imported, each)), key=len, default=None))
        if not any(is_below(name_of(path), place) for place in PERMITTED_IMPORTERS[library])
    ]
    assert forbidden == []


def test_private_modules_of_dagster_are_imported_in_one_place():
    importing = {name_of(path) for path in MODULES if any(each.startswith("dagster._") for each in imports(path))}
    assert importing == {"defs.dagster_internals"}


@cache
def strings() -> dict[str, str]:
    """The strings of each module outside the sandbox, without docstrings, one per line."""
    # PostgreSQL's parameter `affiliate.account`, the default of the columns `account`, has the name of a table.
    parameter = re.compile(r"(set_config|current_setting)\('[\w.]+'")
    return {
        name_of(path): "\n".join(
            parameter.sub("", str(value.value))
            for node in nodes(path)
            # A docstring is an expression of its own.
            if not isinstance(node, ast.Expr)
            for value in ast.iter_child_nodes(node)
            if isinstance(value, ast.Constant)
        )
        for path in MODULES
        if not is_below(name_of(path), "sandbox")
    }


def modules_naming(table: str) -> set[str]:
    """The modules that name the table."""
    name = re.compile(rf"(?<![\w.]){re.escape(table)}(?![\w.])|(?<![\w.]){re.escape(table)}\.(?!\w)")
    return {module for module, text in strings().items() if table in text and name.search(text)}


def test_only_its_owner_names_a_shared_table():
    assert {table: modules_naming(table) for table in OWNERS} == {table: {owner} for table, owner in OWNERS.items()}


def test_no_module_names_the_table_of_an_endpoint():
    # The help of a command may use one as its example.
    named = {endpoint.key: modules_naming(endpoint.key.replace("/", ".")) for endpoint in ENDPOINTS}
    named = {key: {module for module in modules if not is_below(module, "app")} for key, modules in named.items()}
    assert {key: modules for key, modules in named.items() if modules} == {}


def created_tables() -> set[str]:
    statements = "\n".join(path.read_text() for path in sorted((ROOT / PACKAGE).rglob("migrations/*.sql")))
    created = re.findall(r"^create table (?:if not exists )?(\S+)", statements, re.MULTILINE)
    dropped = re.findall(r"^drop table (\S+);", statements, re.MULTILINE)
    return {*created} - {*dropped} | {"affiliate.schema_migration"}


def test_every_shared_table_has_an_owner():
    assert {table for table in created_tables() if table.startswith("affiliate.")} == OWNERS.keys()


def test_each_table_of_an_exchange_is_named_by_one_module_of_the_exchange():
    for table in created_tables() - OWNERS.keys():
        owners = modules_naming(table)
        assert len(owners) == 1, table
        assert is_below(owners.pop(), f"exchanges.{table.partition('.')[0]}"), table


def test_only_environment_reads_the_environment():
    reading = {
        name_of(path)
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv", "putenv", "environb")
        and ast.unparse(node.value) == "os"
    }
    importing = {name_of(path) for path in MODULES if {"os.environ", "os.getenv"} & {*imports(path)}}
    assert (reading | importing) - {"environment"} == set()


def test_no_shared_code_compares_exchanges_or_endpoints_by_name():
    names = set(chain.from_iterable((e.key, e.name, e.exchange.name) for e in ENDPOINTS))
    compared = {
        (name_of(path), constant.value)
        for path in MODULES
        if not is_below(name_of(path), "exchanges") and not is_below(name_of(path), "sandbox")
        for node in nodes(path)
        if isinstance(node, ast.Compare | ast.MatchValue)
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant) and constant.value in names
    }
    assert compared == set()


def test_only_commands_print():
    printing = {
        name_of(path)
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert printing <= {"app.cli", "app.export"}


def repository_modules() -> list[Path]:
    """Every module of the repository."""
    folders = ("affiliate_pipeline", "affiliate_pipeline_tests", "benchmarks")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_a_module_opens_with_a_docstring():
    # An empty __init__.py needs none. Parsing every module takes as long as all other tests of this file.
    texts = {path: path.read_text(encoding="utf-8") for path in repository_modules()}
    # A docstring of up to 20 characters counts as none.
    with_docstring = re.compile(r'r?"""(?!.{0,20}""")', re.DOTALL)
    assert [path for path, text in texts.items() if text and not with_docstring.match(text)] == []


def test_no_module_has_a_generic_name():
    named = {part for path in repository_modules() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert named & FORBIDDEN_NAMES == set()


def test_every_folder_of_tests_has_the_name_of_a_folder_of_the_package():
    tests = ROOT / "affiliate_pipeline_tests"
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    # Tests of whole commands, of several machines, and of faults across modules.
    folders -= {Path("e2e"), Path("cluster"), Path("cases")}
    assert [folder for folder in folders if not (ROOT / PACKAGE / folder).is_dir()] == []


PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
DECLARED = [
    Requirement(text)
    for text in [*PROJECT["dependencies"], *chain.from_iterable(PROJECT["optional-dependencies"].values())]
]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()


def test_constraints_are_plain_pins():
    lines = [line for line in CONSTRAINTS.splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+( ?;.*)?", line)] == []
    assert not re.search(r"://|@|--|sha256", CONSTRAINTS)


def test_constraints_pin_every_dependency_within_what_is_declared():
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in CONSTRAINTS.split() if "==" in line}
    for requirement in DECLARED:
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier
    # Other versions, which `make versions` installs, may depend on other packages.
    installed = {canonicalize_name(each.name): each.version for each in distributions()}
    if all(installed.get(name, pin) == pin for name, pin in pins.items()):
        assert sorted(needed() - pins.keys()) == []


def test_migrations_of_a_folder_are_numbered_from_one_without_gaps():
    folders = {path.parent for path in (ROOT / PACKAGE).rglob("migrations/*.sql")}
    numbers = {folder: sorted(int(path.name.partition("_")[0]) for path in folder.glob("*.sql")) for folder in folders}
    assert len(folders) > 1
    assert numbers == {folder: [*range(1, len(found) + 1)] for folder, found in numbers.items()}


def test_files_other_than_modules_are_installed_with_the_package():
    declared = {
        path
        for package, patterns in PYPROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in ROOT.joinpath(*package.split(".")).glob(pattern)
    }
    present = {path for path in files() if path.is_relative_to(ROOT / PACKAGE) and path.suffix != ".py"}
    assert present and present == declared


def needed() -> set[str]:
    """The names of the declared dependencies and of their dependencies on this platform, recursively."""
    found: set[tuple[str, str]] = set()
    todo = [(canonicalize_name(r.name), extra) for r in DECLARED for extra in ["", *r.extras]]
    while todo:
        name, extra = todo.pop()
        if (name, extra) in found:
            continue
        found.add((name, extra))
        try:
            texts = requires(name) or []
        except PackageNotFoundError:
            continue  # It belongs to an extra that is not installed.
        for requirement in map(Requirement, texts):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(requirement.name), each) for each in ["", *requirement.extras]]
    return {name for name, _ in found}


def files() -> list[Path]:
    """Every file of the repository except pictures, build output and, with two exceptions, hidden files."""
    skipped = {"__pycache__", "build"}
    found = [ROOT / ".ci" / "run", ROOT / ".gitignore"]
    for entry in ROOT.iterdir():
        if entry.name.startswith(".") or entry.name in skipped or entry.name.endswith(".egg-info"):
            continue
        found += [entry] if entry.is_file() else [path for path in entry.rglob("*") if path.is_file()]
    return [path for path in found if not skipped & {*path.parts} and path.suffix not in (".png", ".jpg", ".pyc")]


def test_no_file_names_a_path_of_this_machine():
    home = Path(pwd.getpwuid(os.getuid()).pw_dir)  # $HOME is a folder of the tests.
    paths = {str(path) for path in (ROOT, home, Path(sys.prefix)) if len(path.parts) > 1}
    pattern = re.compile("|".join(rf"(?<![\w.]){re.escape(path)}(?![\w.-])" for path in paths))
    named = {
        path.relative_to(ROOT): pattern.search(path.read_text(encoding="utf-8", errors="replace")) for path in files()
    }
    assert {str(path): found.group() for path, found in named.items() if found} == {}


def test_no_file_names_a_registry():
    hosts = re.compile("|".join(re.escape(".".join(parts)) for parts in [("pypi", "org"), ("pythonhosted", "org")]))
    assert [str(path) for path in files() if hosts.search(path.read_text(encoding="utf-8", errors="replace"))] == []
