"""Case private-key-forms: every usual form of a private key signs; other keys are reported with their defect."""

import subprocess
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.hazmat.primitives.serialization.pkcs12 import serialize_key_and_certificates

from affiliate_pipeline.domain.problem import SettingsError
from affiliate_pipeline.environment import configured
from affiliate_pipeline.exchanges.endpoint import Endpoint
from affiliate_pipeline.exchanges.shared_state import SharedState
from affiliate_pipeline.http.encoding import read_secret
from affiliate_pipeline.sandbox.signatures import verifier
from affiliate_pipeline_tests.conftest import materialize
from affiliate_pipeline_tests.defs.affiliates import ENDPOINT as LBANK_ENDPOINT
from affiliate_pipeline_tests.defs.direct_runs import land
from affiliate_pipeline_tests.defs.rebates import DAYS, ENDPOINT, KEY

NO_PASSPHRASE = NoEncryption()
PASSPHRASE = BestAvailableEncryption(b"the passphrase")
# Short, because reading it checks its primes.
RSA_KEY = rsa.generate_private_key(65537, 1024)
ED25519_KEY = ed25519.Ed25519PrivateKey.generate()


def encoded(
    key, encoding=Encoding.PEM, form=PrivateFormat.PKCS8, encryption: KeySerializationEncryption = NO_PASSPHRASE
) -> str:
    """The key as text: PEM, or the base64 of its DER."""
    data = key.private_bytes(encoding, form, encryption)
    return data.decode() if encoding is Encoding.PEM else b64encode(data).decode()


def encoded_public(key, encoding=Encoding.PEM, form=PublicFormat.SubjectPublicKeyInfo) -> str:
    data = key.public_key().public_bytes(encoding, form)
    return b64encode(data).decode() if encoding is Encoding.DER else data.decode()


def certificate() -> str:
    command = ["openssl", "req", "-new", "-x509", "-key", "/dev/stdin", "-subj", "/CN=example"]
    return subprocess.run(command, input=encoded(RSA_KEY), capture_output=True, text=True, check=True).stdout


def forms(key) -> dict[str, str]:
    pem, openssh = encoded(key), encoded(key, form=PrivateFormat.OpenSSH)
    return {
        "PKCS#8": pem,
        "OpenSSH": openssh,
        "literal \\n": pem.replace("\n", "\\n"),
        "literal \\r\\n": pem.replace("\n", "\\r\\n"),
        "OpenSSH, literal \\n": openssh.replace("\n", "\\n"),
        "CRLF": pem.replace("\n", "\r\n"),
        "blanks": pem.replace("\n", " "),
        "OpenSSH, blanks": openssh.replace("\n", " "),
        "one line": pem.replace("\n", ""),
        "base64": encoded(key, Encoding.DER),
        "base64 in lines": "\n".join(pem.splitlines()[1:-1]),
        "base64 of the PEM": b64encode(pem.encode()).decode(),
        "OpenSSH, base64": "".join(openssh.splitlines()[1:-1]),
    }


CERTIFICATE = certificate()
USABLE = {f"RSA {name}": (RSA_KEY, form) for name, form in forms(RSA_KEY).items()}
USABLE["RSA PKCS#1"] = RSA_KEY, encoded(RSA_KEY, form=PrivateFormat.TraditionalOpenSSL)
USABLE["RSA PKCS#1 base64"] = RSA_KEY, encoded(RSA_KEY, Encoding.DER, PrivateFormat.TraditionalOpenSSL)
USABLE["RSA with its certificate"] = RSA_KEY, f"{CERTIFICATE}\n{encoded(RSA_KEY)}"
USABLE |= {f"Ed25519 {name}": (ED25519_KEY, form) for name, form in forms(ED25519_KEY).items()}

