"""Texts as signing needs them: the canonical percent-encoding of parameters, and secrets as people store them. Nothing
here signs or sends, and no exchange is known."""

import binascii
import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote, urlencode

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    load_der_private_key,
    load_der_public_key,
    load_ssh_private_key,
)
from cryptography.x509 import load_der_x509_certificate

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
_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----(.*?)-----END \1-----", re.DOTALL)
_LABEL = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----")
# Neither an HMAC secret nor base64 begins or ends so.
_PATH = re.compile(r"(?i)(~|\.{1,2}[/\\]|[a-z]:\\|file:).*|.*\.(pem|key|txt|der|p8|p12|pfx|ppk|json|crt|cer|pub)")
_PUBLIC_LINE = re.compile(r"(ssh-|ecdsa-|sk-)\S+ AAAA|AAAA[BCE]3Nz|---- BEGIN SSH2 PUBLIC KEY")
_PFX_CONTENT = bytes.fromhex("06092a864886f70d0107")  # the PKCS#7 content type, near the beginning
_OPENSSH = b"openssh-key-v1\0"


def encode(params: Mapping[str, object]) -> str:
    """The query of `params` in their order: UTF-8, RFC 3986 unreserved characters kept, all else as
    upper-case `%XX` (a space is `%20`). None values are left out, empty ones stay (`coin=`)."""
    present = {name: value for name, value in params.items() if value is not None}
    return urlencode(present, quote_via=quote, safe="")


def read_secret(setting: str) -> str | PrivateKeyTypes:
    """The shared secret or private key in a setting, or in the file whose path the setting is.

    A private key may be PEM (PKCS#8, PKCS#1, OpenSSH; its line ends may be blanks or a literal `\\n`), or base64 of the
    DER. Raises ValueError, whose text says what was found and quotes nothing of the secret.
    """
    content = setting.strip().encode(errors="surrogateescape")
    where, found = "", _secret_in(content)
    if isinstance(found, str):
        where, found = _in_file(setting.strip(), found)
    if isinstance(found, _Unusable):
        # Not within a handler: a parser's error may quote bytes of the key and must not be chained to this one.
        raise ValueError(f"the secret {where}{found}")
    return found


def check_api_key(api_key: str, secret: str) -> None:
    """Raises ValueError, whose text quotes nothing, for what cannot be the API key that belongs to the secret."""
    if "-----BEGIN " in api_key:
        raise ValueError("the API key is a PEM: were key and secret swapped?")
    if not re.fullmatch("[!-~]+", api_key):
        raise ValueError("the API key is empty or has a character that a header cannot carry, such as a space")
    if api_key == secret:
        raise ValueError("the API key and its secret are the same: one of them was copied twice")


def kind_of(key: PrivateKeyTypes) -> str:
    """The type of the key, as a person knows it."""
    return f"a private key of type {type(key).__name__.removesuffix('PrivateKey').lstrip('_')}"


class _Unusable(str):
    """What is wrong with a secret, as the rest of a sentence."""


_Secret = str | PrivateKeyTypes


def _in_file(path: str, otherwise: str) -> tuple[str, _Secret]:
    """What the file holds if the text is the path of one."""
    try:
        file = Path(path.removeprefix("file://")).expanduser()
        exists = file.exists()
    except (OSError, RuntimeError, ValueError):
        exists = False
    if not exists and not _PATH.fullmatch(path) and not path.startswith("/"):
        return "", otherwise
    try:
        if not exists:
            return "", _Unusable("is the path of a file that does not exist")
        if not file.is_file():
            return "", _Unusable("is the path of a folder or device: name the file with the secret")
        with file.open("rb") as opened:
            content = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        return "", _Unusable(
            f"is the path of a file that cannot be read ({error.strerror}): let the user who runs this read it"
        )
    if len(content) > MAX_FILE_BYTES:
        return "", _Unusable("is the path of a file that is too large for a secret")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        content = content.decode("utf-16", "replace").encode()
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        return "", _Unusable("is the path of a file that is empty")
    return "is the path of a file whose content ", _secret_in(content)


