"""A file is fetched whole or not at all; its URL is told nowhere, and nothing of ours is sent with it."""

import pytest

from affiliate_pipeline.rest import files
from affiliate_pipeline.rest.errors import Refused, Transient, UrlExpired
from affiliate_pipeline.rest.files import download
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.exchange import Answer, Call

QUERY = "Expires=1&Signature=a-secret"


@pytest.fixture
def host():
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def url(host) -> str:
    return f"{host.url}/kickback-history/x.csv?{QUERY}"


def answer(host, *given: tuple[int, bytes, dict[str, str]]) -> None:
    """The next answers of the host, the last one for ever."""
    left = list(given)

    def next_one(_: Call) -> Answer:
        status, body, headers = left.pop(0) if len(left) > 1 else left[0]
        return Answer(status, body, headers=headers)

    host.binance.kickbacks.file = next_one


def test_a_file_comes_as_it_is(host, url):
    answer(host, (200, b"\x00rows\n" * 100_000, {}))
    assert download(url, 10**6) == b"\x00rows\n" * 100_000


def test_trouble_of_the_host_is_asked_again_and_told_in_the_end(host, url, caplog):
    answer(host, (500, b"", {}), (503, b"", {}), (200, b"file", {}))
    assert download(url, 100) == b"file"
    answer(host, (500, b"", {}))
    with pytest.raises(Transient) as error:
        download(url, 100)
    assert "a-secret" not in str(error.value) + caplog.text
    assert len([each for each in host.requests if "kickback-history" in each.path]) == 3 + files.ATTEMPTS


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_url_that_is_no_longer_good_is_not_asked_again(host, url, status):
    answer(host, (status, b"<Error/>", {}))
    with pytest.raises(UrlExpired):
        download(url, 100)
    assert len(host.requests) == 1


@pytest.mark.parametrize("status", [204, 301, 307, 400])
def test_a_redirect_is_not_followed(host, url, status):
    answer(host, (status, b"", {"Location": f"{host.url}/elsewhere"}))
    with pytest.raises(Refused, match="instead of the file"):
        download(url, 100)
    assert len(host.requests) == 1


def test_a_file_that_is_too_large_is_not_read_to_its_end(host, url):
    answer(host, (200, b"x" * 10_000_000, {}))
    with pytest.raises(Refused, match="is larger than"):
        download(url, 1 << 20)


def test_a_host_that_is_not_there_is_told_without_the_url(host, url, caplog):
    host.stop()
    with pytest.raises(Transient) as error:
        download(url, 100)
    assert "a-secret" not in str(error.value) + caplog.text


def test_a_url_that_is_none_is_not_quoted():
    with pytest.raises(Refused) as error:
        download("http://127.0.0.1:port/?a-secret", 100)
    assert "a-secret" not in str(error.value)
