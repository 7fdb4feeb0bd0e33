"""Case proxy-before-loopback: no proxy is used for loopback; a failing proxy is reported without its password."""

import pytest

from affiliate_pipeline import environment as settings
from affiliate_pipeline.http import retry
from affiliate_pipeline.http.download import ping_heartbeat
from affiliate_pipeline.http.network import Network
from affiliate_pipeline.monitoring import delivery
from affiliate_pipeline.monitoring.alerts import Alert
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, KEY
from affiliate_pipeline_tests.proxy import Proxy

UNREACHABLE = "http://127.0.0.1:9"
PASSWORD = "hunter2-hunter2"
EXCHANGE = "exchange.example"
VARIABLES = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"]


@pytest.fixture
def only_binance(both_exchanges, monkeypatch):
    """Sets Binance's base URL to another host, with this scheme; only Binance's partner is configured."""
    for name in ("LBANK_API_KEY", "LBANK_API_SECRET", "LBANK_OPEN_ID", "AFFILIATE_RATE_SCALE"):
        monkeypatch.delenv(name)
    for name in ("BINANCE_CLIENT_API_KEY", "BINANCE_CLIENT_API_SECRET"):
        monkeypatch.delenv(name)
    return lambda scheme: monkeypatch.setenv("BINANCE_BASE_URL", f"{scheme}://{EXCHANGE}")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_loopback_is_never_reached_through_a_proxy(both_exchanges, run_check, monkeypatch, host):
    with Proxy(status=502) as proxy:
        for name in VARIABLES:
            monkeypatch.setenv(name, proxy.url)
        for name in ("BINANCE_BASE_URL", "LBANK_BASE_URL"):
            monkeypatch.setenv(name, both_exchanges.url.replace("127.0.0.1", host))
        assert run_check().count("accepts the credentials") == 3
        assert land(KEY, DAYS[:1]).success
        assert proxy.received == []


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")
def test_heartbeats_and_alerts_to_loopback_use_no_proxy(webhook, monkeypatch):
    for name in VARIABLES:
        monkeypatch.setenv(name, UNREACHABLE)
    assert ping_heartbeat(webhook.heartbeat_url, Network(settings.configured().variables)) is None
    monkeypatch.setenv("NO_PROXY", "intranet.example")
    monkeypatch.setenv("no_proxy", "intranet.example")
    settings.exclude_loopback_from_proxies()
    assert delivery.send(webhook.url, delivery.messages([Alert("key", "title", "text")])[0]) is None


def test_a_day_lands_through_a_proxy(both_exchanges, only_binance, monkeypatch):
    only_binance("http")
    with Proxy(target=both_exchanges.url) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("://", f"://user:{PASSWORD}%40@"))
        assert land(KEY, DAYS[:1]).success
        method, url, headers = proxy.received[0]
    assert method == "GET" and url.startswith(f"http://{EXCHANGE}/")
    assert headers["Proxy-Authorization"].startswith("Basic ")


def test_a_proxy_of_the_env_file_is_used(both_exchanges, only_binance, monkeypatch, tmp_path):
    only_binance("http")
    monkeypatch.setenv("HTTP_PROXY", UNREACHABLE)
    with Proxy(target=both_exchanges.url) as proxy:
        (tmp_path / ".env").write_text(f"HTTP_PROXY={proxy.url}\n")
        assert land(KEY, DAYS[:1]).success


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_unreachable_proxy_is_reported(both_exchanges, run_check, only_binance, monkeypatch, scheme):
    only_binance(scheme)
    variable = f"{scheme.upper()}_PROXY"
    monkeypatch.setenv(variable, f"http://user:{PASSWORD}@127.0.0.1:9")
    expected = f"the proxy 127.0.0.1:9 ({variable}) could not be reached"
    printed = run_check()
    assert expected in printed and "status page" not in printed and PASSWORD not in printed

    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.2)
    reason = land(KEY, DAYS[:1]).failed[DAYS[0]]
    assert expected in reason and "status page" not in reason and PASSWORD not in reason
    assert both_exchanges.requests == []


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_refusing_proxy_is_reported(both_exchanges, run_check, only_binance, monkeypatch, scheme):
    only_binance(scheme)
    monkeypatch.setattr(retry, "SILENCE_LIMIT_S", 0.2)
    for status in (502, 403, 407):
        with Proxy(status=status) as proxy:
            monkeypatch.setenv("all_proxy", proxy.url.replace("://", f"://user:{PASSWORD}@"))
            expected = f"the proxy 127.0.0.1:{proxy.port} (all_proxy)"
            texts = [run_check(), land(KEY, DAYS[:1]).failed[DAYS[0]]]
        for text in texts:
            assert expected in text and str(status) in text and PASSWORD not in text
            assert "status page" not in text and "Binance returned" not in text
            assert ("user and password" in text) == (status == 407)
            assert ("refused the request" in text) == (status != 502)


def test_an_error_of_the_exchange_is_not_attributed_to_the_proxy(run_check, only_binance, monkeypatch):
    only_binance("http")
    with Proxy(status=403, content_type="application/json") as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        printed = run_check()
    assert "Binance returned HTTP 403" in printed and f"the proxy 127.0.0.1:{proxy.port}" not in printed