def _secret_in(content: bytes) -> _Secret:
    """The secret of these bytes, or what is wrong with them."""
    if content[:1] == b"\x30" and (found := _of_der(content)):
        return found
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        return _Unusable("is neither text nor a private key")
    text = text.replace("\\r", "\r").replace("\\n", "\n")
    if "-----BEGIN " in text or "-----END " in text:
        return _of_pem(text)
    if _PUBLIC_LINE.match(text):
        return _Unusable(_PUBLIC)
    if text.startswith("PuTTY-User-Key-File"):
        return _Unusable("is a PuTTY key (.ppk): export it with PuTTYgen as an OpenSSH key")
    if text.startswith("{"):
        return _Unusable("is JSON, as a JWK is: store the private key as PEM")
    compact = "".join(text.split())
    der = _base64(compact)
    if der and der.lstrip().startswith(b"-----BEGIN "):
        return _secret_in(der)
    if der and der.startswith(_OPENSSH):
        return _of_openssh(compact)
    if der and der[:1] == b"\x30" and (found := _of_der(der)):
        return found
    if compact.startswith("MI") and len(compact) > 100:
        return _Unusable(_DAMAGED)
    if not re.fullmatch("[!-~]+", text):
        return _Unusable("has white space or another character that a secret cannot have: copy it again")
    if text[0] in "\"'`" or text[-1] in "\"'`":
        return _Unusable("is in quotes, which count as a part of it: remove them")
    return text


def _base64(text: str) -> bytes | None:
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None


def _of_pem(text: str) -> _Secret:
    """The first private key among the PEM blocks, or what they are instead."""
    blocks = _BLOCK.findall(text)
    for label, body in blocks:
        if label == "ENCRYPTED PRIVATE KEY" or "ENCRYPTED" in body:
            return _Unusable(_ENCRYPTED)
        if label == "OPENSSH PRIVATE KEY":
            return _of_openssh("".join(body.split()))
        if label.endswith("PRIVATE KEY"):
            der = _base64("".join(body.split()))
            return (der and _of_der(der)) or _Unusable(_DAMAGED)
    labels = _LABEL.findall(text)
    if len(labels) > len(blocks) or not labels:
        return _Unusable(_CUT_OFF.format(line="END" if labels else "BEGIN"))
    if labels[0].endswith("PUBLIC KEY"):
        return _Unusable(_PUBLIC)
    if "CERTIFICATE" in labels[0]:
        return _Unusable(_CERTIFICATE)
    return _Unusable("is a PEM without a private key")


def _of_openssh(body: str) -> _Secret:
    lines = "\n".join(body[start : start + 70] for start in range(0, len(body), 70))
    pem = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{lines}\n-----END OPENSSH PRIVATE KEY-----\n".encode()
    # Read the cipher's name first: the parser raises the same error for an encrypted and a damaged key.
    binary = _base64(body) or b""
    cipher = binary[len(_OPENSSH) + 4 :][: int.from_bytes(binary[len(_OPENSSH) :][:4])]
    if binary.startswith(_OPENSSH) and cipher and cipher != b"none":
        return _Unusable(_ENCRYPTED)
    return _parsed(lambda: load_ssh_private_key(pem, None)) or _Unusable(_DAMAGED)


def _of_der(der: bytes) -> _Secret | None:
    """The private key, or what it is instead; None if it is nothing known."""
    try:
        return load_der_private_key(der, None)
    except TypeError:  # what cryptography raises for a key that needs a passphrase
        return _Unusable(_ENCRYPTED)
    except (ValueError, UnsupportedAlgorithm):
        pass
    if _parsed(lambda: load_der_public_key(der)):
        return _Unusable(_PUBLIC)
    if _parsed(lambda: load_der_x509_certificate(der)):
        return _Unusable(_CERTIFICATE)
    if _PFX_CONTENT in der[:40]:
        return _Unusable(_PFX)
    return None


def _parsed(parse: Callable[[], object]):
    try:
        return parse()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None
