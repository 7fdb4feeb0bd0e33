"""Documents that name what the code has: each is made of the code, or compared with it."""

import re
from pathlib import Path

from affiliate_pipeline import cli, dictionary, settings
from affiliate_pipeline.cli.app import app
from affiliate_pipeline.defs.assets import LandingConfig
from affiliate_pipeline.exchanges.registry import ENDPOINTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def table_after(title: str) -> list[str]:
    """The first cells of the first table below the words, without its head."""
    rows = README[README.index(title) :].split("\n| --- ", 1)[1].splitlines()[1:]
    return [row.split("|")[1] for row in rows[: next(i for i, row in enumerate(rows) if not row.startswith("|"))]]


def test_the_data_dictionary_is_that_of_the_schemas():
    assert (ROOT / "docs" / "data_dictionary.md").read_text(encoding="utf-8") == dictionary.markdown(), (
        "docs/data_dictionary.md is not what the schemas say: make docs"
    )


def test_the_readme_names_every_variable_and_no_other():
    named = {name for cell in table_after("## Real accounts") for name in re.findall(r"`([A-Z_]+)`", cell)}
    fields = {name.upper() for kind in settings.Settings.__subclasses__() for name in kind.model_fields}
    assert named == fields


def test_the_readme_names_every_asset_and_no_other():
    named = {name for cell in table_after("## Assets") for name in re.findall(r"`([a-z_]+/[a-z_]+)`", cell)}
    derived = {"lbank/roster", "affiliate/daily_commission", "affiliate/daily_report"}
    assert named == {endpoint.key for endpoint in ENDPOINTS} | derived


def test_the_readme_names_every_option_of_a_run_and_no_other():
    named = {name for cell in table_after("What a run may be told") for name in re.findall(r"`([a-z_]+): true`", cell)}
    assert named == set(LandingConfig.model_fields)


def test_the_readme_and_the_runbook_name_every_command_and_no_other():
    assert cli.main  # importing it registers the commands
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    documents = README + (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    assert set(re.findall(r"affiliate-pipeline ([a-z_]+)", documents)) == commands


def test_links_between_the_documents_lead_somewhere():
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8"))
        assert [link for link in links if not (document.parent / link).exists()] == []
