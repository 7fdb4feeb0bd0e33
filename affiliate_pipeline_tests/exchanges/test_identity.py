"""API keys and their accounts: rotated keys continue their account's days, keys of other accounts are refused by name."""

import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from threading import Barrier
from typing import Literal

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from affiliate_pipeline.app.__main__ import app
from affiliate_pipeline.app.cli import CommandError
from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.identity import (
    AccountKeys,
    Key,
    KeyIdentity,
    KeyRefused,
    fingerprint_of,
    nothing_landed,
)
from affiliate_pipeline.exchanges.lbank.exchange import TRADE_USER
from affiliate_pipeline.exchanges.registry import configured_catalog
from affiliate_pipeline.http import retry
from affiliate_pipeline.http.errors import Transient
from affiliate_pipeline.landing.pipeline import connected
from affiliate_pipeline.landing.store import Store
from affiliate_pipeline.sandbox import Sandbox
from affiliate_pipeline.sandbox.binance.exchange import ACCOUNT, Role
from affiliate_pipeline.sandbox.exchange import Response
from affiliate_pipeline_tests.defs.direct_runs import DirectRun, land
from affiliate_pipeline_tests.defs.kickbacks import HISTORY, REQUEST, exports
from affiliate_pipeline_tests.defs.rebates import DAYS, SETTLED, TODAY, ago, at, rebate

REBATES, KICKBACKS = "binance/rebate_recent_record", "binance/kickback_recent_record"
ASSIGNMENT = "binance/customization_assignment"
USERS, FUTURES, COMMISSION = "lbank/invite_user_list", "lbank/trade_future", "lbank/commission_stats_symbol_list"
NOTHING_REQUESTED = "No record has been requested with it"


@pytest.fixture
def sandbox(sandbox: Sandbox) -> Sandbox:
    """The sandbox with two rebates a day in each account."""
    for account in sandbox.accounts.values():
        account.binance.set_rebates(rebate(at(day), number) for day in DAYS for number in range(2))
    return sandbox


@pytest.fixture
def recorded(query) -> Callable[[], list[tuple]]:
    """Returns the recorded keys of one exchange and role by alias, the oldest first."""

    def recorded(exchange: str = "binance", role: str = "partner") -> list[tuple]:
        return query(
            "select alias, identity, fingerprint from affiliate.account where exchange = %s and role = %s "
            "order by alias, first_seen",
            exchange,
            role,
        )

    return recorded


@pytest.fixture
def set_key(monkeypatch) -> Callable[..., None]:
    """Configures an API key and its secret."""

    def set_key(role: str, api_key: str, secret: str, alias: str = "") -> None:
        suffix = f"__{alias.upper()}" if alias else ""
        name = "LBANK" if role == "affiliate" else f"BINANCE_{role.upper()}"
        monkeypatch.setenv(f"{name}_API_KEY{suffix}", api_key)
        monkeypatch.setenv(f"{name}_API_SECRET{suffix}", secret)

    return set_key


def pem(key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey) -> tuple[str, str]:
    """The private and the public key."""
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    return private, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def rotate(sandbox: Sandbox, set_key: Callable[..., None], role: Role | Literal["affiliate"] = "partner") -> str:
    """Replace the default account's key by a new one with an Ed25519 or RSA pair; return its fingerprint."""
    api_key = f"key-{role}-2"
    if role == "affiliate":
        private, public = pem(rsa.generate_private_key(65537, 2048))
        sandbox.lbank.add_key(api_key, public)
    else:
        private, public = pem(ed25519.Ed25519PrivateKey.generate())
        sandbox.binance.add_key(api_key, public, role)
    set_key(role, api_key, private)
    return fingerprint_of(api_key)


def requested(sandbox: Sandbox) -> list[str]:
    return [request.path for request in sandbox.requests]


def refused(run: DirectRun, *texts: str) -> None:
    """Assert that all days failed with these texts."""
    assert run.failed and not run.landed and not run.retained
    for text in (*texts, NOTHING_REQUESTED):
        assert all(text in reason for reason in run.failed.values()), (text, run.message)


