"""What is derived from the site's own secret, which lies beside the ledger and which no plan,
reply or report holds: what must not be foreseen by whoever writes plans is decided with it."""

from __future__ import annotations

import hmac

SECRET_BYTES = 32


def derived(secret: bytes, purpose: str, *what: str) -> bytes:
    """32 bytes for one purpose and subject: HMAC-SHA-256, so that none tells of another.

    Args:
        secret: the site's.
        purpose: a constant of the program.
        what: the subject; lists that differ give independent bytes.
    """
    content = b"".join(len(part).to_bytes(8) + part for part in (s.encode() for s in what))
    head = purpose.encode()
    return hmac.digest(secret, len(head).to_bytes(8) + head + content, "sha256")
