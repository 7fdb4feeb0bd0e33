"""Texts as signing needs them: the canonical percent-encoding of parameters, and private keys as settings
hold them. Nothing here signs or sends, and no exchange is known."""

import os
from base64 import b64decode
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote, urlencode

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_private_key

PEM_MARK = "-----BEGIN "


def encode(params: Mapping[str, object]) -> str:
    """The query of `params` in their order: UTF-8, RFC 3986 unreserved characters kept, all else as
    upper-case `%XX` (a space is `%20`). None values are left out, empty ones stay (`coin=`)."""
    present = {name: value for name, value in params.items() if value is not None}
    return urlencode(present, quote_via=quote, safe="")


def means_private_key(secret: str) -> bool:
    """Whether `secret` is a PEM or a file's path, rather than a shared secret. A name ending in `.pem` counts
    without its file too: a mistyped path has to fail here, not as a signature that the exchange refuses."""
    return PEM_MARK in secret or os.path.isfile(secret) or secret.endswith(".pem")


def private_key(secret: str) -> PrivateKeyTypes:
    """The key that `secret` is: PEM (newlines may be literal `\\n`), bare base64 of PKCS#8 DER, or the path
    of a file with either. Raises ValueError, whose text quotes nothing of the secret."""
    in_file = PEM_MARK not in secret and os.path.isfile(secret)
    try:
        text = Path(secret).read_text(encoding="latin-1") if in_file else secret.replace("\\n", "\n")
        if PEM_MARK in text:
            return load_pem_private_key(text.strip().encode(), password=None)
        return load_der_private_key(b64decode(text), password=None)
    except TypeError:  # what cryptography raises for a key that needs a passphrase
        problem = "is encrypted: store it without a passphrase"
    except OSError as error:
        problem = f"is in a file that cannot be read ({error.strerror}): let the user who runs this read it"
    except (ValueError, UnsupportedAlgorithm):
        problem = "cannot be read: neither PEM, nor base64 of PKCS#8 DER, nor the path of a file with one"
    # Outside the handlers: the parser's error may quote bytes of the key and must not be chained to this one.
    raise ValueError(f"the private key {problem}")