def rotate_key(*arguments: str) -> None:
    app(["rotate-key", *arguments], standalone_mode=False)


# Rotated keys


def test_a_rotated_key_of_binance_continues_the_days_of_the_earlier_one(sandbox, query, recorded, set_key):
    assert land(REBATES, DAYS[:2]).success
    [(before,)] = query("select distinct source from affiliate.landing")
    fingerprint = rotate(sandbox, set_key)
    sandbox.binance.set_rebates([*sandbox.binance.rebates(DAYS[0]), rebate(at(DAYS[1])), rebate(at(DAYS[2]))])

    run = land(REBATES, DAYS[:3], allow_shrink=True)

    assert run.success, run.message
    assert {day: landed.changed for day, landed in run.landed.items()} == {DAYS[0]: False, DAYS[1]: True, DAYS[2]: True}
    # An unchanged day keeps the source that wrote it.
    after = query("select partition, source from affiliate.landing order by 1")
    assert after[0] == (DAYS[0], before)
    assert [day for day, _ in after[1:]] == DAYS[1:3] and {source.split()[-1] for _, source in after[1:]} == {
        fingerprint
    }
    assert fingerprint not in before
    uid = str(sandbox.binance.uids["partner"])
    assert recorded() == [("", uid, fingerprint_of(sandbox.binance.partner_key)), ("", uid, fingerprint)]


def test_a_rotated_key_of_lbank_continues_days_roster_and_cached_responses(
    both_exchanges, query, recorded, set_key, monkeypatch
):
    sandbox = both_exchanges
    for asset in (USERS, COMMISSION):
        assert land(asset, DAYS[:1]).success
    # LBank refuses all requests after the first one, so this run leaves one cached response.
    sandbox.requests.clear()
    sandbox.lbank.after_page = lambda path, _: sandbox.lbank.refused_paths.update({path: 10601})
    assert not land(COMMISSION, DAYS[:2]).success
    sandbox.lbank.after_page = None
    sandbox.lbank.refused_paths.clear()
    [cached] = [request for request in sandbox.requests if request.code is None]
    monkeypatch.setenv("LBANK_SIGNATURE_METHOD", "RSA")
    fingerprint = rotate(sandbox, set_key, "affiliate")
    sandbox.requests.clear()

    for asset in (USERS, COMMISSION):
        run = land(asset, DAYS[:2])
        assert run.success, run.message

    # The key is verified by a request for `TRADE_USER`.
    assert requested(sandbox).count(TRADE_USER) == 1 and requested(sandbox)[0] == TRADE_USER
    requested_ids = {request.params["openId"] for request in sandbox.requests if request.path == cached.path}
    assert requested_ids and cached.params["openId"] not in requested_ids
    # A run with an outcome for every day deletes the cached responses of all keys of its account.
    assert query("select count(*) from affiliate.answer") == [(0,)]
    own = sandbox.lbank.own_open_id
    assert recorded("lbank", "affiliate") == [
        ("", own, fingerprint_of(sandbox.lbank.api_key)),
        ("", own, fingerprint),
    ]


def test_rejected_rows_of_an_earlier_key_land(sandbox, query, set_key):
    sandbox.faults.transform_row = lambda row: row | {"income": "lots"}
    assert not land(REBATES, [SETTLED]).success
    query("""update affiliate.rejected_row set payload = jsonb_set(payload, '{income}', '"1.0"')""")
    rotate(sandbox, set_key)
    run = land(REBATES, [SETTLED], from_rejected=True)
    assert run.success, run.message


