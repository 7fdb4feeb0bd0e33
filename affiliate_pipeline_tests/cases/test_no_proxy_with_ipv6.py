"""Case no-proxy-with-ipv6: proxy and certificate variables that the HTTP library rejects are applied, ignored or reported."""

from pathlib import Path

import pytest

from affiliate_pipeline import environment as settings
from affiliate_pipeline_tests.conftest import materialize
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


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in HARMLESS.items() for value in values])
def test_a_harmless_value_changes_nothing(run_check, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert run_check().count("accepts the credentials") == 3
    assert materialize(KEY, DAYS[:1]).success


def test_an_empty_variable_in_lower_case_hides_the_one_in_upper_case(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    assert settings.configured().variables["HTTPS_PROXY"] == "http://proxy.example"
    monkeypatch.setenv("https_proxy", "")
    assert "HTTPS_PROXY" not in settings.configured().variables


def test_an_unusable_value_is_ignored_where_no_request_needs_it(run_check, monkeypatch):
    for name, values in UNUSABLE.items():
        monkeypatch.setenv(name, values[0])
    assert run_check().count("accepts the credentials") == 3


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNUSABLE.items() for value in values])
def test_an_unusable_value_is_reported_where_a_request_needs_it(
    both_exchanges, run_check, monkeypatch, tmp_path, name, value
):
    (tmp_path / "not.pem").write_text("no certificate")
    monkeypatch.setenv(name, value.format(folder=tmp_path))
    monkeypatch.setenv("BINANCE_BASE_URL", "https://exchange.example")
    monkeypatch.delenv("AFFILIATE_RATE_SCALE")
    printed, run = run_check(), materialize(KEY, DAYS[:2])
    assert set(run.failed) == set(DAYS[:2])
    for text in (printed, *run.failed.values()):
        assert name in text and PASSWORD not in text and "Traceback" not in text and "status page" not in text
    kinds = (
        "is not the URL of a proxy",
        "is a SOCKS proxy",
        "SSL_CERT_FILE cannot be used",
        "SSL_CERT_DIR cannot be used",
    )
    assert any(kind in printed for kind in kinds)
    assert "unset it" in printed or "Install httpx[socks]" in printed