PEM = encoded(RSA_KEY)
UNUSABLE = {
    "public": (encoded_public(RSA_KEY), "is a public key"),
    "public PKCS#1": (encoded_public(RSA_KEY, form=PublicFormat.PKCS1), "is a public key"),
    "public base64": (encoded_public(RSA_KEY, Encoding.DER), "is a public key"),
    "public OpenSSH": (encoded_public(ED25519_KEY, Encoding.OpenSSH, PublicFormat.OpenSSH), "is a public key"),
    "certificate": (CERTIFICATE, "is a certificate"),
    "encrypted": (encoded(RSA_KEY, encryption=PASSPHRASE), "is a private key that is encrypted"),
    "encrypted base64": (encoded(RSA_KEY, Encoding.DER, encryption=PASSPHRASE), "is a private key that is encrypted"),
    "encrypted PKCS#1": (
        encoded(RSA_KEY, form=PrivateFormat.TraditionalOpenSSL, encryption=PASSPHRASE),
        "is a private key that is encrypted",
    ),
    "first line": (PEM.splitlines()[0], "is a PEM without its END line"),
    "cut off": (PEM[:400], "is a PEM without its END line"),
    "last line": ("\n".join(PEM.splitlines()[1:]), "is a PEM without its BEGIN line"),
    "damaged": (PEM.replace(PEM[100:140], "!" * 40), "is a private key that is cut off or damaged"),
    "damaged base64": (encoded(RSA_KEY, Encoding.DER)[:800], "is a private key that is cut off or damaged"),
    "EC": (encoded(ec.generate_private_key(ec.SECP256R1())), "is a private key of type EC"),
    "DSA": (encoded(dsa.generate_private_key(1024)), "is a private key of type DSA"),
    "PuTTY": ("PuTTY-User-Key-File-3: ssh-rsa\nEncryption: none", "is a PuTTY key"),
    "JWK": ('{"kty": "RSA", "d": "QQ"}', "is JSON"),
    "PFX": (
        b64encode(serialize_key_and_certificates(b"x", RSA_KEY, None, None, PASSPHRASE)).decode(),
        "is a PFX (PKCS#12) file",
    ),
}
PATHS = {
    "/run/secrets/binance_partner": "is the path of a file that does not exist",
    "~/no-such-key": "is the path of a file that does not exist",
    "./no-such-key": "is the path of a file that does not exist",
    "../no-such-key": "is the path of a file that does not exist",
    "no-such-key.pem": "is the path of a file that does not exist",
    "no-such-key.key": "is the path of a file that does not exist",
    "no-such-secret.txt": "is the path of a file that does not exist",
    ".": "is the path of a folder or device",
    "/dev/null": "is the path of a folder or device",
    "empty": "is the path of a file that is empty",
    "large": "is the path of a file that is too large",
}


PAYLOAD = b"timestamp=1"
BINANCE, LBANK = ENDPOINT, LBANK_ENDPOINT["invite_user_info"]


@pytest.fixture
def configure_binance(both_exchanges, monkeypatch):
    """Sets the partner's secret, and in the sandbox the public key of `key`."""

    def run(secret: str, key=None) -> None:
        monkeypatch.setenv("BINANCE_PARTNER_API_SECRET", secret)
        if key:
            both_exchanges.binance.keys[both_exchanges.binance.partner_key] = encoded_public(key)

    return run


@pytest.fixture
def configure_lbank(both_exchanges, monkeypatch):
    def run(secret: str, key=None, method: str = "RSA") -> None:
        monkeypatch.setenv("LBANK_API_SECRET", secret)
        monkeypatch.setenv("LBANK_SIGNATURE_METHOD", method)
        if key:
            both_exchanges.lbank.keys[both_exchanges.lbank.api_key] = encoded_public(key)

    return run


@pytest.fixture
def configured_secret(monkeypatch):
    """Sets a variable to a secret, and returns what the settings read from it."""

    def read(secret: str) -> str:
        monkeypatch.setenv("BINANCE_PARTNER_API_SECRET", secret)
        return configured().variables["BINANCE_PARTNER_API_SECRET"]

    return read


def connect(endpoint: Endpoint, **variables: str) -> None:
    """Read the exchange's settings as a run does; sends nothing."""
    endpoint.exchange.connect(endpoint, SharedState(), variables).client.close()


def connect_binance(secret: str) -> None:
    connect(BINANCE, BINANCE_PARTNER_API_KEY="key", BINANCE_PARTNER_API_SECRET=secret)


def connect_lbank(secret: str, method: str = "RSA") -> None:
    credentials = {"LBANK_API_KEY": "key", "LBANK_API_SECRET": secret, "LBANK_OPEN_ID": "LBA1"}
    connect(LBANK, LBANK_SIGNATURE_METHOD=method, **credentials)


def reported(connect, secret: str, *args: str) -> str:
    """The error with which the settings are refused; empty if they are accepted."""
    try:
        connect(secret, *args)
    except SettingsError as error:
        return f"{error}"
    return ""


def are_valid(signatures: Mapping[str, str], keys: Mapping[str, object]) -> dict[str, bool]:
    """For each name, whether the sandbox accepts the signature of PAYLOAD by the key."""
    return {name: verifier(encoded_public(keys[name]))(PAYLOAD, signature) for name, signature in signatures.items()}


def test_each_form_of_a_private_key_signs(configured_secret):
    keys = {name: key for name, (key, _) in USABLE.items()}
    signatures = {name: read_secret(configured_secret(secret)).sign(PAYLOAD) for name, (_, secret) in USABLE.items()}
    assert are_valid(signatures, keys) == dict.fromkeys(USABLE, True)


