"""The head of a ledger: how far it had come, sealed by the site, kept by somebody else.

Chain and anchor lie in one folder, and an older copy of that folder is a sound ledger that has
forgotten what was spent since. So the site gives its head away: with every reply to the
coordinator, which returns it with the next request, and into a file of its own choice
(``ledger.witness``). A ledger that does not contain a head that this site sealed is older than
what left, and nothing is answered from it.

Formal guarantee:
    A seal is HMAC-SHA256 under the site's secret, so nobody else makes a head that is taken for
    one: a lying coordinator or a stranger cannot stop a site with it. A head says how many entries
    there are and what they hash to, public figures of the plans that were answered; nothing of
    the records. *Not claimed*: that a coordinator returns what it was given. One that keeps heads
    back is not seen; then the witness file is, and noise that follows from the request
    (:class:`lorica.client.mechanism.noise.DerivedNoise`) makes answering again worthless.
"""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass
from pathlib import Path

from lorica.client.ledger.history import History
from lorica.client.ledger.ledger import Ledger
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors, write_atomically

_FORM = re.compile(r"([0-9a-f]{32}):(\d{1,12}):([0-9a-f]{64}):([0-9a-f]{64})")


@dataclass(frozen=True)
class Head:
    """The newest entry of a ledger."""

    ledger: str
    """The ledger's own id."""
    number: int
    hash: str

    @staticmethod
    def of(history: History) -> Head:
        """The head of a history that has entries."""
        return Head(history.ledger, history.count, history.head)

    def sealed(self, secret: bytes) -> str:
        """The head as it is given away."""
        return f"{self.ledger}:{self.number}:{self.hash}:{_seal(self, secret)}"

    @staticmethod
    def read(text: str, secret: bytes) -> Head | None:
        """The head in a text; None where this site did not seal it."""
        found = _FORM.fullmatch(text.strip())
        if found is None:
            return None
        head = Head(found[1], int(found[2]), found[3])
        return head if hmac.compare_digest(_seal(head, secret), found[4]) else None

    def require_in(self, history: History, whose: str) -> None:
        """Return if the history contains this head.

        Args:
            history: of the ledger at hand.
            whose: who kept the head, for the sentence.

        Raises:
            LoricaError: LOR-613.
        """
        if history.ledger != self.ledger:
            problem = "the ledger here is another one, begun anew"
        elif history.count < self.number:
            problem = f"the ledger here has {history.count}: it is an older copy"
        elif history.hashes[self.number - 1] != self.hash:
            problem = "the ledger here went another way: it was continued from an older copy"
        else:
            return
        raise LoricaError(
            Code.LEDGER_ROLLED_BACK,
            f"{whose} holds a head that this site sealed, of {self.number} entries, but {problem}. "
            "Nothing is answered, for what was spent since would be spent again.",
            mend="Put back the newest copy of the ledger's folder. If it is lost, take the data's "
            "budget as spent: end the use of this data set.",
        )


class Witness:
    """A file elsewhere that holds the newest head."""

    def __init__(self, path: Path, secret: bytes) -> None:
        """``path``: on another disk or machine than the ledger; ``secret``: seals."""
        self._path, self._secret = path, secret

    def check(self, history: History) -> None:
        """Return if the ledger contains the head in the file, or there is no file yet.

        Raises:
            LoricaError: LOR-613 it does not, LOR-612 the file holds no head of this site, LOR-60x.
        """
        with storage_errors(self._path):
            try:
                text = self._path.read_text(encoding="ascii", errors="replace")
            except FileNotFoundError:
                return
        head = Head.read(text, self._secret)
        if head is None:
            raise LoricaError(
                Code.LEDGER_DAMAGED,
                f"The ledger's witness {self._path} holds no head that this site sealed.",
                mend="Put back the file, or the site's noise.key that belongs to it.",
            )
        head.require_in(history, f"The witness {self._path}")

    def keep(self, history: History) -> None:
        """Write the newest head.

        Raises:
            LoricaError: LOR-60x; nothing may leave then.
        """
        write_atomically(self._path, Head.of(history).sealed(self._secret) + "\n")


class Heads:
    """One ledger's heads: given away with replies, asked for again with requests."""

    def __init__(self, ledger: Ledger, secret: bytes, witness: Witness | None = None) -> None:
        """``secret``: seals; ``witness``: where the newest head is kept, too."""
        self._ledger, self._secret, self._witness = ledger, secret, witness

    def require(self, returned: str) -> None:
        """Return unless somebody holds a head of this ledger that it does not contain.

        Args:
            returned: what the coordinator kept of an earlier reply; anything else is passed over.

        Raises:
            LoricaError: LOR-613 the ledger is older than what left.
        """
        history = self._ledger.history()
        if self._witness is not None:
            self._witness.check(history)
        head = Head.read(returned, self._secret)
        if head is not None:
            head.require_in(history, "The coordinator")

    def newest(self) -> str:
        """The ledger's head, sealed."""
        return Head.of(self._ledger.history()).sealed(self._secret)

    def keep(self) -> None:
        """Write the newest head to the witness.

        Raises:
            LoricaError: LOR-60x; nothing may leave then.
        """
        if self._witness is not None:
            self._witness.keep(self._ledger.history())


def _seal(head: Head, secret: bytes) -> str:
    words = f"lorica ledger head {head.ledger}:{head.number}:{head.hash}"
    return hmac.digest(secret, words.encode(), "sha256").hex()
