"""What Binance sees of a signed request, and that nothing of a key shows. Answers are tested elsewhere."""

import hashlib
import hmac
import re
import threading
import traceback
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from urllib.parse import parse_qsl, unquote

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from affiliate_pipeline.exchanges.binance import signing
from affiliate_pipeline.exchanges.binance.signing import RECV_WINDOW_MS, BinanceAuth
from affiliate_pipeline.http.encoding import encode

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
NO_PASSPHRASE = NoEncryption()


def pem(key, encryption=NO_PASSPHRASE):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption).decode()


@pytest.fixture(scope="module")
def keys():
    return {"rsa": rsa.generate_private_key(65537, 2048), "ed25519": ed25519.Ed25519PrivateKey.generate()}


@pytest.fixture(scope="module")
def secret_of(keys):
    return {"hmac": HMAC_SECRET} | {kind: pem(key) for kind, key in keys.items()}


def accepts(keys, kind, payload, signature):
    """What the exchange does: checks the decoded signature over the bytes it received."""
    if kind == "hmac":
        assert signature == hmac.new(HMAC_SECRET.encode(), payload, hashlib.sha256).hexdigest()
    elif kind == "rsa":
        plain = b64decode(signature, validate=True)
        keys["rsa"].public_key().verify(plain, payload, padding.PKCS1v15(), SHA256())
    else:
        keys["ed25519"].public_key().verify(b64decode(signature, validate=True), payload)


