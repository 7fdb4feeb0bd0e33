"""The documents that are followed to the letter: their edits fit the project's files. Their results are tested end to end."""

import pytest

from affiliate_pipeline_tests.walkthrough import ROOT, edits


@pytest.mark.parametrize("document", ["adding_an_endpoint.md", "adding_an_exchange.md"])
def test_the_edits_of_a_document_fit_the_projects_files(document, tmp_path):
    all_edits = edits(ROOT / "docs" / document)
    for path in {edit.path for edit in all_edits}:
        if (ROOT / path).exists():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes((ROOT / path).read_bytes())

    for edit in all_edits:
        edit.apply(tmp_path)