def test_a_pending_action_of_an_earlier_key_lands_once(sandbox, query, set_key, monkeypatch, tmp_path):
    file = tmp_path / "customers.csv"
    file.write_text("customerId,email\nnew1,jane.doe1@example.com\n")
    monkeypatch.setenv("BINANCE_CUSTOMER_IDS", str(file))
    # The state after a run that ended between the POST and the storing of its outcome.
    sandbox.binance.customers.assign("new1", "jane.doe1@example.com")
    pending = (
        '{"customerId":"new1","email":"jane.doe1@example.com","beforeCustomerId":null,"outcome":"unknown","message":null,'
        '"attemptedAt":1764000000000}'
    )
    assert land(REBATES, [SETTLED]).success
    query(
        "insert into affiliate.attempt select %s, source, '1', %s::text::bytea from affiliate.landing",
        ASSIGNMENT,
        pending,
    )
    rotate(sandbox, set_key)

    run = land(ASSIGNMENT, [TODAY])

    assert run.success, run.message
    assert query("select customer_id, outcome from binance.customization_assignment") == [("new1", "assigned")]
    assert query("select count(*) from affiliate.attempt") == [(0,)]
    assert [request for request in sandbox.requests if request.method == "POST"] == []


def test_an_export_begun_with_an_earlier_key_lands_with_the_new_one(sandbox, query, set_key):
    days = [ago(10), ago(9)]
    assert land(REQUEST, days).success
    assert exports(query) == [("collecting",)]
    rotate(sandbox, set_key, "client")

    run = land(HISTORY, days)

    assert run.success, run.message
    assert exports(query) == [("landed",)]
    assert sum(request.method == "POST" for request in sandbox.requests) == 1


# Keys of other accounts


def test_swapped_keys_of_two_accounts_are_refused_by_name_before_any_record(two_accounts, query, set_key):
    acme = two_accounts.accounts["acme"]
    for alias in ("", "acme/"):
        assert land(f"binance/{alias}rebate_recent_record", [SETTLED]).success
        assert land(f"lbank/{alias}invite_user_list", [SETTLED]).success
    before = query("select asset, partition, content_hash, source from affiliate.landing order by 1, 2")
    set_key("partner", acme.binance.partner_key, acme.binance.partner_secret)
    set_key("partner", two_accounts.binance.partner_key, two_accounts.binance.partner_secret, "acme")
    set_key("affiliate", acme.lbank.api_key, acme.lbank.api_secret)
    set_key("affiliate", two_accounts.lbank.api_key, two_accounts.lbank.api_secret, "acme")
    two_accounts.requests.clear()

    swapped = {
        "binance/rebate_recent_record": "BINANCE_PARTNER_API_KEY is a key of the account that lands as binance/acme (partner)",
        "binance/acme/rebate_recent_record": "BINANCE_PARTNER_API_KEY__ACME is a key of the account that lands as binance (partner)",
        "lbank/invite_user_list": "LBANK_API_KEY is a key of the account that lands as lbank/acme (affiliate)",
        "lbank/acme/invite_user_list": "LBANK_API_KEY__ACME is a key of the account that lands as lbank (affiliate)",
    }
    for asset, text in swapped.items():
        refused(land(asset, [SETTLED, DAYS[1]]), text, "the keys of the two accounts are swapped")
    assert two_accounts.requests == []

    # New keys, whose accounts have to be requested.
    for lbank in (two_accounts.lbank, acme.lbank):
        lbank.add_key(f"new-{lbank.own_open_id}", "a-new-secret")
    set_key("affiliate", f"new-{acme.lbank.own_open_id}", "a-new-secret")
    acme.binance.add_key("new-acme", "a-new-secret", "partner")
    set_key("partner", "new-acme", "a-new-secret")

    refused(land(USERS, [SETTLED]), "LBANK_API_KEY is the key of another account than LBANK_OPEN_ID", "10022")
    refused(land(REBATES, [SETTLED]), "BINANCE_PARTNER_API_KEY is a key of the account that lands as binance/acme")
    assert requested(two_accounts) == [TRADE_USER, ACCOUNT]
    assert query("select asset, partition, content_hash, source from affiliate.landing order by 1, 2") == before


