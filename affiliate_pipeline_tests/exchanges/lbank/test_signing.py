"""Signed requests to LBank, and errors that quote no key. Responses are tested elsewhere."""

import hashlib
import hmac
import re
from base64 import b64decode, b64encode
from itertools import count
from typing import Any
from urllib.parse import parse_qsl

import ccxt
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from affiliate_pipeline.exchanges.lbank.signing import LBankAuth
from affiliate_pipeline.http.encoding import encode
from affiliate_pipeline_tests.exchanges.conftest import quotes

API_KEY = "6a8d4f1c-36a1-4a0b-9a77-2f1d0e5b7c11"
HMAC_SECRET = "2B7E151628AED2A6ABF7158809CF4F3C"
NOW_MS = 1721145600000
METHODS = ["HmacSHA256", "RSA"]
STAMP = ("timestamp", "signature_method", "echostr")
NO_PASSPHRASE = NoEncryption()
ODD_TEXTS = ["", "a+b@x.com", "a&b=c", "100%", "a%2Bb", "two words", "用户"]
# How a text is encoded does not depend on the method.
METHODS_AND_TEXTS = [("HmacSHA256", text) for text in ODD_TEXTS] + [("RSA", ODD_TEXTS[-1])]


def der(key, encryption: KeySerializationEncryption = NO_PASSPHRASE) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, encryption)


def pem(key) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NO_PASSPHRASE).decode()


@pytest.fixture(scope="module")
def key():
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def secret_of(key):
    return {"HmacSHA256": HMAC_SECRET, "RSA": b64encode(der(key)).decode()}


def verified(key, query, headers):
    """Verify stamp and signature as the exchange does, and return the caller's own parameters."""
    params = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True))
    sign = params.pop("sign")
    raw = "&".join(f"{name}={params[name]}" for name in sorted(params))
    digest = hashlib.md5(raw.encode()).hexdigest().upper().encode()
    if params["signature_method"] == "HmacSHA256":
        assert sign == hmac.new(HMAC_SECRET.encode(), digest, hashlib.sha256).hexdigest()
    else:
        key.public_key().verify(b64decode(sign, validate=True), digest, padding.PKCS1v15(), SHA256())
    assert [headers[name] for name in STAMP] == [params.pop(name) for name in STAMP]
    assert params.pop("api_key") == API_KEY
    return params


def hmac_auth():
    return LBankAuth(API_KEY, HMAC_SECRET, "HmacSHA256", lambda: NOW_MS)


def sent_of(auth, params):
    """The request that httpx would send."""
    url = f"https://affiliate.lbankverify.com/affiliate-api/v2/x?{encode(params)}"
    return next(auth.sync_auth_flow(httpx.Request("GET", url)))


@pytest.mark.parametrize(("method", "text"), METHODS_AND_TEXTS)
def test_the_request_that_arrives_is_the_request_that_was_signed(recorder, key, secret_of, method, text):
    auth = LBankAuth(API_KEY, secret_of[method], method, lambda: NOW_MS)
    params = {"openId": text, "coin": "", "start": "0"}
    with httpx.Client(auth=auth, trust_env=False) as client:
        client.get(f"{recorder.base_url}/affiliate-api/v2/x?{encode(params)}").raise_for_status()

    [request] = recorder.received
    assert re.fullmatch(r"([A-Za-z0-9_.~=&-]|%[0-9A-F]{2})*", request.query)
    assert verified(key, request.query, request.headers) == params
    assert request.headers["timestamp"] == str(NOW_MS) and request.headers["signature_method"] == method


def test_each_attempt_is_signed_afresh_with_a_new_echostr(recorder, key):
    auth = LBankAuth(API_KEY, HMAC_SECRET, "HmacSHA256", count(NOW_MS).__next__)
    with httpx.Client(trust_env=False) as client:
        request = client.build_request("GET", f"{recorder.base_url}/x?coin=")
        for _ in range(2):
            client.send(request, auth=auth).raise_for_status()

    for received, now_ms in zip(recorder.received, (NOW_MS, NOW_MS + 1), strict=True):
        assert verified(key, received.query, received.headers) == {"coin": ""}
        assert received.headers["timestamp"] == str(now_ms)
    assert len({received.headers["echostr"] for received in recorder.received}) == 2
    assert request.url.query == b"coin=" and "echostr" not in request.headers


def test_an_echostr_has_35_letters_and_digits_and_is_never_repeated():
    echostrs = {sent_of(hmac_auth(), {}).headers["echostr"] for _ in range(200)}
    assert len(echostrs) == 200 and all(re.fullmatch("[A-Za-z0-9]{35}", echostr) for echostr in echostrs)


