"""The accounts that variables configure, and the endpoints of assets."""

import pytest

from affiliate_pipeline.exchanges.registry import (
    ENDPOINTS,
    configured_catalog,
    endpoints_of,
    is_any_exchange_configured,
    unusable_variables,
)


def accounts(*names: str) -> set[str]:
    """The further accounts of these variables, with their exchanges."""
    endpoints = configured_catalog(dict.fromkeys(names, "x")).endpoints
    return {f"{each.exchange.name} {each.alias}" for each in endpoints if each.alias}


def test_an_account_is_configured_by_any_of_its_variables():
    assert accounts("LBANK_OPEN_ID__ACME", "BINANCE_CUSTOMER_IDS__B2_C") == {"lbank acme", "binance b2_c"}
    longest = "A" * 31
    assert accounts(f"LBANK_API_KEY__{longest}") == {f"lbank {longest.lower()}"}
    assert accounts("BINANCE_WEIGHT_PER_MINUTE__ACME", "AFFILIATE_START_DATE__ACME", "LBANK_API_KEY") == set()


@pytest.mark.parametrize("suffix", ["", "acme", "2ND", "_ACME", "A__B", "A" * 32, "Ä", "A-B"])
def test_a_malformed_alias_configures_no_account_but_its_exchange_counts_as_configured(suffix):
    name = f"LBANK_API_KEY__{suffix}"
    assert accounts(name) == set()
    assert [each.name for each in unusable_variables({name: "x"})] == [name]
    # Otherwise, `up` would start the sandbox.
    assert is_any_exchange_configured({name: "x"})


def test_the_endpoints_of_the_default_accounts_are_unchanged_and_come_first():
    found = configured_catalog({"LBANK_API_KEY__ACME": "x"})
    assert found.endpoints[: len(ENDPOINTS)] == ENDPOINTS
    assert [each.key for each in found.endpoints[len(ENDPOINTS) :]] == [
        each.key.replace("/", "/acme/") for each in ENDPOINTS if each.exchange.name == "lbank"
    ]
    assert [each.key for each in found.reference_tables] == ["lbank/roster", "lbank/acme/roster"]


def test_the_endpoint_of_an_asset_has_its_alias():
    found = endpoints_of(["lbank/trade_user", "lbank/acme/trade_user", "lbank/roster", "other/trade_user", "x"])
    assert [(each.key, each.alias) for each in found] == [("lbank/trade_user", ""), ("lbank/acme/trade_user", "acme")]


def test_an_endpoint_falls_back_to_one_of_the_same_account():
    timetables = [each.timetable for each in configured_catalog({"BINANCE_CUSTOMER_IDS__ACME": "x"}).endpoints]
    fallbacks = {each.asset: each.fallback.asset for each in timetables if each.fallback}
    assert fallbacks == {
        f"binance/{part}kickback_recent_record": f"binance/{part}kickback_historical_record" for part in ("", "acme/")
    }