@pytest.fixture
def wire():
    """A loopback server that answers everything, and the (request line, headers, body) of all it received."""
    received = []

    class Recorder(BaseHTTPRequestHandler):
        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            received.append((self.raw_requestline, self.headers, body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = answer

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()
        thread.join()


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
def test_the_published_requests_get_the_published_signatures(monkeypatch, symbol, published):
    monkeypatch.setattr(signing, "RECV_WINDOW_MS", 5000)
    params = {"symbol": symbol, "side": "BUY", "type": "LIMIT", "timeInForce": "GTC"}
    params |= {"quantity": "1", "price": "0.1"}
    assert query_of(hmac_auth(), params) == (
        f"{encode(params)}&recvWindow=5000&timestamp=1499827319559&signature={published}"
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("email", ODD_EMAILS)
def test_what_goes_over_the_wire_is_what_was_signed(wire, keys, secret_of, kind, email):
    base_url, received = wire
    auth = BinanceAuth(API_KEY, secret_of[kind], lambda: NOW_MS)
    params = {"email": email, "customerId": "Ünïcode/1", "empty": ""}
    url = f"{base_url}/sapi/v1/apiReferral/customization?{encode(params)}"
    with httpx.Client(auth=auth, trust_env=False) as client:
        client.get(url).raise_for_status()
        client.post(url, content=b"note=a%2Bb&x=1").raise_for_status()

    assert [line.split(b" ")[0] for line, _, _ in received] == [b"GET", b"POST"]
    assert [body for _, _, body in received] == [b"", b"note=a%2Bb&x=1"]
    for line, headers, body in received:
        query = line.split(b" ")[1].partition(b"?")[2]
        signed, mark, signature = query.rpartition(b"&signature=")
        assert mark and re.fullmatch(rb"[A-Za-z0-9_.~%-]+", signature)  # last, and percent-encoded
        accepts(keys, kind, signed + body, unquote(signature.decode()))
        stamp = {"recvWindow": str(RECV_WINDOW_MS), "timestamp": str(NOW_MS)}
        assert parse_qsl(signed.decode(), keep_blank_values=True) == list((params | stamp).items())
        assert headers.get_all("X-MBX-APIKEY") == [API_KEY]


def test_a_request_without_parameters_is_signed_too(keys):
    signed, _, signature = query_of(hmac_auth()).rpartition("&signature=")
    assert signed == f"recvWindow={RECV_WINDOW_MS}&timestamp={NOW_MS}"
    accepts(keys, "hmac", signed.encode(), signature)


def test_a_streamed_body_is_signed_and_still_sent(keys):
    request = httpx.Request("POST", "https://api.binance.com/x", content=iter([b"a=", b"1"]))
    sent = sent_of(hmac_auth(), request)
    signed, _, signature = sent.url.query.decode().rpartition("&signature=")
    accepts(keys, "hmac", signed.encode() + b"a=1", signature)
    assert sent.read() == b"a=1"


@pytest.mark.parametrize("secret", [b"s\xffcret".decode(errors="surrogateescape"), "two words", "schlüssel"])
def test_a_secret_with_characters_that_no_secret_has_is_named(secret):
    with pytest.raises(ValueError, match="the secret (is neither text|has white space or another character)") as caught:
        hmac_auth(secret)
    assert not shows(caught.value, secret)


def test_sending_a_request_again_signs_it_anew(wire, keys):
    base_url, received = wire
    auth = BinanceAuth(API_KEY, HMAC_SECRET, count(NOW_MS).__next__)
    with httpx.Client(trust_env=False) as client:
        request = client.build_request("POST", f"{base_url}/x?a=1", content=b"b=2")
        for _ in range(2):
            client.send(request, auth=auth).raise_for_status()

    queries = [line.split(b" ")[1].partition(b"?")[2].decode() for line, _, _ in received]
    for query, now_ms in zip(queries, (NOW_MS, NOW_MS + 1), strict=True):
        signed, _, signature = query.rpartition("&signature=")
        assert signed == f"a=1&recvWindow={RECV_WINDOW_MS}&timestamp={now_ms}"
        accepts(keys, "hmac", signed.encode() + b"b=2", signature)
    assert request.url.query == b"a=1" and "X-MBX-APIKEY" not in request.headers


def test_timeouts_and_headers_of_the_request_are_kept():
    with httpx.Client(timeout=7, headers={"User-Agent": "me"}) as client:
        sent = sent_of(hmac_auth(), client.build_request("GET", "https://api.binance.com/x"))
    assert sent.extensions["timeout"]["read"] == 7 and sent.headers["User-Agent"] == "me"


@pytest.mark.parametrize("kind", ["rsa", "ed25519"])
def test_a_key_may_be_a_pem_a_pem_with_literal_newlines_or_a_file(tmp_path, keys, secret_of, kind):
    path = tmp_path / "a key"
    path.write_text(secret_of[kind])
    for secret in (secret_of[kind], secret_of[kind].replace("\n", "\\n"), secret_of[kind].strip(), str(path)):
        signed, _, signature = query_of(hmac_auth(secret), {"a": "1"}).rpartition("&signature=")
        accepts(keys, kind, signed.encode(), unquote(signature))


def test_a_key_file_that_may_not_be_read_is_told_as_such(tmp_path, monkeypatch):
    path = tmp_path / "key.pem"
    path.touch()

    def may_not(*_, **__):
        raise PermissionError(13, "Permission denied", f"{path}")

    monkeypatch.setattr("pathlib.Path.open", may_not)
    with pytest.raises(ValueError, match=r"path of a file that cannot be read \(Permission denied\)"):
        hmac_auth(f"{path}")


@pytest.fixture(scope="module")
def unusable(secret_of):
    """Secrets that cannot sign, by what is wrong with them."""
    rsa_pem, curve_key = secret_of["rsa"], ec.generate_private_key(ec.SECP256R1())
    rsa_key = rsa.generate_private_key(65537, 2048)
    return {
        "cut off": rsa_pem[: len(rsa_pem) // 2],
        "without its end": rsa_pem[: rsa_pem.index("-----END")],
        "a character lost": rsa_pem.replace("\nMII", "\nM!I", 1),
        "bytes changed": rsa_pem.replace(rsa_pem[100:140], "A" * 40),
        "encrypted": pem(rsa_key, BestAvailableEncryption(b"passphrase-of-it")),
        "encrypted the old way": rsa_key.private_bytes(
            Encoding.PEM, PrivateFormat.TraditionalOpenSSL, BestAvailableEncryption(b"passphrase-of-it")
        ).decode(),
        "another type": pem(curve_key),
        "public": rsa_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
    }


KEY_FAULTS = {
    "cut off": "without its END line",
    "without its end": "without its END line",
    "a character lost": "cut off or damaged",
    "bytes changed": "cut off or damaged",
    "encrypted": "encrypted: store it without a passphrase",
    "encrypted the old way": "encrypted: store it without a passphrase",
    "another type": "use RSA or Ed25519",
    "public": "is a public key",
}


def shows(error, secret):
    """Whether any five characters in a row of the secret stand in the error, as a log would print it."""
    body = "".join(line for line in secret.splitlines() if "-----" not in line)
    printed = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__context__)
    return any(body[start : start + 5] in printed for start in range(len(body) - 5))


@pytest.mark.parametrize("fault", KEY_FAULTS)
def test_an_unusable_key_is_named_and_not_quoted(tmp_path, unusable, fault):
    path = tmp_path / "key"
    path.write_text(unusable[fault])
    for secret in (unusable[fault], unusable[fault].replace("\n", "\\n"), str(path)):
        with pytest.raises(ValueError, match=KEY_FAULTS[fault]) as caught:
            hmac_auth(secret)
        assert not shows(caught.value, unusable[fault])
        assert caught.value.__context__ is None  # the parser's error may quote bytes of the key


def test_a_file_without_a_key_and_a_pem_file_that_is_not_there_are_no_hmac_secrets(tmp_path):
    other = tmp_path / "other"
    other.write_bytes(b"\xff\x00 " + HMAC_SECRET.encode())
    for secret in (str(other), str(tmp_path / "missing.pem")):
        with pytest.raises(ValueError, match="neither text nor a private key|does not exist") as caught:
            hmac_auth(secret)
        assert not shows(caught.value, HMAC_SECRET)


@pytest.mark.parametrize("api_key", ["", "key\n", "two words", "schlüssel"])
def test_an_api_key_that_no_header_can_carry_is_refused_without_quoting_it(api_key):
    with pytest.raises(ValueError, match="API key is empty or") as caught:
        BinanceAuth(api_key, HMAC_SECRET, lambda: NOW_MS)
    assert not api_key or api_key not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_no_key_and_no_secret_in_the_repr(secret_of, kind):
    auth = hmac_auth(secret_of[kind])
    query_of(auth)
    for shown in (repr(auth), str(auth), f"{auth}"):
        assert API_KEY not in shown and not any(line in shown for line in secret_of[kind].splitlines())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("email", ODD_EMAILS)
def test_ccxt_signs_the_same(keys, secret_of, kind, method, email):
    import ccxt

    auth = BinanceAuth(API_KEY, secret_of[kind], lambda: NOW_MS)
    params = {"email": email, "customerId": "c 1"}
    theirs = ccxt.binance({"apiKey": API_KEY, "secret": secret_of[kind]})
    theirs.options["recvWindow"] = RECV_WINDOW_MS
    theirs.nonce = lambda: NOW_MS
    # ccxt puts the timestamp first; Binance takes any order. All else, encoding included, stays ccxt's own.
    last = ("recvWindow", "timestamp")
    theirs.urlencode = lambda given: ccxt.Exchange.urlencode(params | {name: given[name] for name in last})
    request = theirs.sign("apiReferral/customization", ["sapi"], method, params)
    query = request["url"].partition("?")[2] if method == "GET" else request["body"]

    assert query_of(auth, params) == query
    assert request["headers"]["X-MBX-APIKEY"] == API_KEY


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.text()))
def test_any_text_survives_encoding(params):
    query = encode(params)
    assert parse_qsl(query, keep_blank_values=True) == list(params.items())
    assert re.fullmatch(r"([A-Za-z0-9_.~=&-]|%[0-9A-F]{2})*", query)


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1), st.text(), max_size=4))
def test_any_text_is_sent_as_it_was_signed(params):
    url = httpx.URL(f"https://api.binance.com/x?{encode(params)}")
    sent = sent_of(hmac_auth(), httpx.Request("GET", url)).url.raw_path
    signed, _, signature = sent.removeprefix(b"/x?").rpartition(b"&signature=")
    assert signature.decode() == hmac.new(HMAC_SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert parse_qsl(signed.decode(), keep_blank_values=True)[: len(params)] == list(params.items())


def test_encoding_keeps_order_and_unreserved_characters_and_leaves_none_out():
    params = {"z": "-._~aZ9", "gone": None, "a": "/ +*'()", "coin": "", "n": 0, "é": "日"}
    assert encode(params) == "z=-._~aZ9&a=%2F%20%2B%2A%27%28%29&coin=&n=0&%C3%A9=%E6%97%A5"
    assert encode({}) == encode({"gone": None}) == ""
