"""Texts are redacted: no secrets and no full email addresses. `test_client.py` covers the logs."""

import json
import time
from string import ascii_letters, digits
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from affiliate_pipeline.domain.redaction import redact

LETTERS = ascii_letters + digits + "._+-%*!#" + "äж用🙂"
LOCAL_PARTS = st.text(LETTERS, min_size=3, max_size=30)
AROUND_EMAILS = [
    "{}",
    "the client {} has a bad row",
    "<{}>",
    "({})",
    "mailto:{}",
    "email={}&customerId=",
    "a@b.cd,{};x@y.zz",
    '{{"customerId": "", "email": "{}"}}',
    "{{'email': '{}'}}",
    "line\n{}\nline",
]
SECRETS = st.text(ascii_letters + digits + "+/=_-.~!$*", min_size=8, max_size=80).filter(lambda s: s[0].isalnum())
NAMES = [
    "signature",
    "Signature",
    "sign",
    "api_key",
    "apiKey",
    "api-key",
    "X-MBX-APIKEY",
    "secret",
    "BINANCE_PARTNER_API_SECRET",
    "LBANK_API_SECRET",
    "password",
    "token",
    "x-amz-security-token",
    "X-Amz-Signature",
    "echostr",
]
AROUND_SECRETS = ["{}={}", "?a=1&{}={}&b=2", "{}: {}", '{{"{}":"{}"}}', '{{"{}": "{}", "b": 2}}', "{} = {}\nnext"]
PRESIGNED = (
    "https://bucket.s3.amazonaws.com/user-rebate/1f/part-00000-1f-c000.csv?"
    "AWSAccessKeyId=ASIAEXAMPLE&Expires=1780000000&x-amz-security-token=IQoJb3JpZ2lu%2F%2BX&Signature=vjbyPx%2BTd%3D"
)
PRESIGNED_V4 = (
    "https://bucket.s3.amazonaws.com/x.csv?X-Amz-Credential=ASIAEXAMPLE%2F20261103&X-Amz-Date=20261103T000000Z"
    "&X-Amz-Signature=0f3e5c"
)
PEM_BODY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nBKcwggSjAgEAAoIBAQC7\n"


@given(LOCAL_PARTS, st.sampled_from(AROUND_EMAILS))
@example("first.last+tag", "{}")
@example("ab*****", "{}")
def test_no_more_than_two_letters_of_a_local_part_are_shown(local, around):
    shown = redact(around.format(f"{local}@example.com"))
    assert f"{local}@" not in shown and local[:3] + "@" not in shown
    assert f"{local[:2]}***@example.com" in shown
    assert shown == around.format(f"{local[:2]}***@example.com").replace("a@b.cd", "a***@b.cd").replace("x@y", "x***@y")


@pytest.mark.parametrize(
    "email",
    [
        "tom&jerry@example.com",
        "o'neil@example.com",
        '"quoted name"@example.com',
        "jane.doe%40example.com",
        r"jane.doe\u0040example.com",
    ],
)
def test_a_local_part_with_special_characters_is_not_shown(email):
    local = email.replace("%40", "@").replace(r"\u0040", "@").rpartition("@")[0].strip('"')
    shown = redact(f"the row of {email} is bad")
    assert local not in shown and local[:3] not in shown


@given(SECRETS, st.sampled_from(NAMES), st.sampled_from(AROUND_SECRETS))
def test_a_named_secret_is_redacted(secret, name, around):
    assert redact(around.format(name, secret)) == around.format(name, "***")


