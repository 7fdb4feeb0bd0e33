"""A file is fetched whole or not at all; its URL is told nowhere, and nothing of ours is sent with it."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from affiliate_pipeline.http import download as files
from affiliate_pipeline.http.download import download
from affiliate_pipeline.http.errors import Refused, Transient, UrlExpired
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.exchange import Call, Response

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

    def next_one(_: Call) -> Response:
        status, body, headers = left.pop(0) if len(left) > 1 else left[0]
        return Response(status, body, headers=headers)

    host.binance.kickbacks.file = next_one


def test_a_file_comes_as_it_is(host, url):
    answer(host, (200, b"\x00rows\n" * 100_000, {}))
    assert download(url, 10**6) == b"\x00rows\n" * 100_000


@pytest.mark.parametrize("cut", [0, 2_000])
def test_a_file_packed_for_its_way_comes_packed_to_its_last_byte(host, url, cut):
    body = gzip.compress(b"some rows\n" * 50_000) + gzip.compress(b"others\n" * 50_000)[: -cut or None]
    answer(host, (200, body, {"Content-Encoding": "gzip"}))
    assert download(url, 10**6) == body


def test_an_encoding_that_nobody_asked_for_is_named(host, url):
    answer(host, (200, b"...", {"Content-Encoding": "br"}))
    with pytest.raises(Refused, match="in the encoding 'br'"):
        download(url, 100)


def test_a_file_shorter_than_it_was_said_to_be_is_asked_for_again(host, url):
    host.faults.mix(truncated=1)
    answer(host, (200, b"rows\n" * 1000, {}))
    with pytest.raises(Transient, match="did not send the whole file"):
        download(url, 10**6)
    assert len(host.requests) == files.MAX_ATTEMPTS


def test_a_file_without_a_length_is_refused_by_name():
    class Host(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"rows\n")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        with pytest.raises(Refused, match="does not say how long the file is"):
            download(f"http://127.0.0.1:{server.server_port}/x.csv", 100)
        server.shutdown()


def test_a_file_is_asked_for_as_it_is(host, url):
    with pytest.raises(UrlExpired):
        download(url, 100)
    assert [each["accept-encoding"] for each in host.binance.kickbacks.file_headers] == ["identity"]


def test_trouble_of_the_host_is_asked_again_and_told_in_the_end(host, url, caplog):
    answer(host, (500, b"", {}), (503, b"", {}), (200, b"file", {}))
    assert download(url, 100) == b"file"
    answer(host, (500, b"", {}))
    with pytest.raises(Transient) as error:
        download(url, 100)
    assert "a-secret" not in str(error.value) + caplog.text
    assert len([each for each in host.requests if "kickback-history" in each.path]) == 3 + files.MAX_ATTEMPTS


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_url_that_is_no_longer_good_is_not_asked_again(host, url, status):
    answer(host, (status, b"<Error/>", {}))
    with pytest.raises(UrlExpired):
        download(url, 100)
    assert len(host.requests) == 1


@pytest.mark.parametrize("status", [204, 301, 307, 409])
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
