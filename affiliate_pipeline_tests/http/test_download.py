"""A file is downloaded completely or not at all, and its URL appears in no message."""

import gzip

import pytest

from affiliate_pipeline.http import download as files
from affiliate_pipeline.http.download import download
from affiliate_pipeline.http.errors import Refused, Transient, UrlExpired
from affiliate_pipeline_tests.scripted_server import http

QUERY = "Expires=1&Signature=a-secret"


@pytest.fixture
def url(server) -> str:
    return f"{server.url}/kickback-history/x.csv?{QUERY}"


def test_a_file_is_requested_and_returned_without_an_encoding(server, url):
    server.default = http(200, b"\x00rows\n" * 100_000)
    assert download(url, 10**6) == b"\x00rows\n" * 100_000
    (request,) = server.requests
    assert "\r\naccept-encoding: identity\r\n" in request.lower()


@pytest.mark.parametrize("cut", [0, 2_000])
def test_a_gzip_encoded_file_is_returned_as_received_without_decompression(server, url, cut):
    body = gzip.compress(b"some rows\n" * 50_000) + gzip.compress(b"others\n" * 50_000)[: -cut or None]
    server.default = http(200, body, "Content-Encoding: gzip")
    assert download(url, 10**6) == body


def test_an_encoding_that_was_not_requested_is_reported(server, url):
    server.default = http(200, b"...", "Content-Encoding: br")
    with pytest.raises(Refused, match="in the encoding 'br'"):
        download(url, 100)


def test_a_truncated_file_is_requested_again(server, url):
    server.default = http(200, b"rows\n" * 500, length=5_000)
    with pytest.raises(Transient, match="did not send the whole file"):
        download(url, 10**6)
    assert len(server.requests) == files.MAX_ATTEMPTS


def test_all_attempts_share_one_time_limit(server, url, monkeypatch):
    monkeypatch.setattr(files, "DOWNLOAD_LIMIT_S", 0)
    server.default = http(200, b"rows\n" * 500, length=5_000)
    with pytest.raises(Transient):
        download(url, 10**6)
    assert len(server.requests) == 1


def test_the_time_limit_also_ends_an_error_page(server, url, monkeypatch):
    monkeypatch.setattr(files, "DOWNLOAD_LIMIT_S", 0)
    server.default = http(403, b"expired\n", length=5_000)
    with pytest.raises(UrlExpired):
        download(url, 100)


def test_a_file_without_a_length_is_refused(server, url):
    server.default = b"HTTP/1.0 200 OK\r\n\r\nrows\n"
    with pytest.raises(Refused, match="does not send the length of the file"):
        download(url, 100)


def test_server_errors_are_retried_and_then_raised_without_the_url(server, url, caplog):
    server.responses.extend([http(500, b""), http(503, b""), http(200, b"file")])
    assert download(url, 100) == b"file"
    server.default = http(500, b"")
    with pytest.raises(Transient) as error:
        download(url, 100)
    assert "a-secret" not in str(error.value) + caplog.text
    assert len(server.requests) == 3 + files.MAX_ATTEMPTS


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_an_expired_url_is_not_requested_again(server, url, status):
    server.default = http(status, b"<Error/>")
    with pytest.raises(UrlExpired):
        download(url, 100)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [204, 301, 307, 409])
def test_any_other_status_is_refused_and_no_redirect_is_followed(server, url, status):
    server.default = http(status, b"", f"Location: {server.url}/elsewhere")
    with pytest.raises(Refused, match="instead of the file"):
        download(url, 100)
    assert len(server.requests) == 1


def test_a_file_that_is_too_large_is_not_read_to_its_end(server, url):
    # The body is truncated: reading on would raise `Transient`.
    server.default = http(200, b"x" * 2_000_000, length=10_000_000)
    with pytest.raises(Refused, match="is larger than"):
        download(url, 1 << 20)


def test_a_host_that_is_down_is_reported_without_the_url(caplog):
    with pytest.raises(Transient) as error:
        download(f"http://127.0.0.1:9/x.csv?{QUERY}", 100)
    assert "a-secret" not in str(error.value) + caplog.text


def test_an_invalid_url_is_not_quoted():
    with pytest.raises(Refused) as error:
        download("http://127.0.0.1:port/?a-secret", 100)
    assert "a-secret" not in str(error.value)