def test_an_rsa_key_may_be_a_pem_bare_base64_or_a_file_of_either(tmp_path, key, secret_of):
    bare = secret_of["RSA"]
    wrapped = "\n".join(bare[start : start + 64] for start in range(0, len(bare), 64))
    secrets = [pem(key), pem(key).replace("\n", "\\n"), bare, wrapped]
    for number, text in enumerate((pem(key), bare)):
        path = tmp_path / f"key {number}"
        path.write_text(text)
        secrets.append(str(path))
    for secret in secrets:
        sent = sent_of(LBankAuth(API_KEY, secret, "RSA", lambda: NOW_MS), {"a": "1"})
        assert verified(key, sent.url.query.decode(), sent.headers) == {"a": "1"}


@pytest.fixture(scope="module")
def unusable(key, secret_of):
    """RSA secrets that cannot sign, by their defect."""
    encoded = secret_of["RSA"]
    return {
        "cut off": encoded[: len(encoded) // 2],
        "no base64": "x" + encoded[:-4],
        "not ASCII": "ü" + encoded,
        "bytes changed": encoded.replace(encoded[100:140], "A" * 40),
        "a missing file": "/k3v/w8z/q7x",
        "an HMAC secret": HMAC_SECRET,
        "encrypted": b64encode(der(key, BestAvailableEncryption(b"passphrase-of-it"))).decode(),
        "another type": b64encode(der(ed25519.Ed25519PrivateKey.generate())).decode(),
    }


ERRORS = {
    "cut off": "cut off or damaged",
    "no base64": "not a private key, and the method is RSA",
    "not ASCII": "another character that",
    "bytes changed": "cut off or damaged",
    "a missing file": "path of a file that does not exist",
    "an HMAC secret": "not a private key, and the method is RSA",
    "encrypted": "encrypted: store it without a passphrase",
    "another type": "use RSA",
}


@pytest.mark.parametrize("defect", ERRORS)
def test_the_error_of_an_unusable_key_names_its_defect_without_quoting_it(unusable, defect):
    with pytest.raises(ValueError, match=ERRORS[defect]) as caught:
        LBankAuth(API_KEY, unusable[defect], "RSA", lambda: NOW_MS)
    assert not quotes(caught.value, unusable[defect])
    assert caught.value.__context__ is None  # the parser's error may quote bytes of the key


def test_an_unknown_method_is_refused_without_quoting_it():
    # A secret set as the method by mistake. `Any`, because the type permits only the two methods.
    method: Any = HMAC_SECRET
    with pytest.raises(ValueError, match="neither HmacSHA256 nor RSA") as caught:
        LBankAuth(API_KEY, HMAC_SECRET, method, lambda: NOW_MS)
    assert not quotes(caught.value, HMAC_SECRET)


@pytest.mark.parametrize("method", METHODS)
def test_the_repr_has_neither_key_nor_secret(secret_of, method):
    auth = LBankAuth(API_KEY, secret_of[method], method, lambda: NOW_MS)
    sent_of(auth, {})
    for shown in (repr(auth), str(auth), f"{auth}"):
        assert API_KEY not in shown and secret_of[method] not in shown


@pytest.mark.parametrize(("method", "text"), METHODS_AND_TEXTS)
def test_ccxt_makes_the_same_signature(monkeypatch, key, secret_of, method, text):
    params = {"openId": text, "coin": "", "start": "0"}
    sent = sent_of(LBankAuth(API_KEY, secret_of[method], method, lambda: NOW_MS), params)
    # ccxt uses RSA if the secret is long. Set the PEM: the one that ccxt builds from base64 lacks the last line.
    options = {"pem": pem(key)} if method == "RSA" else {}
    theirs = ccxt.lbank({"apiKey": API_KEY, "secret": secret_of[method], "options": options})
    monkeypatch.setattr(theirs, "milliseconds", lambda: NOW_MS)
    monkeypatch.setattr(theirs, "uuid22", lambda: sent.headers["echostr"])
    monkeypatch.setattr(theirs, "uuid16", lambda: "")
    request = theirs.sign("supplement/x", ["spot", "private"], "POST", params)

    ours = dict(parse_qsl(sent.url.query.decode(), keep_blank_values=True))
    assert {name: sent.headers[name] for name in STAMP} == {name: request["headers"][name] for name in STAMP}
    # ccxt sends the stamp as headers only, this client as parameters too. Both sign the same text.
    body = dict(parse_qsl(request["body"], keep_blank_values=True))
    assert body == {name: value for name, value in ours.items() if name not in STAMP}


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=4))
def test_any_text_is_sent_as_it_was_signed(params):
    params = {name: value for name, value in params.items() if name not in {*STAMP, "api_key", "sign"}}
    sent = sent_of(hmac_auth(), params)
    assert verified(None, sent.url.query.decode(), sent.headers) == params
