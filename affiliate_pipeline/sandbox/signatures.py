"""How the exchanges verify a signature. What is signed is defined in each exchange."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key


def is_public_key(secret_or_public_pem: str) -> bool:
    """Whether the text is the public key of a pair, not an HMAC secret."""
    return secret_or_public_pem.lstrip().startswith("-----BEGIN")


@lru_cache
def verifier(secret_or_public_pem: str) -> Callable[[bytes, str], bool]:
    """A function of payload and signature: whether the signature is valid for this secret or public key."""
    if is_public_key(secret_or_public_pem):
        return _public_key_verifier(secret_or_public_pem)
    return _hmac_verifier(secret_or_public_pem)


def _hmac_verifier(secret: str) -> Callable[[bytes, str], bool]:
    def is_valid(payload: bytes, signature: str) -> bool:
        expected = hmac.new(secret.encode(), payload, hashlib.sha256).hexdigest()
        return hmac.compare_digest(expected.encode(), signature.lower().encode())

    return is_valid


def _public_key_verifier(public_pem: str) -> Callable[[bytes, str], bool]:
    public = load_pem_public_key(public_pem.encode())
    if not isinstance(public, RSAPublicKey | Ed25519PublicKey):
        raise TypeError(f"an account's key is RSA or Ed25519, not {type(public).__name__}")

    def is_valid(payload: bytes, signature: str) -> bool:
        try:
            decoded = base64.b64decode(signature, validate=True)
            if isinstance(public, RSAPublicKey):
                public.verify(decoded, payload, PKCS1v15(), SHA256())
            else:
                public.verify(decoded, payload)
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True

    return is_valid
