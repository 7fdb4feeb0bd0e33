"""Percent-encoding of signed parameters, and secrets in the forms people store them in."""

import binascii
import hmac
import re
from base64 import b64decode, b64encode, encodebytes
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, urlencode

MAX_FILE_BYTES = 1 << 16
_ENCRYPTED = "is a private key that is encrypted: store it without a passphrase"
_PUBLIC = "is a public key: the private key is needed"
_CERTIFICATE = "is a certificate: the private key is needed"
_PFX = "is a PFX (PKCS#12) file: export the private key from it as PEM, without a passphrase"
_DAMAGED = "is a private key that is cut off or damaged: store it again"
_CUT_OFF = (
    "is a PEM without its {line} line. In .env, write a PEM in double quotes or on one line with \\n for its line ends, or "
    "name a file"
)
_OTHER_FORMATS = (
    (r"(ssh-|ecdsa-|sk-)\S+ AAAA|AAAA[BCE]3Nz|---- BEGIN SSH2 PUBLIC KEY", _PUBLIC),
    ("PuTTY-User-Key-File", "is a PuTTY key (.ppk): export it with PuTTYgen as an OpenSSH key"),
    (r"\{", "is JSON, as a JWK is: store the private key as PEM"),
)
_BLOCK = r"(?s)-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----"
_LABEL = r"-----BEGIN ([A-Z0-9 ]+)-----"
# Neither an HMAC secret nor base64 begins or ends like this.
_PATH = r"(?i)(~|\.{1,2}[/\\]|[a-z]:\\|file:).*|.*\.(pem|key|txt|der|p8|p12|pfx|ppk|json|crt|cer|pub)"
_PFX_CONTENT = bytes.fromhex("06092a864886f70d0107")  # the PKCS#7 content type, near the beginning
_OPENSSH = b"openssh-key-v1\0"


def encode(params: Mapping[str, object]) -> str:
    """The query of `params` in their order.

    UTF-8; all but the unreserved characters of RFC 3986 become upper-case `%XX` (a space is `%20`). None values are
    left out, empty ones are sent (`coin=`).
    """
    present = {name: value for name, value in params.items() if value is not None}
    return urlencode(present, quote_via=quote, safe="")


def check_api_key(api_key: str, secret: str) -> None:
    """Raise ValueError, which quotes nothing, if this cannot be the API key of the secret."""
    if "-----BEGIN " in api_key:
        raise ValueError("the API key is a PEM: were key and secret swapped?")
    if not re.fullmatch("[!-~]+", api_key):
        raise ValueError("the API key is empty or has a character that a header cannot carry, such as a space")
    if api_key == secret:
        raise ValueError("the API key and its secret are the same: one of them was copied twice")


@dataclass(frozen=True)
class Secret:
    """What requests are signed with: `kind` is HMAC, RSA or Ed25519.

    `sign` returns the HMAC-SHA256 in hex, or in base64 the signature of RSA (PKCS #1 v1.5, SHA-256) or Ed25519.
    """

    kind: str
    sign: Callable[[bytes], str] = field(repr=False)


def read_secret(setting: str) -> Secret:
    r"""The shared secret or private key in a setting, or in the file whose path the setting is.

    A private key may be PEM (PKCS#8, PKCS#1, OpenSSH; its line ends may be spaces or a literal `\n`), or base64 of the
    DER. Raises ValueError, whose text names what was found and quotes nothing of the secret.
    """
    text = setting.strip()
    path = _path_in(text)
    content = _content(path) if path else text.encode(errors="surrogateescape")
    try:
        return _secret_in(content)
    except _UnusableSecret as error:
        problem = f"is the path of a file whose content {error}" if path else f"{error}"
    # Outside the handler: a parser's error may quote bytes of the key and must not be chained to this one.
    raise ValueError(f"the secret {problem}")


class _UnusableSecret(Exception):
    """What is wrong with a secret, as the rest of a sentence."""


def _path_in(text: str) -> Path | None:
    """The setting as a path, whether or not the file exists; None if it is not a path."""
    path = Path(text.removeprefix("file://"))
    exists = False
    with suppress(OSError, RuntimeError, ValueError):
        path = path.expanduser()
        exists = path.exists()
    looks_like_path = text.startswith("/") or re.fullmatch(_PATH, text)
    return path if exists or looks_like_path else None


def _content(path: Path) -> bytes:
    """The file's bytes, without a byte order mark and with UTF-16 converted to UTF-8; raises ValueError."""
    try:
        content = _read(path)
    except OSError as error:
        raise ValueError(
            f"the secret is the path of a file that cannot be read ({error.strerror}): "
            "let the user who runs this read it"
        ) from None
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        content = content.decode("utf-16", "replace").encode()
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise ValueError("the secret is the path of a file that is empty")
    return content


def _read(path: Path) -> bytes:
    """The file's bytes; raises ValueError if it is not a file of a secret's size, OSError if it cannot be read."""
    if not path.exists():
        raise ValueError("the secret is the path of a file that does not exist")
    if not path.is_file():
        raise ValueError("the secret is the path of a folder or device: name the file with the secret")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError("the secret is the path of a file that is too large for a secret")
    return path.read_bytes()