def test_another_accounts_key_of_lbank_with_our_open_id_lands_nothing(both_exchanges, set_key, query):
    other = both_exchanges.accounts["acme"].lbank
    set_key("affiliate", other.api_key, other.api_secret)
    refused(land(USERS, [SETTLED]), "LBANK_API_KEY is the key of another account than LBANK_OPEN_ID")
    assert requested(both_exchanges) == [TRADE_USER]
    assert query("select count(*) from affiliate.account") == [(0,)]


def test_an_ip_address_that_is_not_on_the_keys_list_is_not_reported_as_another_accounts_key(both_exchanges):
    body = b'{"result":"false","error_code":10022,"msg":"ip not allowed"}'
    both_exchanges.faults.next_responses.append((200, {}, body))
    run = land(USERS, [SETTLED])
    assert "ip not allowed" in run.failed[SETTLED] and "IP address is not on its list" in run.failed[SETTLED]
    assert "of another account" not in run.message


def test_a_key_of_another_account_is_refused_and_both_identities_are_named(sandbox, set_key):
    assert land(REBATES, [SETTLED]).success
    other = sandbox.accounts["acme"].binance
    set_key("partner", other.partner_key, other.partner_secret)
    sandbox.requests.clear()
    refused(
        land(REBATES, [DAYS[1]]),
        f"BINANCE_PARTNER_API_KEY is a key of account {other.uids['partner']}, but the landed days of binance "
        f"(partner) are from account {sandbox.binance.uids['partner']}",
    )
    assert requested(sandbox) == [ACCOUNT]


def test_another_open_id_of_a_known_key_is_refused_at_once(both_exchanges, monkeypatch):
    assert land(USERS, [SETTLED]).success
    monkeypatch.setenv("LBANK_OPEN_ID", both_exchanges.accounts["acme"].lbank.own_open_id)
    both_exchanges.requests.clear()
    refused(land(USERS, [SETTLED]), "LBANK_API_KEY is the key of another account than LBANK_OPEN_ID")
    assert requested(both_exchanges) == [TRADE_USER]


def test_key_and_open_id_of_another_account_are_refused(both_exchanges, monkeypatch, set_key):
    assert land(USERS, [SETTLED]).success
    other = both_exchanges.accounts["acme"].lbank
    set_key("affiliate", other.api_key, other.api_secret)
    monkeypatch.setenv("LBANK_OPEN_ID", other.own_open_id)
    refused(land(USERS, [DAYS[1]]), f"LBANK_API_KEY is a key of account {other.own_open_id}, but the landed days")


def test_a_new_key_of_the_same_account_is_refused_under_another_alias(two_accounts, set_key, monkeypatch):
    assert land(REBATES, [SETTLED]).success
    assert land(USERS, [SETTLED]).success
    two_accounts.binance.add_key("second", "a-second-secret", "partner")
    two_accounts.lbank.add_key("second", "a-second-secret")
    set_key("partner", "second", "a-second-secret", "acme")
    set_key("affiliate", "second", "a-second-secret", "acme")
    monkeypatch.setenv("LBANK_OPEN_ID__ACME", two_accounts.lbank.own_open_id)
    counted_twice = "its records would be counted twice"
    refused(land("binance/acme/rebate_recent_record", [SETTLED]), "the account that lands as binance", counted_twice)
    refused(land("lbank/acme/invite_user_list", [SETTLED]), "the account that lands as lbank", counted_twice)


# Keys whose account the exchange does not state


