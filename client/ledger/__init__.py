"""The site's durable privacy ledger: charge, then train, then mark; never the other way round.

One ledger per data set. An answer goes through three commits:

1. :meth:`Ledger.charge` writes what the private step is about to cost, if the budgets allow it.
2. The step runs.
3. :meth:`Ledger.store` marks the charge done and keeps the reply, in one transaction. Only the
   bytes that ``store`` returns may leave the site.

Formal guarantee:
    *Accounting.* Every reply that ``store`` returned has a charge in the chain, written before its
    step ran, and each charge has at most one answer, in whichever process and after whichever
    crash. So what is composed over all charges (at the ledger's δ, under the neighbouring relation
    of :class:`~lorica.common.privacy.event.PrivacyEvent`) bounds what all released replies
    together reveal of one unit. A crash, a full disk or a lost process can
    leave a charge without an answer, which overcounts; none leaves an answer without a charge.

    *Budgets.* They are checked and the charge written under one write lock, so two processes
    cannot both take the last of a budget. What each budget's figure proves is said in
    :mod:`lorica.client.ledger.limits`: a run's own is by PLD, the lifetime's and a period's by a
    privacy filter, which also holds where somebody chooses the next run's parameters in view of
    earlier replies.

    *A charge that was never answered* (its process died) pays for a new attempt at the same work:
    same run, round, kind, events and plan. Nothing of the earlier attempt had left, as a reply
    leaves only after ``store``; and when two attempts race, the first to store wins and the
    other is handed the winner's bytes. The released transcript is thus that of one attempt.
    What an attempt that died can still reveal is *that* it died, a bit that only a fault which
    depends on the records could make informative. It is not noised and no accounting covers it;
    the ledger bounds it: after :data:`FREE_RETRIES` unpaid attempts a round is charged again, and
    every attempt is an entry. The trainer stores the refusal of a step that raised as its reply,
    so an exception closes the round and is told once; only a process that died leaves it open.

    *Evidence.* Entries form a hash chain with an anchor (:mod:`lorica.client.ledger.chain`,
    :mod:`lorica.client.ledger.anchor`): an edit, deletion, reordering, truncation or restored
    older copy is found when the ledger is opened, and nothing runs. Times never go back along
    the chain, so setting the clock back opens no earlier period.
"""

from __future__ import annotations

from lorica.client.ledger.charge import Budgets, Charge, Period, Spending
from lorica.client.ledger.ledger import FREE_RETRIES, Ledger
from lorica.client.ledger.opening import FileLedger, MemoryLedger

__all__ = [
    "FREE_RETRIES",
    "Budgets",
    "Charge",
    "FileLedger",
    "Ledger",
    "MemoryLedger",
    "Period",
    "Spending",
]
