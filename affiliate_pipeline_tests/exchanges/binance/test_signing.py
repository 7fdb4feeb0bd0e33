"""Signed requests to Binance, and errors that quote no key. Responses are tested elsewhere."""

import hashlib
import hmac
import re
from base64 import b64decode
from itertools import count
from urllib.parse import parse_qsl, unquote

import ccxt
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from affiliate_pipeline.exchanges.binance import signing
from affiliate_pipeline.exchanges.binance.signing import RECV_WINDOW_MS, BinanceAuth
from affiliate_pipeline.http.encoding import encode
from affiliate_pipeline_tests.exchanges.conftest import quotes

API_KEY = "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A"
HMAC_SECRET = "NhqPtmdSJYdKjVHjA7PZj4Mge3R5YNiP1e3UZjInClVN65XAbvqqM6A7H5fATj0j"
NOW_MS = 1499827319559
KINDS = ["hmac", "rsa", "ed25519"]
ODD_EMAILS = [
    "a+b@x.com",
    "a&b=c@x.com",
    "100%@x.com",
    "a%2Bb@x.com",
    "two words@x.com",
    "почта@пример.рф",
    "用户@例子.公司",
]
# How a text is encoded does not depend on the kind of the key.
KINDS_AND_EMAILS = [("hmac", email) for email in ODD_EMAILS] + [(kind, ODD_EMAILS[-1]) for kind in KINDS[1:]]
NO_PASSPHRASE = NoEncryption()


def pem(key, encryption: KeySerializationEncryption = NO_PASSPHRASE) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()


@pytest.fixture(scope="module")
def keys():
    return {"rsa": rsa.generate_private_key(65537, 2048), "ed25519": ed25519.Ed25519PrivateKey.generate()}


@pytest.fixture(scope="module")
def secret_of(keys):
    return {"hmac": HMAC_SECRET} | {kind: pem(key) for kind, key in keys.items()}


def verify(keys, kind, payload, signature):
    """Check the decoded signature of the received bytes, as the exchange does."""
    if kind == "hmac":
        assert signature == hmac.new(HMAC_SECRET.encode(), payload, hashlib.sha256).hexdigest()
    elif kind == "rsa":
        decoded = b64decode(signature, validate=True)
        keys["rsa"].public_key().verify(decoded, payload, padding.PKCS1v15(), SHA256())
    else:
        keys["ed25519"].public_key().verify(b64decode(signature, validate=True), payload)


def sent_of(auth, request):
    """The request that httpx would send."""
    return next(auth.sync_auth_flow(request))


def query_of(auth, params=()):
    url = f"https://api.binance.com/sapi/v1/apiReferral/x?{encode(dict(params))}"
    return sent_of(auth, httpx.Request("GET", url)).url.query.decode()


def hmac_auth(secret=HMAC_SECRET):
    return BinanceAuth(API_KEY, secret, lambda: NOW_MS)


