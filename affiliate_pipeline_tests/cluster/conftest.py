"""Skips the tests of this folder where no cluster can be started."""

import pytest

from affiliate_pipeline_tests.cluster import hosts, services


@pytest.fixture(autouse=True)
def possible() -> None:
    if reason := hosts.missing() or services.missing():
        pytest.skip(reason)
