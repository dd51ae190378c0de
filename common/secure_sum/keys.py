"""The keys of one run at one site, and of every sum and pair derived from them.

Formal statement:
    The run's X25519 key and its secret for self masks are derived of the site's identity, run and
    plan, so that a restarted site has the same without keeping any. From the secret that two sites
    agree on, and for every sum anew, HKDF-SHA256 with the sum's context as salt derives a key for
    their pairwise mask and one each way for the shares they send one another. Giving out a pair's
    mask key of one sum tells nothing of another sum's, nor of the keys for shares: outputs of HKDF
    under other salts or labels are independent for whoever does not know the agreed secret (RFC
    5869; X25519, RFC 7748).

    *Not claimed*: forward secrecy. Who takes a site's identity later can open what it recorded;
    what it finds is the vector with the site's own share of the noise.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lorica.common.errors import Code, LoricaError
from lorica.common.secure_sum.context import canonical
from lorica.common.secure_sum.identity import Identity
from lorica.common.secure_sum.masks import KEY_BYTES, key_stream
from lorica.common.secure_sum.roster import Card, make_card
from lorica.common.secure_sum.shamir import coefficients, element_to_bytes, stream_bytes


class RunKeys:
    """One site's keys of one run."""

    def __init__(self, identity: Identity, run: str, fingerprint: str, name: str) -> None:
        """
        Args:
            identity: the site's.
            run: Lorica's run id.
            fingerprint: of the plan.
            name: the site's public name.
        """
        self.name = name
        self.identity = identity
        of_run = canonical("lorica secure sum", run, fingerprint, name)
        self._private = X25519PrivateKey.from_private_bytes(identity.derive(b"x25519" + of_run))
        self._secret = identity.derive(b"self masks" + of_run)
        public = self._private.public_key().public_bytes_raw().hex()
        self.card = make_card(identity, run, fingerprint, name, public)
        """What the roster holds of this site."""
        self._agreed: dict[str, bytes] = {}

    def pair(self, context: bytes, other: Card) -> bytes:
        """The secret of the mask that this site and another share in a sum: a field element.

        Raises:
            LoricaError: LOR-531 the other's key is none that a secret can be agreed on with.
        """
        names = sorted((self.name, other.name))
        drawn = self._from_agreed(context, other, canonical("pair", *names), stream_bytes(1))
        return element_to_bytes(coefficients(drawn, 1)[0])

    def parcel(self, context: bytes, other: Card, *, sends: bool) -> bytes:
        """The key of what this site sends to another in a sum, or gets from it."""
        way = (self.name, other.name) if sends else (other.name, self.name)
        return self._from_agreed(context, other, canonical("parcel", *way), KEY_BYTES)

    def own(self, context: bytes, vector: bytes, length: int) -> bytes:
        """``length`` bytes that only this site knows, bound to a sum and to the hash of the vector
        that it masks: were the site ever to mask another one, masks and parcels would be others."""
        return key_stream(_derive(self._secret, context, b"own" + vector, KEY_BYTES), length)

    def _from_agreed(self, context: bytes, other: Card, info: bytes, length: int) -> bytes:
        if other.key not in self._agreed:
            try:
                public = X25519PublicKey.from_public_bytes(bytes.fromhex(other.key))
                self._agreed[other.key] = self._private.exchange(public)
            except ValueError as error:
                raise LoricaError(
                    Code.ROSTER_INVALID, f"The key of site {other.name!r:.80} is of small order."
                ) from error
        return _derive(self._agreed[other.key], context, info, length)


def _derive(secret: bytes, context: bytes, info: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=context, info=info).derive(secret)