def test_a_secret_may_be_the_path_of_a_key_file(configured_secret, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", f"{tmp_path}")
    forms = {"{}/key": "RSA OpenSSH", "key": "RSA base64", "./key": "Ed25519 CRLF", "~/key": "RSA PKCS#8"}
    signatures = {}
    for path, name in forms.items():
        (tmp_path / "key").write_text(f"\n{USABLE[name][1]}\n")
        signatures[path] = read_secret(configured_secret(path.format(tmp_path))).sign(PAYLOAD)
    assert are_valid(signatures, {path: USABLE[name][0] for path, name in forms.items()}) == dict.fromkeys(forms, True)


def test_both_exchanges_accept_signatures_by_key_files_in_the_home_folder_and_in_der(
    run_check, configure_binance, configure_lbank, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", f"{tmp_path}")
    (tmp_path / "key").write_bytes(RSA_KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    configure_binance("~/key", RSA_KEY)
    configure_lbank("~/key", RSA_KEY)
    assert run_check().count("accepts the credentials") == 3


def test_a_secret_may_be_the_path_of_a_file_with_an_hmac_secret(
    both_exchanges, run_check, configure_binance, configure_lbank, tmp_path
):
    (tmp_path / "binance").write_text(f" {both_exchanges.binance.partner_secret}\r\n")
    (tmp_path / "lbank").write_text(f"\ufeff{both_exchanges.lbank.api_secret}\n")
    configure_binance(f"{tmp_path}/binance")
    configure_lbank(f"{tmp_path}/lbank", method="HmacSHA256")
    assert run_check().count("accepts the credentials") == 3


def test_an_unusable_key_is_reported_without_quoting_it(configured_secret, tmp_path):
    found: dict[str, list[bool]] = {}
    for name, (secret, defect) in UNUSABLE.items():
        (tmp_path / "stored").write_text(secret)
        of_binance = reported(connect_binance, configured_secret(secret))
        of_lbank = reported(connect_lbank, f"{tmp_path}/stored")
        lines = [line for line in secret.splitlines() if len(line) > 20 and "---" not in line]
        of_file = f"is the path of a file whose content {defect}"
        found[name] = [
            f"BINANCE_PARTNER_API_SECRET cannot be used: the secret {defect}" in of_binance,
            f"LBANK_API_SECRET cannot be used: the secret {of_file}" in of_lbank,
            not any(line in of_binance + of_lbank for line in lines),
        ]
    assert found == dict.fromkeys(UNUSABLE, [True] * 3)


def test_an_unusable_path_is_reported_and_not_used_as_an_hmac_secret(configured_secret, tmp_path):
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "large").write_text("x" * 100_000)
    found = {
        path: [
            f"BINANCE_PARTNER_API_SECRET cannot be used: the secret {defect}"
            in reported(connect_binance, configured_secret(path)),
            f"LBANK_API_SECRET cannot be used: the secret {defect}" in reported(connect_lbank, path, "HmacSHA256"),
        ]
        for path, defect in PATHS.items()
    }
    assert found == dict.fromkeys(PATHS, [True] * 2)


def test_the_command_check_reports_an_unusable_key_of_each_exchange(
    run_check, configure_binance, configure_lbank, tmp_path
):
    (tmp_path / "stored").write_text(CERTIFICATE)
    configure_binance(encoded_public(RSA_KEY))
    configure_lbank(f"{tmp_path}/stored")
    printed = run_check()
    assert "BINANCE_PARTNER_API_SECRET cannot be used: the secret is a public key" in printed
    of_file = "is the path of a file whose content is a certificate"
    assert f"LBANK_API_SECRET cannot be used: the secret {of_file}" in printed
    assert not any(line in printed for line in encoded_public(RSA_KEY).splitlines()[1:-1])


def test_a_pem_in_env_without_quotes_is_reported(run_check, monkeypatch):
    monkeypatch.delenv("BINANCE_PARTNER_API_SECRET")
    Path(".env").write_text(f"BINANCE_PARTNER_API_SECRET={PEM}")
    assert "BINANCE_PARTNER_API_SECRET cannot be used: the secret is a PEM without its END line" in run_check()


def test_a_secret_of_the_other_signature_method_is_reported():
    of_hmac = reported(connect_lbank, "an-hmac-secret", "RSA")
    assert "the secret is not a private key, and the method is RSA" in of_hmac
    of_rsa = reported(connect_lbank, PEM, "HmacSHA256")
    assert "the secret is a private key, and the method is HmacSHA256" in of_rsa
    assert all("Correct LBANK_API_SECRET or LBANK_SIGNATURE_METHOD in" in each for each in (of_hmac, of_rsa))
    of_ed25519 = reported(connect_lbank, encoded(ED25519_KEY), "RSA")
    assert "is a private key of type Ed25519, which LBank does not accept: use RSA" in of_ed25519


def test_each_failed_day_names_the_path(both_exchanges, configure_binance):
    configure_binance("/run/secrets/binance_partner")
    run = materialize(KEY, DAYS[:2])
    assert set(run.failed) == set(DAYS[:2])
    assert all("API_SECRET cannot be used: the secret is the path" in reason for reason in run.failed.values())
    assert both_exchanges.requests == []


def test_a_day_lands_with_an_openssh_key(both_exchanges, configure_binance):
    configure_binance(*reversed(USABLE["Ed25519 OpenSSH, literal \\n"]))
    assert land(KEY, DAYS[:1]).success