@pytest.mark.parametrize(
    ("symbol", "published"),
    [
        ("LTCBTC", "c8db56825ae71d6d79447849e617115f4a920fa2acdcab2b053c4b2838bd6b71"),
        (
            "\uff11\uff12\uff13\uff14\uff15\uff16",
            "e1353ec6b14d888f1164ae9af8228a3dbd508bc82eb867db8ab6046442f33ef3",
        ),
    ],
)
def test_binances_published_requests_have_their_published_signatures(monkeypatch, symbol, published):
    monkeypatch.setattr(signing, "RECV_WINDOW_MS", 5000)
    params = {"symbol": symbol, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC"}
    params |= {"quantity": "1", "price": "0.1"}
    assert query_of(hmac_auth(), params) == (
        f"{encode(params)}&recvWindow=5000&timestamp=1499827319559&signature={published}"
    )


@pytest.mark.parametrize(("kind", "email"), KINDS_AND_EMAILS)
def test_the_request_that_arrives_is_the_request_that_was_signed(recorder, keys, secret_of, kind, email):
    auth = BinanceAuth(API_KEY, secret_of[kind], lambda: NOW_MS)
    params = {"email": email, "customerId": "Ünïcode/1", "empty": ""}
    url = f"{recorder.base_url}/sapi/v1/apiReferral/customization?{encode(params)}"
    with httpx.Client(auth=auth, trust_env=False) as client:
        client.get(url).raise_for_status()
        client.post(url, content=b"note=a%2Bb&x=1").raise_for_status()

    sent = [(request.method, request.body) for request in recorder.received]
    assert sent == [("GET", b""), ("POST", b"note=a%2Bb&x=1")]
    for request in recorder.received:
        signed, mark, signature = request.query.rpartition("&signature=")
        assert mark and re.fullmatch(r"[A-Za-z0-9_.~%-]+", signature)  # last, and percent-encoded
        verify(keys, kind, signed.encode() + request.body, unquote(signature))
        stamp = {"recvWindow": str(RECV_WINDOW_MS), "timestamp": str(NOW_MS)}
        assert parse_qsl(signed, keep_blank_values=True) == list((params | stamp).items())
        assert request.headers.get_all("X-MBX-APIKEY") == [API_KEY]


def test_a_request_without_parameters_is_signed_too(keys):
    signed, _, signature = query_of(hmac_auth()).rpartition("&signature=")
    assert signed == f"recvWindow={RECV_WINDOW_MS}&timestamp={NOW_MS}"
    verify(keys, "hmac", signed.encode(), signature)


def test_a_streamed_body_is_signed_and_still_sent(keys):
    request = httpx.Request("POST", "https://api.binance.com/x", content=iter([b"a=", b"1"]))
    sent = sent_of(hmac_auth(), request)
    signed, _, signature = sent.url.query.decode().rpartition("&signature=")
    verify(keys, "hmac", signed.encode() + b"a=1", signature)
    assert sent.read() == b"a=1"


@pytest.mark.parametrize("secret", [b"s\xffcret".decode(errors="surrogateescape"), "two words", "schlüssel"])
def test_a_secret_with_an_illegal_character_is_refused_without_quoting_it(secret):
    with pytest.raises(ValueError, match="the secret (is neither text|has white space or another character)") as caught:
        hmac_auth(secret)
    assert not quotes(caught.value, secret)


def test_each_attempt_is_signed_afresh(recorder, keys):
    auth = BinanceAuth(API_KEY, HMAC_SECRET, count(NOW_MS).__next__)
    with httpx.Client(trust_env=False) as client:
        request = client.build_request("POST", f"{recorder.base_url}/x?a=1", content=b"b=2")
        for _ in range(2):
            client.send(request, auth=auth).raise_for_status()

    for received, now_ms in zip(recorder.received, (NOW_MS, NOW_MS + 1), strict=True):
        signed, _, signature = received.query.rpartition("&signature=")
        assert signed == f"a=1&recvWindow={RECV_WINDOW_MS}&timestamp={now_ms}"
        verify(keys, "hmac", signed.encode() + b"b=2", signature)
    assert request.url.query == b"a=1" and "X-MBX-APIKEY" not in request.headers


def test_a_signed_request_has_the_timeouts_and_headers_of_the_original():
    with httpx.Client(timeout=7, headers={"User-Agent": "me"}) as client:
        sent = sent_of(hmac_auth(), client.build_request("GET", "https://api.binance.com/x"))
    assert sent.extensions["timeout"]["read"] == 7 and sent.headers["User-Agent"] == "me"


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_a_key_may_be_a_pem_a_pem_with_escaped_newlines_or_a_file(tmp_path, keys, secret_of, kind):
    path = tmp_path / "a key"
    path.write_text(secret_of[kind])
    for secret in (secret_of[kind], secret_of[kind].replace("\n", "\\n"), secret_of[kind].strip(), str(path)):
        signed, _, signature = query_of(hmac_auth(secret), {"a": "1"}).rpartition("&signature=")
        verify(keys, kind, signed.encode(), unquote(signature))


def test_the_error_of_an_unreadable_key_file_gives_the_reason(tmp_path, monkeypatch):
    path = tmp_path / "key.pem"
    path.touch()

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied", f"{path}")

    monkeypatch.setattr("pathlib.Path.open", denied)
    with pytest.raises(ValueError, match=r"path of a file that cannot be read \(Permission denied\)"):
        hmac_auth(f"{path}")


@pytest.fixture(scope="module")
def unusable(secret_of):
    """Secrets that cannot sign, by their defect."""
    rsa_pem, curve_key = secret_of["rsa"], ec.generate_private_key(ec.SECP256R1())
    rsa_key = rsa.generate_private_key(65537, 2048)
    return {
        "cut off": rsa_pem[: len(rsa_pem) // 2],
        "without its end": rsa_pem[: rsa_pem.index("-----END")],
        "a character replaced": rsa_pem.replace("\nMII", "\nM!I", 1),
        "bytes changed": rsa_pem.replace(rsa_pem[100:140], "A" * 40),
        "encrypted": pem(rsa_key, BestAvailableEncryption(b"passphrase-of-it")),
        "encrypted the old way": rsa_key.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"passphrase-of-it")
        ).decode(),
        "another type": pem(curve_key),
        "public": rsa_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    }