def _secret_in(content: bytes) -> Secret:
    """The shared secret or the private key; raises `_UnusableSecret`."""
    if key := _private_key(content):
        return key

    content = content.replace(rb"\r", b"\r").replace(rb"\n", b"\n")
    binary = _base64(content)
    if key := _private_key(binary):
        return key
    if binary.lstrip().startswith(b"-----BEGIN "):
        return _secret_in(binary)

    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise _UnusableSecret("is neither text nor a private key") from None
    if "-----BEGIN " in text or "-----END " in text:
        return _key_in_pem(text)
    _check_shared_secret(text)
    return Secret("HMAC", lambda payload: hmac.new(text.encode(), payload, "sha256").hexdigest())


def _check_shared_secret(text: str) -> None:
    """Raise `_UnusableSecret` if the text is something else or was copied wrongly."""
    for pattern, problem in _OTHER_FORMATS:
        if re.match(pattern, text):
            raise _UnusableSecret(problem)
    # A private RSA key in base64 begins like this.
    if text.startswith("MI") and len("".join(text.split())) > 100:
        raise _UnusableSecret(_DAMAGED)
    if not re.fullmatch("[!-~]+", text):
        raise _UnusableSecret("has white space or another character that a secret cannot have: copy it again")
    if text[0] in "\"'`" or text[-1] in "\"'`":
        raise _UnusableSecret("is in quotes, which count as a part of it: remove them")


def _key_in_pem(text: str) -> Secret:
    """The first private key among the PEM blocks; raises `_UnusableSecret`."""
    blocks = re.findall(_BLOCK, text)
    for label, body in blocks:
        if label == "ENCRYPTED PRIVATE KEY" or "ENCRYPTED" in body:
            raise _UnusableSecret(_ENCRYPTED)
        if label.endswith("PRIVATE KEY"):
            if key := _private_key(_base64(body.encode())):
                return key
            raise _UnusableSecret(_DAMAGED)

    labels = re.findall(_LABEL, text)
    if not labels:
        raise _UnusableSecret(_CUT_OFF.format(line="BEGIN"))
    if len(labels) > len(blocks):
        raise _UnusableSecret(_CUT_OFF.format(line="END"))
    if labels[0].endswith("PUBLIC KEY"):
        raise _UnusableSecret(_PUBLIC)
    if "CERTIFICATE" in labels[0]:
        raise _UnusableSecret(_CERTIFICATE)
    raise _UnusableSecret("is a PEM without a private key")


def _base64(text: bytes) -> bytes:
    """The decoded text, ignoring white space; empty if it is not base64."""
    try:
        return b64decode(b"".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _private_key(data: bytes) -> Secret | None:
    """The private key in DER or in OpenSSH's format; None if the data are something else.

    Raises `_UnusableSecret` for a private key that cannot be used, a public key, a certificate or a PFX file.
    """
    if data.startswith(_OPENSSH):
        return _openssh_key(data)
    if data.startswith(b"\x30"):
        return _der_key(data)
    return None


def _openssh_key(data: bytes) -> Secret:
    """The private key in OpenSSH's format; raises `_UnusableSecret`."""
    # Imported here, not at start-up: few secrets are private keys.
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    lines = encodebytes(data).decode()
    pem = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{lines}-----END OPENSSH PRIVATE KEY-----\n"
    try:
        return _signing_with(load_ssh_private_key(pem.encode(), None))
    except TypeError:  # what cryptography raises for a key that needs a passphrase
        raise _UnusableSecret(_ENCRYPTED) from None
    except (ValueError, UnsupportedAlgorithm):
        raise _UnusableSecret(_DAMAGED) from None


def _der_key(data: bytes) -> Secret | None:
    """The private key in DER; None if the data are something else. Raises like `_private_key`."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_der_private_key, load_der_public_key
    from cryptography.x509 import load_der_x509_certificate

    try:
        return _signing_with(load_der_private_key(data, None))
    except TypeError:  # what cryptography raises for a key that needs a passphrase
        raise _UnusableSecret(_ENCRYPTED) from None
    except (ValueError, UnsupportedAlgorithm):
        pass  # not a private key

    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        load_der_public_key(data)
        raise _UnusableSecret(_PUBLIC)
    with suppress(ValueError, TypeError, UnsupportedAlgorithm):
        load_der_x509_certificate(data)
        raise _UnusableSecret(_CERTIFICATE)
    if _PFX_CONTENT in data[:40]:
        raise _UnusableSecret(_PFX)
    return None


def _signing_with(key: object) -> Secret:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256

    if isinstance(key, RSAPrivateKey):
        return Secret("RSA", lambda payload: b64encode(key.sign(payload, PKCS1v15(), SHA256())).decode())
    if isinstance(key, Ed25519PrivateKey):
        return Secret("Ed25519", lambda payload: b64encode(key.sign(payload)).decode())
    kind = type(key).__name__.removesuffix("PrivateKey").lstrip("_")
    raise _UnusableSecret(f"is a private key of type {kind}, which no exchange accepts: use RSA or Ed25519")