@given(SECRETS, st.sampled_from(NAMES))
def test_a_percent_encoded_secret_is_redacted(secret, name):
    assert redact(f"/x?a=1&{name}={quote(secret, safe='')}&b=2") == f"/x?a=1&{name}=***&b=2"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (PRESIGNED, "ASIAEXAMPLE"),
        (PRESIGNED_V4, "ASIAEXAMPLE"),
        ("Authorization: Bearer abcdef123456", "abcdef123456"),
        (repr({"secret": "abcdef123456"}), "abcdef123456"),
        (repr({"X-MBX-APIKEY": "abcdef123456"}), "abcdef123456"),
        (json.dumps({"secret": 'ab"cdef123456'}), "cdef123456"),
        (json.dumps({"password": "ab,cdef 123456"}), "cdef"),
        ("apiSecret=abcdef123456", "abcdef123456"),
        ("secretKey=abcdef123456", "abcdef123456"),
        ("accessToken=abcdef123456", "abcdef123456"),
    ],
)
def test_a_secret_is_redacted_in_every_spelling(text, secret):
    assert secret not in redact(text)


def test_a_presigned_url_is_shown_without_its_signature():
    shown = redact(f"GET {PRESIGNED} failed")
    assert "vjbyPx" not in shown and "IQoJb3" not in shown
    assert "/user-rebate/1f/part-00000-1f-c000.csv" in shown and shown.endswith("&Signature=*** failed")
    assert "0f3e5c" not in redact(PRESIGNED_V4)


@pytest.mark.parametrize("kind", ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY"])
@pytest.mark.parametrize("newline", ["\n", "\\n", "\r\n"])
@pytest.mark.parametrize("truncated", [False, True])
def test_a_pem_is_redacted_completely(kind, newline, truncated):
    pem = f"-----BEGIN {kind}-----\n{PEM_BODY}" + ("" if truncated else f"-----END {kind}-----")
    shown = redact(f"the key {pem.replace(chr(10), newline)}" + ("" if truncated else " cannot be read"))
    assert "MIIE" not in shown and "BKcw" not in shown and kind not in shown
    assert shown.startswith("the key ") and (truncated or shown.endswith(" cannot be read"))


@pytest.mark.parametrize("url", ["postgresql://me:hunter2@db.example/x", "https://me:hunter2@example.com/hook"])
def test_a_password_in_a_url_is_not_shown(url):
    shown = redact(f'connection to "{url}" failed')
    assert "hunter2" not in shown and "example" in shown


def test_a_text_without_secrets_is_unchanged():
    text = "HTTP 429, code -1003: Too much request weight used; wait 60 s until 2026-11-03 00:00:00.000 UTC (id=5, a=b)"
    assert redact(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "LBANK_API_SECRET: check it, then start again",
        "BINANCE_PARTNER_API_KEY is the same key as BINANCE_PARTNER_API_KEY__ACME: its records would be counted twice",
        "HTTP 403: SignatureDoesNotMatch: The request signature does not match",
        "wrong password:\nCheck it",
        "LBANK_API_SECRET=\nLBANK_OPEN_ID=LBA01",
        "LBANK_SIGNATURE_METHOD=MD5",
        "Set it to postgresql://user:password@host:port/database in .env",
    ],
)
def test_text_that_is_no_secret_is_not_removed(text):
    assert redact(text) == text


@pytest.mark.parametrize("before", ["error: ", "code -1022: ", "a=b:", "refused: secret: "])
def test_a_secret_after_another_name_is_redacted(before):
    # After `secret: `, all of `token=abcdef123456` is the secret.
    assert redact(f"{before}token=abcdef123456, b") == f"{before}token=***, b".replace(
        "secret: token=***", "secret: ***"
    )


def test_what_is_redacted_again_does_not_change():
    text = redact("postgresql://me:hunter2@db.example/x of jane.doe@example.com with token=abcdef123456")
    assert redact(text) == text == "postgresql://me:***@db.example/x of ja***@example.com with token=***"


def test_an_object_is_redacted_as_text():
    assert redact(ValueError("secret=abcdef")) == "secret=***"
    assert redact(None) == "None"


@pytest.mark.parametrize("text", ["_" * 34, "x" * 12_000])
def test_no_text_makes_redaction_slow(text):
    # The thread's CPU time does not depend on other processes.
    started = time.thread_time()
    redact(text)
    assert time.thread_time() - started < 0.1
