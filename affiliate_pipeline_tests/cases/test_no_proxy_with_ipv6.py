"""Case no-proxy-with-ipv6: proxy and certificate variables that the HTTP library rejects are applied, ignored or reported."""

from pathlib import Path

import httpx
import pytest

from affiliate_pipeline import environment as settings
from affiliate_pipeline.http.errors import UnusableNetwork
from affiliate_pipeline.http.network import Network, client
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY

CASE = Path(__file__).parent / "no-proxy-with-ipv6"
PASSWORD = "hunter2-hunter2"
HARMLESS = {
    "NO_PROXY": [
        (CASE / "environment").read_text().strip().partition("=")[2],
        "::1/128,fd00::/8",
        "[fe80::1%eth0]:8080",
        "10.0.0.0/8;<local>",
        "*.corp,,  .corp:8443 http://intranet",
        "host:port,[::1,a/b,\u00e9.example,http://[",
    ],
    "SSLKEYLOGFILE": ["/no/such/folder/keys.log"],
    "SSL_CERT_FILE": [""],
}
# Requests to loopback use no proxy and no certificate, so they succeed in spite of these values.
UNUSABLE = {
    "HTTPS_PROXY": [
        f"http://user:{PASSWORD}@proxy.example:port",
        f"http://user:{PASSWORD}@proxy.example:99999",
        f"http://user:{PASSWORD}@",
        "http://",
        "ftp://proxy.example",
        "http://pro xy.example",
        "http://[::1:3128",
    ],
    "ALL_PROXY": ["socks5://proxy.example:1080", "socks://proxy.example:1080", "socks4://proxy.example:1080"],
    "SSL_CERT_FILE": ["/no/such/file.pem", "/", "{folder}/not.pem"],
    "SSL_CERT_DIR": ["/no/such/folder", "{folder}"],
}


KINDS = (
    "is not the URL of a proxy",
    "is a SOCKS proxy",
    "SSL_CERT_FILE cannot be used",
    "SSL_CERT_DIR cannot be used",
)
ACTIONS = ("unset it", "Install httpx[socks]")


def get(url: str) -> httpx.Response:
    """The response to a request that uses the current variables of this process."""
    with client(Network(settings.configured().variables), 5) as http:
        return http.get(url)


def test_a_request_to_loopback_succeeds_with_each_harmless_or_unusable_value(sandbox, monkeypatch):
    cases = [(name, value) for table in (HARMLESS, UNUSABLE) for name, values in table.items() for value in values]
    statuses = {}
    for name, value in cases:
        with monkeypatch.context() as patch:
            patch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
            patch.setenv(name, value)
            statuses[name, value] = get(f"{sandbox.url}/api/v3/time").status_code
    assert statuses == dict.fromkeys(cases, 200)


def test_harmless_values_do_not_change_which_proxy_is_used(monkeypatch):
    cases = [(name, value) for name, values in HARMLESS.items() for value in values]
    proxies = {}
    for name, value in cases:
        with monkeypatch.context() as patch:
            patch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
            patch.setenv(name, value)
            network = Network(settings.configured().variables)
            network.tls()
            proxies[name, value] = str(network.proxy_for(httpx.URL("https://x.example")))
    assert proxies == dict.fromkeys(cases, "the proxy proxy.example:3128 (HTTPS_PROXY)")


def test_harmless_values_change_nothing(run_check, monkeypatch):
    for name, values in HARMLESS.items():
        monkeypatch.setenv(name, values[0])
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert run_check().count("accepts the credentials") == 3
    assert land(KEY, DAYS[:1]).success


def test_an_empty_variable_in_lower_case_hides_the_one_in_upper_case(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    assert settings.configured().variables["HTTPS_PROXY"] == "http://proxy.example"
    monkeypatch.setenv("https_proxy", "")
    assert "HTTPS_PROXY" not in settings.configured().variables


def test_an_unusable_value_is_ignored_where_no_request_needs_it(run_check, monkeypatch):
    for name, values in UNUSABLE.items():
        monkeypatch.setenv(name, values[0])
    assert run_check().count("accepts the credentials") == 3


def test_each_unusable_value_is_an_error_that_names_the_variable(monkeypatch, tmp_path):
    (tmp_path / "not.pem").write_text("no certificate")
    cases = [(name, value) for name, values in UNUSABLE.items() for value in values]
    found = {}
    for name, value in cases:
        with monkeypatch.context() as patch, pytest.raises(UnusableNetwork) as raised:
            patch.setenv(name, value.format(folder=tmp_path))
            get("https://exchange.example")
        problem = raised.value.problem
        found[name, value] = [
            any(kind in problem.what for kind in KINDS),
            name in problem.what and PASSWORD not in f"{raised.value!r} {problem}",
            any(action in (problem.action or "") for action in ACTIONS),
        ]
    assert found == dict.fromkeys(cases, [True] * 3)


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "SSL_CERT_FILE"])
def test_an_unusable_value_is_reported_where_a_request_needs_it(both_exchanges, run_check, monkeypatch, name):
    monkeypatch.setenv(name, UNUSABLE[name][0])
    monkeypatch.setenv("BINANCE_BASE_URL", "https://exchange.example")
    monkeypatch.delenv("AFFILIATE_RATE_SCALE")
    printed, run = run_check(), materialize(KEY, DAYS[:2])
    assert set(run.failed) == set(DAYS[:2])
    for text in (printed, *run.failed.values()):
        assert name in text and PASSWORD not in text and "Traceback" not in text and "status page" not in text
    assert any(kind in printed for kind in KINDS)
    assert any(action in printed for action in ACTIONS)