def test_where_the_account_is_not_stated_a_first_key_lands_and_a_second_one_needs_a_confirmation(
    sandbox, recorded, set_key, capsys, query
):
    sandbox.binance.keys_without_uid_permission |= {sandbox.binance.partner_key, "key-partner-2"}
    first = fingerprint_of(sandbox.binance.partner_key)
    assert land(REBATES, DAYS[:1]).success
    assert recorded() == [("", first, first)]
    second = rotate(sandbox, set_key)
    sandbox.requests.clear()

    run = land(REBATES, DAYS[:1])
    command = "affiliate-pipeline rotate-key binance --role partner"
    refused(run, "BINANCE_PARTNER_API_KEY is a new key of binance (partner)", f"{command}`")
    assert requested(sandbox) == [ACCOUNT]

    with pytest.raises(CommandError, match=rf"without a terminal.*{re.escape(command)} --yes"):
        rotate_key("binance", "--role", "partner")
    assert recorded() == [("", first, first)]
    rotate_key("binance", "--role", "partner", "--yes")
    shown = capsys.readouterr().out
    assert first in shown and second in shown and "key-partner-2" not in shown
    assert recorded() == [("", first, first), ("", first, second)]
    assert land(REBATES, DAYS[:2]).success

    # Once the exchange states the account, that identity is recorded for all keys of the account.
    sandbox.binance.keys_without_uid_permission.clear()
    query("update affiliate.account set last_seen = last_seen - interval '25 hours'")
    assert land(REBATES, DAYS[:2]).success
    uid = str(sandbox.binance.uids["partner"])
    assert recorded() == [("", uid, first), ("", uid, second)]


def test_on_a_terminal_the_confirmation_is_a_question(sandbox, recorded, set_key, monkeypatch):
    sandbox.binance.keys_without_uid_permission |= {sandbox.binance.partner_key, "key-partner-2"}
    assert land(REBATES, DAYS[:1]).success
    rotate(sandbox, set_key)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("typer.confirm", lambda _: False)
    with pytest.raises(CommandError, match="nothing was recorded"):
        rotate_key("binance", "--role", "partner")
    assert len(recorded()) == 1
    monkeypatch.setattr("typer.confirm", lambda _: True)
    rotate_key("binance", "--role", "partner")
    assert len(recorded()) == 2


@pytest.mark.parametrize("is_first_stated", [True, False])
def test_a_key_needs_a_confirmation_if_the_exchange_states_the_account_of_only_one_of_the_two_keys(
    sandbox, recorded, set_key, is_first_stated
):
    first = sandbox.binance.partner_key
    sandbox.binance.keys_without_uid_permission.add("key-partner-2" if is_first_stated else first)
    assert land(REBATES, DAYS[:1]).success
    rotate(sandbox, set_key)
    refused(land(REBATES, DAYS[:1]), "rotate-key")
    rotate_key("binance", "--role", "partner", "--yes")
    assert {identity for _, identity, _ in recorded()} == {str(sandbox.binance.uids["partner"])}
    assert land(REBATES, DAYS[:1]).success


@pytest.mark.parametrize("is_clients_key", [True, False])
def test_a_wrong_first_key_that_has_landed_nothing_can_be_corrected(sandbox, recorded, set_key, is_clients_key):
    own = sandbox.binance
    set_key("partner", *((own.client_key, own.client_secret) if is_clients_key else ("x" * 64, "y" * 64)))
    assert land(KICKBACKS, DAYS[:1]).success
    assert "-2015" in land(REBATES, DAYS[:1]).message
    set_key("partner", own.partner_key, own.partner_secret)
    assert land(REBATES, DAYS[:1]).success
    assert recorded() == [("", str(own.uids["partner"]), fingerprint_of(own.partner_key))]
    # Partner and client are accounts of their own.
    assert recorded("binance", "client") == [("", str(own.uids["client"]), fingerprint_of(own.client_key))]


def test_a_wrong_first_open_id_that_has_landed_nothing_can_be_corrected(both_exchanges, query, recorded, monkeypatch):
    lbank = both_exchanges.lbank
    with monkeypatch.context() as patch:
        patch.setenv("LBANK_OPEN_ID", wrong := lbank.add_user())
        query("alter table affiliate.landing add constraint nothing check (false)")
        assert not land(USERS, [SETTLED]).success
        query("alter table affiliate.landing drop constraint nothing")
    assert recorded("lbank", "affiliate") == [("", wrong, fingerprint_of(lbank.api_key))]

    assert land(USERS, [SETTLED]).success
    assert recorded("lbank", "affiliate") == [("", lbank.own_open_id, fingerprint_of(lbank.api_key))]


