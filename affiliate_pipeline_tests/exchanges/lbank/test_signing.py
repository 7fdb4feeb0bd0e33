"""What LBank sees of a signed request, and that nothing of a key shows. Answers are tested elsewhere."""

import hashlib
import hmac
import re
import threading
import traceback
from base64 import b64decode, b64encode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import parse_qsl

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from affiliate_pipeline.exchanges.lbank.signing import LBankAuth
from affiliate_pipeline.http.encoding import encode

API_KEY = "6a8d4f1c-36a1-4a0b-9a77-2f1d0e5b7c11"
HMAC_SECRET = "2B7E151628AED2A6ABF7158809CF4F3C"
NOW_MS = 1721145600000
METHODS = ["HmacSHA256", "RSA"]
STAMP = ("timestamp", "signature_method", "echostr")
NO_PASSPHRASE = NoEncryption()
ODD_TEXTS = ["a+b@x.com", "a&b=c", "100%", "a%2Bb", "two words", "用户", ""]


def der(key, encryption=NO_PASSPHRASE):
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, encryption)


@pytest.fixture(scope="module")
def key():
    return rsa.generate_private_key(65537, 2048)


@pytest.fixture(scope="module")
def secret_of(key):
    return {"HmacSHA256": HMAC_SECRET, "RSA": b64encode(der(key)).decode()}


def accepts(key, query, headers):
    """What the exchange does with the parameters it decoded; returns those that the caller sent."""
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


@pytest.fixture
def wire():
    """A loopback server that answers everything, and the (request line, headers) of all it received."""
    received = []

    class Recorder(BaseHTTPRequestHandler):
        def do_GET(self):
            received.append((self.raw_requestline, self.headers))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


def sent_of(auth, params):
    """The request that httpx would send."""
    url = f"https://affiliate.lbankverify.com/affiliate-api/v2/x?{encode(params)}"
    return next(auth.sync_auth_flow(httpx.Request("GET", url)))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_what_goes_over_the_wire_is_what_was_signed(wire, key, secret_of, method, text):
    base_url, received = wire
    auth = LBankAuth(API_KEY, secret_of[method], method, lambda: NOW_MS)
    params = {"openId": text, "coin": "", "start": "0"}
    with httpx.Client(auth=auth, trust_env=False) as client:
        client.get(f"{base_url}/affiliate-api/v2/x?{encode(params)}").raise_for_status()

    [(line, headers)] = received
    query = line.split(b" ")[1].partition(b"?")[2].decode()
    assert re.fullmatch(r"([A-Za-z0-9_.~=&-]|%[0-9A-F]{2})*", query)
    assert accepts(key, query, headers) == params
    assert headers["timestamp"] == str(NOW_MS) and headers["signature_method"] == method


def test_an_empty_parameter_is_signed_and_sent():
    auth = LBankAuth(API_KEY, HMAC_SECRET, "HmacSHA256", lambda: NOW_MS)
    sent = sent_of(auth, {"coin": ""})
    assert b"&coin=&" in sent.url.query
    assert accepts(None, sent.url.query.decode(), sent.headers) == {"coin": ""}


def test_sending_a_request_again_signs_it_anew(wire, key):
    base_url, received = wire
    auth = LBankAuth(API_KEY, HMAC_SECRET, "HmacSHA256", count(NOW_MS).__next__)
    with httpx.Client(trust_env=False) as client:
        request = client.build_request("GET", f"{base_url}/x?coin=")
        for _ in range(2):
            client.send(request, auth=auth).raise_for_status()

    for line, headers in received:
        assert accepts(key, line.split(b" ")[1].partition(b"?")[2].decode(), headers) == {"coin": ""}
    assert [headers["timestamp"] for _, headers in received] == [str(NOW_MS), str(NOW_MS + 1)]
    assert len({headers["echostr"] for _, headers in received}) == 2
    assert request.url.query == b"coin=" and "echostr" not in request.headers


def test_an_echostr_is_35_letters_and_digits_and_never_the_same():
    auth = LBankAuth(API_KEY, HMAC_SECRET, "HmacSHA256", lambda: NOW_MS)
    seen = {sent_of(auth, {}).headers["echostr"] for _ in range(200)}
    assert len(seen) == 200 and all(re.fullmatch("[A-Za-z0-9]{35}", echostr) for echostr in seen)