ERRORS = {
    "cut off": "without its END line",
    "without its end": "without its END line",
    "a character replaced": "cut off or damaged",
    "bytes changed": "cut off or damaged",
    "encrypted": "encrypted: store it without a passphrase",
    "encrypted the old way": "encrypted: store it without a passphrase",
    "another type": "use RSA or Ed25519",
    "public": "is a public key",
}


@pytest.mark.parametrize("defect", ERRORS)
def test_the_error_of_an_unusable_key_names_its_defect_without_quoting_it(tmp_path, unusable, defect):
    path = tmp_path / "key"
    path.write_text(unusable[defect])
    for secret in (unusable[defect], unusable[defect].replace("\n", "\\n"), str(path)):
        with pytest.raises(ValueError, match=ERRORS[defect]) as caught:
            hmac_auth(secret)
        assert not quotes(caught.value, unusable[defect])
        assert caught.value.__context__ is None  # the parser's error may quote bytes of the key


def test_a_file_without_a_key_and_a_missing_pem_file_are_refused(tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"\xff\x00 " + HMAC_SECRET.encode())
    for secret in (str(other), str(tmp_path / "missing.pem")):
        with pytest.raises(ValueError, match="neither text nor a private key|does not exist") as caught:
            hmac_auth(secret)
        assert not quotes(caught.value, HMAC_SECRET)


@pytest.mark.parametrize("api_key", ["", "key\n", "two words", "schlüssel"])
def test_an_api_key_that_is_no_header_value_is_refused_without_quoting_it(api_key):
    with pytest.raises(ValueError, match="API key is empty or") as caught:
        BinanceAuth(api_key, HMAC_SECRET, lambda: NOW_MS)
    assert not api_key or api_key not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_the_repr_has_neither_key_nor_secret(secret_of, kind):
    auth = hmac_auth(secret_of[kind])
    query_of(auth)
    for shown in (repr(auth), str(auth), f"{auth}"):
        assert API_KEY not in shown and not any(line in shown for line in secret_of[kind].splitlines())


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(("kind", "email"), KINDS_AND_EMAILS)
def test_ccxt_makes_the_same_signature(monkeypatch, secret_of, kind, method, email):
    auth = BinanceAuth(API_KEY, secret_of[kind], lambda: NOW_MS)
    params = {"email": email, "customerId": "c 1"}
    options = {"recvWindow": RECV_WINDOW_MS}
    theirs = ccxt.binance({"apiKey": API_KEY, "secret": secret_of[kind], "options": options})
    monkeypatch.setattr(theirs, "nonce", lambda: NOW_MS)
    # ccxt puts the timestamp first, and Binance accepts any order: compare in our order, with ccxt's own encoding.
    last = ("recvWindow", "timestamp")
    encode_in_order = ccxt.Exchange.urlencode
    monkeypatch.setattr(
        theirs, "urlencode", lambda given: encode_in_order(params | {name: given[name] for name in last})
    )
    request = theirs.sign("apiReferral/customization", ["sapi"], method, params)
    query = request["url"].partition("?")[2] if method == "GET" else request["body"]

    assert query_of(auth, params) == query
    assert request["headers"]["X-MBX-APIKEY"] == API_KEY


@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=4))
def test_any_text_is_sent_as_it_was_signed(params):
    url = httpx.URL(f"https://api.binance.com/x?{encode(params)}")
    sent = sent_of(hmac_auth(), httpx.Request("GET", url)).url.raw_path
    signed, _, signature = sent.removeprefix(b"/x?").rpartition(b"&signature=")
    assert signature.decode() == hmac.new(HMAC_SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert parse_qsl(signed.decode(), keep_blank_values=True)[: len(params)] == list(params.items())
    assert re.fullmatch(rb"([A-Za-z0-9_.~=&-]|%[0-9A-F]{2})*", signed)


def test_encoding_preserves_order_and_unreserved_characters_and_omits_none():
    params = {"z": "-._~aZ9", "none": None, "a": "/ +*'()", "coin": "", "n": 0, "é": "日"}
    assert encode(params) == "z=-._~aZ9&a=%2F%20%2B%2A%27%28%29&coin=&n=0&%C3%A9=%E6%97%A5"
    assert encode({}) == encode({"none": None}) == ""
