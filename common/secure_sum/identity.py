"""A site's signing key: who it is to its peers, in every run."""

from __future__ import annotations

import functools
import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SIGNATURE_BYTES = 64


class Identity:
    """A site's Ed25519 key, and the one secret that its keys of a run are derived from."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        """``key`` stays in memory and is never printed."""
        self._key = key

    @classmethod
    def generate(cls) -> Identity:
        """A new one."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The one of 32 bytes: for simulations that can be repeated."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @property
    def public(self) -> str:
        """The public key, 64 hex digits."""
        return self._key.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> bytes:
        """The signature of a message, 64 bytes (deterministic: the same message, the same)."""
        return self._key.sign(message)

    def derive(self, info: bytes) -> bytes:
        """32 bytes that only the holder of the key knows, other ones for every ``info``.

        HKDF-SHA256 of the key's seed: with SHA-512 of the same seed, which Ed25519 uses, it shares
        nothing but the seed.
        """
        return HKDF(SHA256(), 32, salt=b"lorica site derived key", info=info).derive(
            self._key.private_bytes_raw()
        )


@functools.lru_cache(maxsize=2**15)
def signed_by(public: str, message: bytes, signature: bytes) -> bool:
    """Whether a signature is of this message by the holder of a public key (64 hex digits).

    The last answers are kept: a roster comes with every round.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        key.verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def fingerprint_of(public: str) -> str:
    """What people compare of a public key: 32 hex digits of its SHA-256, in groups of four."""
    digest = hashlib.sha256(bytes.fromhex(public)).hexdigest()[:32]
    return " ".join(digest[place : place + 4] for place in range(0, 32, 4))