def test_an_rsa_key_may_be_a_pem_bare_base64_or_a_file_of_either(tmp_path, key, secret_of):
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    bare = secret_of["RSA"]
    wrapped = "\n".join(bare[start : start + 64] for start in range(0, len(bare), 64))
    forms = [pem, pem.replace("\n", "\\n"), bare, wrapped]
    for number, text in enumerate((pem, bare)):
        path = tmp_path / f"key {number}"
        path.write_text(text)
        forms.append(str(path))
    for secret in forms:
        sent = sent_of(LBankAuth(API_KEY, secret, "RSA", lambda: NOW_MS), {"a": "1"})
        assert accepts(key, sent.url.query.decode(), sent.headers) == {"a": "1"}


@pytest.fixture(scope="module")
def unusable(key, secret_of):
    """RSA secrets that cannot sign, by what is wrong with them."""
    encoded = secret_of["RSA"]
    return {
        "cut off": encoded[: len(encoded) // 2],
        "no base64": "x" + encoded[:-4],
        "not ASCII": "ü" + encoded,
        "bytes changed": encoded.replace(encoded[100:140], "A" * 40),
        "a path of nothing": "/nobody/has/q7x",
        "an HMAC secret": HMAC_SECRET,
        "encrypted": b64encode(der(key, BestAvailableEncryption(b"passphrase-of-it"))).decode(),
        "another type": b64encode(der(ed25519.Ed25519PrivateKey.generate())).decode(),
    }


KEY_FAULTS = {
    "cut off": "cut off or damaged",
    "no base64": "no private key, and LBANK_SIGNATURE_METHOD is RSA",
    "not ASCII": "another character that",
    "bytes changed": "cut off or damaged",
    "a path of nothing": "path of a file that does not exist",
    "an HMAC secret": "no private key, and LBANK_SIGNATURE_METHOD is RSA",
    "encrypted": "encrypted: store it without a passphrase",
    "another type": "use RSA",
}


@pytest.mark.parametrize("fault", KEY_FAULTS)
def test_an_unusable_key_is_named_and_not_quoted(unusable, fault):
    secret = unusable[fault]
    with pytest.raises(ValueError, match=KEY_FAULTS[fault]) as caught:
        LBankAuth(API_KEY, secret, "RSA", lambda: NOW_MS)
    printed = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert not any(secret[start : start + 5] in printed for start in range(len(secret) - 5))
    assert caught.value.__context__ is None  # the parser's error may quote bytes of the key


def test_an_unknown_method_is_refused_without_quoting_it():
    with pytest.raises(ValueError, match="neither HmacSHA256 nor RSA") as caught:
        LBankAuth(API_KEY, HMAC_SECRET, HMAC_SECRET, lambda: NOW_MS)
    assert HMAC_SECRET not in str(caught.value)


@pytest.mark.parametrize("method", METHODS)
def test_no_key_and_no_secret_in_the_repr(secret_of, method):
    auth = LBankAuth(API_KEY, secret_of[method], method, lambda: NOW_MS)
    sent_of(auth, {})
    for shown in (repr(auth), str(auth), f"{auth}"):
        assert API_KEY not in shown and secret_of[method] not in shown


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("text", ODD_TEXTS)
def test_ccxt_signs_the_same(key, secret_of, method, text):
    import ccxt

    params = {"openId": text, "coin": "", "start": "0"}
    sent = sent_of(LBankAuth(API_KEY, secret_of[method], method, lambda: NOW_MS), params)
    theirs = ccxt.lbank({"apiKey": API_KEY, "secret": secret_of[method]})
    if method == "RSA":  # which ccxt knows by the secret's length; its own wrapping drops base64's last line
        theirs.options["pem"] = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NO_PASSPHRASE).decode()
    theirs.milliseconds = lambda: NOW_MS
    theirs.uuid22, theirs.uuid16 = lambda: sent.headers["echostr"], lambda: ""
    request = theirs.sign("supplement/x", ["spot", "private"], "POST", params)

    ours = dict(parse_qsl(sent.url.query.decode(), keep_blank_values=True))
    assert {name: sent.headers[name] for name in STAMP} == {name: request["headers"][name] for name in STAMP}
    # ccxt sends the stamp as headers only, ours as parameters too: what is signed is the same.
    body = dict(parse_qsl(request["body"], keep_blank_values=True))
    assert body == {name: value for name, value in ours.items() if name not in STAMP}


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=4))
def test_any_text_is_sent_as_it_was_signed(params):
    ours = {*STAMP, "api_key", "sign"}
    params = {name: value for name, value in params.items() if name not in ours}
    sent = sent_of(LBankAuth(API_KEY, HMAC_SECRET, "HmacSHA256", lambda: NOW_MS), params)
    assert accepts(None, sent.url.query.decode(), sent.headers) == params
