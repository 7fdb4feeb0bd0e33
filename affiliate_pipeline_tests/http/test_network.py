"""Which proxy a request uses, and how unusable proxies, certificates and URLs are reported."""

import datetime
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from affiliate_pipeline.http import network
from affiliate_pipeline.http.download import download, ping_heartbeat
from affiliate_pipeline.http.errors import ConnectionFailed, NoResponse, UnusableNetwork
from affiliate_pipeline.http.network import DIRECT, Network, client
from affiliate_pipeline_tests.proxy import Proxy
from affiliate_pipeline_tests.scripted_server import ScriptedServer

PASSWORD = "p@ss:w/rd#1"
PROXY = {"https_proxy": "http://proxy.example:3128"}


def proxy_for(url: str, **variables: str) -> network.Proxy | None:
    return Network(PROXY | variables).proxy_for(httpx.URL(url))


def get(url: str, **variables: str) -> httpx.Response:
    with client(Network(variables), 5) as http:
        return http.get(url)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1.2.3",
        "127.1",
        "localhost",
        "LOCALHOST",
        "localhost.",
        "a.localhost",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "[::]",
        "localhost:8443",
    ],
)
def test_requests_to_this_machine_use_no_proxy(host):
    assert proxy_for(f"https://{host}") is None


@pytest.mark.parametrize(
    "host", ["128.0.0.1", "localhost.example", "127.0.0.1.example", "[::2]", "notlocalhost", "10.0.0.1"]
)
def test_requests_to_other_hosts_use_the_proxy(host):
    assert proxy_for(f"https://{host}") is not None


