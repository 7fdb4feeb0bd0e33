"""Fixtures of the HTTP tests: a scripted server on loopback."""

from collections.abc import Iterator

import pytest

from affiliate_pipeline_tests.scripted_server import ScriptedServer


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server
