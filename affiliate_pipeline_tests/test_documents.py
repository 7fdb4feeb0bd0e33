"""Documents that list parts of the code: each is generated from the code or compared with it."""

import re
from pathlib import Path

from affiliate_pipeline.app import data_dictionary as dictionary
from affiliate_pipeline.app.__main__ import app, main
from affiliate_pipeline.commission.customers import CUSTOMERS
from affiliate_pipeline.commission.prices import PRICE
from affiliate_pipeline.commission.rollup import COMMISSION, REPORT
from affiliate_pipeline.defs.endpoint_assets import LandingConfig
from affiliate_pipeline.domain.settings import DATABASE_VARIABLE, Settings
from affiliate_pipeline.exchanges.registry import ENDPOINTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


def table_after(title: str, document: str = README) -> list[str]:
    """The first cells of the first table below the title, without its header."""
    rows = document[document.index(title) :].split("\n| --- ", 1)[1].splitlines()[1:]
    return [row.split("|")[1] for row in rows[: next(i for i, row in enumerate(rows) if not row.startswith("|"))]]


def test_the_data_dictionary_matches_the_schemas():
    assert (ROOT / "docs" / "data_dictionary.md").read_text(encoding="utf-8") == dictionary.markdown(), (
        "docs/data_dictionary.md differs from the schemas: run `make docs`"
    )


def test_the_configuration_page_names_every_variable_and_no_other():
    named = {name for cell in table_after("## Variables", CONFIGURATION) for name in re.findall(r"`([A-Z_]+)`", cell)}
    fields = {name.upper() for kind in Settings.__subclasses__() for name in kind.model_fields}
    assert named == fields | {DATABASE_VARIABLE}


def test_the_readme_names_no_asset_that_does_not_exist():
    # The README is an overview. The data dictionary, which is generated, names every asset.
    named = {name for cell in table_after("## Assets") for name in re.findall(r"`([a-z_]+/[a-z_]+)`", cell)}
    derived = {"lbank/roster", COMMISSION, CUSTOMERS, PRICE, REPORT}
    assert named and named <= {endpoint.key for endpoint in ENDPOINTS} | derived


def test_the_readme_names_every_option_of_a_run_and_no_other():
    named = {name for cell in table_after("given as run config") for name in re.findall(r"`([a-z_]+): true`", cell)}
    assert named == set(LandingConfig.model_fields)


def test_the_readme_and_the_runbook_name_every_command_and_no_other():
    assert main  # Importing it registers the commands.
    commands = {command.name or getattr(command.callback, "__name__", None) for command in app.registered_commands}
    documents = README + (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    assert set(re.findall(r"affiliate-pipeline ([a-z_-]+)", documents)) == commands


def source_of_tests() -> str:
    """The source of the tests without comments, with # in place of a number."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "affiliate_pipeline_tests").rglob("*.py")]
    return re.sub(r"\d+", "#", re.sub(r"(?m)^ *#.*$|  # .*$", "", "\n".join(texts)))


def test_every_message_that_the_runbook_explains_occurs_in_a_test():
    runbook = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    cells = [row.split(" | ")[0] for row in runbook.splitlines() if row.startswith("| `")]
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) > 20
    # Each part has to be on one line of a test: joining literals would require parsing the tests, which takes seconds.
    tested = source_of_tests()
    parts = [part.strip() for message in messages for part in re.sub(r"\d+", "#", message).split("…")]
    assert [part for part in parts if part not in tested] == []


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_links_between_the_documents_resolve():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8"))
        assert [link for link in links if not (document.parent / link).exists()] == []