def test_rotate_key_records_a_key_whose_account_is_stated_and_refuses_that_of_another_account(
    sandbox, recorded, set_key, capsys
):
    assert land(REBATES, DAYS[:1]).success
    rotate(sandbox, set_key)
    rotate_key("binance", "--role", "partner")
    assert "needs no confirmation" in capsys.readouterr().out and len(recorded()) == 2
    other = sandbox.accounts["acme"].binance
    set_key("partner", other.partner_key, other.partner_secret)
    with pytest.raises(KeyRefused, match="is a key of account .*, but the landed days"):
        rotate_key("binance", "--role", "partner", "--yes")
    assert len(recorded()) == 2


def test_rotate_key_names_the_accounts_and_roles_that_exist(two_accounts):
    with pytest.raises(CommandError, match="there is no account lbank other. There are binance, binance acme, lbank"):
        rotate_key("lbank", "--account", "other")
    with pytest.raises(CommandError, match="binance has keys of the roles partner, client. Name one with --role"):
        rotate_key("binance")


@pytest.mark.parametrize("body", [b"{}", b'{"uid": null}', b"[]", b"{"])
def test_a_response_without_a_uid_states_no_account_and_a_cut_off_one_fails(sandbox, recorded, monkeypatch, body):
    own = sandbox.binance.partner_key
    respond = sandbox.binance.respond
    monkeypatch.setattr(
        sandbox.binance, "respond", lambda call: Response(200, body) if call.path == ACCOUNT else respond(call)
    )
    is_cut_off = body == b"{"
    assert land(REBATES, [SETTLED]).success is not is_cut_off
    assert recorded() == ([] if is_cut_off else [("", fingerprint_of(own), fingerprint_of(own))])


def test_a_closed_interface_of_lbank_states_no_account_and_stops_no_other_endpoint(both_exchanges, recorded):
    both_exchanges.lbank.refused_paths[TRADE_USER] = 10601
    assert land(USERS, [SETTLED]).success
    [(_, identity, fingerprint)] = recorded("lbank", "affiliate")
    assert identity == fingerprint


# Verification


def test_a_key_is_verified_again_after_24_hours(sandbox, database_url, query):
    variables = configured().variables
    endpoint = next(each for each in configured_catalog(variables).endpoints if each.key == REBATES)

    def verifications() -> int:
        sandbox.requests.clear()
        with Store(database_url) as store, connected(endpoint, store, variables) as session:
            assert session.identity.sources  # Reading the sources verifies the key.
        return requested(sandbox).count(ACCOUNT)

    assert [verifications(), verifications()] == [1, 0]
    query("update affiliate.account set last_seen = last_seen - interval '23 hours 59 minutes'")
    assert verifications() == 0
    query("update affiliate.account set last_seen = last_seen - interval '1 minute'")
    assert [verifications(), verifications()] == [1, 0]


def test_a_known_key_whose_account_has_changed_is_refused(sandbox, query):
    assert land(REBATES, [SETTLED]).success
    sandbox.binance.uids["partner"] += 1
    assert land(REBATES, [DAYS[1]]).success
    query("update affiliate.account set last_seen = last_seen - interval '25 hours'")
    refused(
        land(REBATES, [DAYS[2]]), f"BINANCE_PARTNER_API_KEY is a key of account {sandbox.binance.uids['partner']}, but"
    )


def test_a_failing_verification_fails_the_days_and_is_repeated_by_the_next_run(sandbox):
    sandbox.faults.next_responses.extend([(500, {}, b"")] * retry.MAX_ATTEMPTS)
    run = land(REBATES, [SETTLED])
    assert not run.success and set(requested(sandbox)) == {ACCOUNT}

    assert land(REBATES, [SETTLED]).success


def test_eight_parallel_sessions_send_one_probe(both_exchanges, database_url):
    endpoints = [each for each in configured_catalog(configured().variables).endpoints if each.exchange.name == "lbank"]
    assert len(endpoints) == 8
    with Store(database_url):
        pass

    def sources(number: int) -> list[str]:
        with (
            Store(database_url) as store,
            connected(endpoints[number], store, configured().variables) as session,
        ):
            return session.identity.sources

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(sources, range(8)))
    assert len(found[0]) == 1 and found == [found[0]] * 8
    assert requested(both_exchanges) == [TRADE_USER]