@pytest.mark.parametrize(
    ("entry", "url", "is_direct"),
    [
        ("*", "https://x.example", True),
        ("a.example, *", "https://x.example", True),
        ("x.example", "https://x.example", True),
        ("X.EXAMPLE", "https://x.example", True),
        ("x.example", "https://sub.x.example", True),
        ("x.example", "https://notx.example", False),
        (".x.example", "https://sub.x.example", True),
        ("*.x.example", "https://sub.x.example", True),
        ("*.x.example", "https://x.example.com", False),
        ("other x.example", "https://x.example", True),
        ("x.example:8443", "https://x.example:8443", True),
        ("x.example:443", "https://x.example", True),
        ("x.example:8443", "https://x.example", False),
        ("http://x.example", "https://x.example", False),
        ("https://x.example/", "https://x.example", True),
        ("10.1.2.3", "https://10.1.2.3", True),
        ("10.1.2.3:443", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.1/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("192.168.*", "https://192.168.1.1", True),
        ("fd00::/8", "https://[fd12::1]", True),
        ("fd12::1", "https://[fd12::1]", True),
        ("[fd12::1]", "https://[fd12::1]", True),
        ("[fd12::1]:8443", "https://[fd12::1]:8443", True),
        ("[fd12::1]:8443", "https://[fd12::1]", False),
        ("fe80::/10", "https://x.example", False),
        ("[::1,<local>,a/b,x:y,http://[", "https://x.example", False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_the_variable_no_proxy_is_honoured(name, entry, url, is_direct):
    assert (proxy_for(url, **{name: entry}) is None) == is_direct


def test_an_invalid_no_proxy_entry_is_ignored_with_one_warning(caplog):
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        assert proxy_for("https://x.example", NO_PROXY="un<usable>,x.example") is None
    assert [record.getMessage().count("un<usable>") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("value", "url", "login"),
    [
        ("http://proxy.example:3128", "http://proxy.example:3128", None),
        ("proxy.example:3128", "http://proxy.example:3128", None),
        ("http://proxy.example", "http://proxy.example", None),
        ("HTTP://proxy.example:3128/", "http://proxy.example:3128", None),
        ('"http://proxy.example:3128"', "http://proxy.example:3128", None),
        ("https://proxy.example:3129", "https://proxy.example:3129", None),
        ("http://[fd12::1]:3128", "http://[fd12::1]:3128", None),
        ("http://user:pass@proxy.example:3128", "http://proxy.example:3128", ("user", "pass")),
        (f"http://user:{PASSWORD}@proxy.example:3128", "http://proxy.example:3128", ("user", PASSWORD)),
        ("user:p%40ss@proxy.example:3128", "http://proxy.example:3128", ("user", "p@ss")),
        ("http://corp%5Cuser:x@proxy.example", "http://proxy.example", ("corp\\user", "x")),
    ],
)
def test_every_usual_form_of_a_proxy_is_read(value, url, login):
    proxy = proxy_for("https://x.example", https_proxy=value)
    assert proxy and (proxy.url, proxy.login) == (url, login)
    assert "pass" not in f"{proxy} {proxy!r}" and PASSWORD not in f"{proxy} {proxy!r}"


@pytest.mark.parametrize(
    ("url", "proxy_url"), [("http://x.example", "http://l:1"), ("https://x.example", "http://a:1")]
)
def test_the_variable_of_the_scheme_and_the_lower_case_name_take_precedence(url, proxy_url):
    variables = {"ALL_PROXY": "a:1", "HTTP_PROXY": "h:1", "http_proxy": "l:1"}
    proxy = Network(variables).proxy_for(httpx.URL(url))
    assert proxy and proxy.url == proxy_url


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_silent_proxy_is_reported(scheme):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        variables = {"all_proxy": f"http://user:{PASSWORD}@127.0.0.1:{port}"}
        with (
            client(Network(variables), 0.2) as http,
            pytest.raises(NoResponse, match="no complete response was received through the proxy") as caught,
        ):
            http.get(f"{scheme}://x.example")
    assert f"127.0.0.1:{port} (all_proxy)" in str(caught.value) and PASSWORD not in str(caught.value)


def test_a_forwarded_request_may_have_taken_effect():
    with Proxy(status=504) as proxy, pytest.raises(NoResponse) as caught:
        get("http://x.example", http_proxy=proxy.url)
    assert not isinstance(caught.value, ConnectionFailed)


def test_a_proxy_without_tls_is_reported():
    with Proxy(status=200) as proxy, pytest.raises(UnusableNetwork, match="Write http:// in https_proxy"):
        get("https://x.example", https_proxy=proxy.url.replace("http", "https"))


def test_downloads_and_heartbeats_use_the_proxy():
    with Proxy(status=200) as proxy:
        through_proxy = Network({"http_proxy": proxy.url})
        assert download("http://files.example/x.csv", 1000, through_proxy) == b"<html>the proxy's page</html>"
        assert ping_heartbeat("http://heartbeat.example/x", through_proxy) is None
        assert [path for _, path, _ in proxy.received] == ["http://files.example/x.csv", "http://heartbeat.example/x"]
    failure = ping_heartbeat("http://heartbeat.example/x", Network({"http_proxy": "127.0.0.1:9"}))
    assert failure and failure.startswith("the proxy 127.0.0.1:9 (http_proxy) could not be reached")


def test_a_netrc_adds_nothing_to_a_request(tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("default login someone password hidden\n")
    monkeypatch.setenv("HOME", f"{tmp_path}")
    monkeypatch.setenv("NETRC", f"{tmp_path}/.netrc")
    with Proxy(status=200) as server:
        get(server.url)
        download(f"{server.url}/x.csv", 1000)
        assert [headers for *_, headers in server.received if "Authorization" in headers] == []


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """The PEM file of a self-signed certificate for localhost and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(days=2))
    builder = builder.not_valid_after(now + datetime.timedelta(days=2))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    pem = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    file = tmp_path_factory.mktemp("tls") / "server.pem"
    file.write_bytes(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return file


@pytest.fixture
def tls_port(certificate) -> Iterator[int]:
    """The port of an HTTPS server with that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ScriptedServer(tls=context) as server:
        yield server.port


def test_certificates_of_ssl_cert_file_are_trusted(tls_port, certificate):
    url = f"https://localhost:{tls_port}"
    assert get(url, SSL_CERT_FILE=f"{certificate}").status_code == 200
    assert get(url, SSL_CERT_FILE=f"{certificate}", SSL_CERT_DIR="/no/such/folder").status_code == 200
    with pytest.raises(
        UnusableNetwork, match=r"the certificate of localhost cannot be verified \(self.signed.*SSL_CERT_FILE"
    ):
        get(url)
    with pytest.raises(UnusableNetwork, match=r"certificate of 127.0.0.1 cannot be verified \(.*mismatch"):
        get(f"https://127.0.0.1:{tls_port}", SSL_CERT_FILE=f"{certificate}")


def test_a_tls_key_log_is_neither_written_nor_required(tls_port, certificate, monkeypatch, tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        monkeypatch.setenv("SSLKEYLOGFILE", f"{folder}/keys.log")
        assert get(f"https://localhost:{tls_port}", SSL_CERT_FILE=f"{certificate}").status_code == 200
    assert not (tmp_path / "keys.log").exists()


@pytest.mark.parametrize("url", ["gopher://x.example", f"https://{'x' * 70}.example"])
def test_a_url_that_cannot_be_requested_is_an_error(url):
    with client(DIRECT, 5) as http, pytest.raises((UnusableNetwork, httpx.ConnectError)):
        http.get(url)