def test_sessions_that_have_waited_for_a_failed_verification_repeat_it_concurrently(database_url, query):
    key, sessions, requests = Key("lbank", "affiliate", "", "LBANK_API_KEY", "0" * 12), 3, count()
    others = Barrier(sessions - 1)

    def request_identity() -> str:
        if next(requests) == 0:
            waiting = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
            deadline = time.monotonic() + 60
            while query(waiting) != [(sessions - 1,)] and time.monotonic() < deadline:
                continue
            raise Transient("no response")
        others.wait(60)
        return "the account"

    def identify(_: int) -> list[str]:
        with AccountKeys(database_url, key, nothing_landed) as keys:
            return KeyIdentity(key, "host", lambda: keys, request_identity).sources

    with ThreadPoolExecutor(sessions) as pool:
        pending = [pool.submit(identify, number) for number in range(sessions)]
    assert [type(error) for each in pending if (error := each.exception())] == [Transient]


# Databases of earlier releases, whose keys are recorded without an account


@pytest.fixture
def migrated(query) -> Callable[[], None]:
    """Makes the recorded keys those of a database that has just been migrated."""
    return lambda: query("update affiliate.account set identity = fingerprint, last_seen = null") and None


def test_a_migrated_database_learns_the_account_and_then_accepts_a_rotated_key(sandbox, recorded, migrated, set_key):
    assert land(REBATES, DAYS[:1]).success
    migrated()
    assert land(REBATES, DAYS[:2]).success
    uid = str(sandbox.binance.uids["partner"])
    assert [identity for _, identity, _ in recorded()] == [uid]
    rotate(sandbox, set_key)
    assert land(REBATES, DAYS[:2]).success
    assert [identity for _, identity, _ in recorded()] == [uid, uid]


def test_a_key_that_is_rotated_before_the_first_run_of_a_migrated_database_needs_a_confirmation(
    both_exchanges, recorded, migrated, set_key, monkeypatch
):
    assert land(REBATES, DAYS[:1]).success and land(USERS, DAYS[:1]).success
    migrated()
    monkeypatch.setenv("LBANK_SIGNATURE_METHOD", "RSA")
    for role in ("partner", "affiliate"):
        rotate(both_exchanges, set_key, role)
    for asset, command in (
        (REBATES, "rotate-key binance --role partner"),
        (USERS, "rotate-key lbank --role affiliate"),
    ):
        refused(
            land(asset, DAYS[:1]),
            ", and the exchange does not state the account of the earlier keys",
            f"affiliate-pipeline {command}`",
        )
    rotate_key("binance", "--role", "partner", "--yes")
    rotate_key("lbank", "--yes")
    assert land(REBATES, DAYS[:2]).success and land(USERS, DAYS[:2]).success
    assert {identity for _, identity, _ in recorded()} == {str(both_exchanges.binance.uids["partner"])}
    assert {identity for _, identity, _ in recorded("lbank", "affiliate")} == {both_exchanges.lbank.own_open_id}


def test_days_of_an_earlier_key_of_a_migrated_database_land_after_a_confirmation(
    sandbox, query, migrated, set_key, recorded
):
    assert land(REBATES, DAYS[:1]).success
    rotate(sandbox, set_key)
    assert land(REBATES, [DAYS[1]]).success
    migrated()

    run = land(REBATES, DAYS[:2])
    assert sorted(run.landed) == [DAYS[1]] and sorted(run.failed) == DAYS[:1]
    assert all("its source is" in each and "rotate-key binance --role partner" in each for each in run.failed.values())
    rotate_key("binance", "--role", "partner", "--yes")
    assert land(REBATES, DAYS[:2]).success
    assert {identity for _, identity, _ in recorded()} == {str(sandbox.binance.uids["partner"])}
