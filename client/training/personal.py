"""The part of an adapter that a site keeps for itself between rounds (method "fedsa").

Formal guarantee:
    *Claim.* What site k sends in a run of a method with personal parts is (ε, δ)-differentially
    private for the ε that the ledger charges, and so is what it sends together with its
    personal tensors. *Why.* Each local step clips one gradient per unit over **all** trained
    values, shared and personal together, and adds noise of the same σC to all of them
    (:mod:`lorica.client.mechanism.dp_sgd`). The whole trajectory (A_t, B_t, head_t) is an adaptive
    composition of such steps, which is what is charged; the update that leaves is a function
    of it, and so are the tensors that are stored here and loaded in the next round. Loading them
    reads no record and costs nothing.

    *What would break it.* B influences every later gradient of A. Were B moved without noise,
    step t's sum for A would be evaluated at a B_t that depends on the records in an unbounded
    way: all units' clipped gradients would change between neighbouring data sets, not one
    unit's, and the sensitivity would no longer be C, although B itself never leaves. A personal
    part is thus charged like a shared one; what is saved by not sending it is bytes, not ε.

    *One attempt counts.* Where two processes answer one request, the tensors that are kept are
    those of the attempt whose update leaves: they are stored under the ledger's write lock, with
    it (:meth:`lorica.client.ledger.Ledger.store`). Else one charge would pay for two mechanisms.

    Personal tensors are as private as an update. They are kept readable by their owner alone
    because they are the site's, not because the guarantee needs it.

What is kept is the state after a round, for the last two rounds: a coordinator that lost a round
and asks for it again must find the state that the round began with.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Protocol

import safetensors
import safetensors.torch

from lorica.common.adapter.state import State
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import make_private_folder, storage_errors, write_atomically
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS
from lorica.common.plan.stages import stage_of
from lorica.common.wire.messages import TRAIN, Request

_KEPT_ROUNDS = 2

Rounds = dict[int, State]
"""Round -> the personal tensors as it left them."""


class PersonalStore(Protocol):
    """Keeps a site's personal tensors, by run and plan."""

    def load(self, run: str, plan: RunPlan, before: int | None = None) -> State:
        """The tensors as the last round below ``before`` left them (None: the last of all);
        empty when there is none, and the run's own start then holds."""
        ...

    def save(self, run: str, plan: RunPlan, round: int, state: State) -> None:
        """Keep the tensors as a round left them, and those of the round before it."""
        ...


def has_own(plan: RunPlan, round: int) -> bool:
    """Whether a site has tensors of its own in a round of the plan."""
    personal = METHODS[plan.aggregation.method].personal
    return bool(personal) and not stage_of(plan, round).on_frozen_features


def own_state(store: PersonalStore, request: Request, kind: str) -> State:
    """The site's own tensors that an answer begins with; what is not training comes after its
    round."""
    if not has_own(request.plan, request.round):
        return {}
    before = request.round if kind == TRAIN else request.round + 1
    return store.load(request.run, request.plan, before)


class MemoryPersonal:
    """Keeps them for as long as the process lives."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Rounds] = {}

    def load(self, run: str, plan: RunPlan, before: int | None = None) -> State:
        """As of :class:`PersonalStore`."""
        return _last(self._held.get((run, plan.fingerprint), {}), before)

    def save(self, run: str, plan: RunPlan, round: int, state: State) -> None:
        """As of :class:`PersonalStore`."""
        key = run, plan.fingerprint
        self._held[key] = _with(self._held.get(key, {}), round, state)


class FolderPersonal:
    """Keeps them in a folder, one file for each run: at a real site beside its ledger.

    A file is replaced whole and is readable by its owner alone.
    """

    def __init__(self, folder: Path, site: str) -> None:
        """
        Args:
            folder: made when something is kept.
            site: the site's name; sites may share a folder (simulations).
        """
        self.folder, self._site = folder, site

    def load(self, run: str, plan: RunPlan, before: int | None = None) -> State:
        """As of :class:`PersonalStore`.

        Raises:
            LoricaError: LOR-131 when the file is damaged, LOR-602 when it cannot be read.
        """
        return _last(self._read(self.path(run, plan)), before)

    def save(self, run: str, plan: RunPlan, round: int, state: State) -> None:
        """As of :class:`PersonalStore`; durable when it returns.

        Raises:
            LoricaError: LOR-131, LOR-601, LOR-602; what was kept before is as it was.
        """
        make_private_folder(self.folder)
        path = self.path(run, plan)
        held = _with(self._read(path), round, state)
        tensors = {f"{number}/{name}": t for number, s in held.items() for name, t in s.items()}
        about = json.dumps({"site": self._site, "run": run, "fingerprint": plan.fingerprint})
        blob = safetensors.torch.save(tensors, metadata={"about": about})
        write_atomically(path, blob, mode=0o600)

    def path(self, run: str, plan: RunPlan) -> Path:
        """The file of a run; the coordinator chooses run ids, so a hash stands for them."""
        key = "\0".join((self._site, run, plan.fingerprint)).encode()
        readable = re.sub(r"[^\w.-]", "_", self._site)[:40]
        return self.folder / f"{readable}-{hashlib.sha256(key).hexdigest()[:16]}.safetensors"

    def runs(self, plan: RunPlan) -> list[str]:
        """Ids of the site's runs of a plan, in no order.

        Raises:
            LoricaError: LOR-131 when a file of the folder is damaged.
        """
        found = []
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                with safetensors.safe_open(path, framework="pt") as file:
                    about = json.loads(file.metadata()["about"])
                if (about["site"], about["fingerprint"]) == (self._site, plan.fingerprint):
                    found.append(about["run"])
            except (OSError, safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
                raise _damaged(path, error) from error
        return found

    @staticmethod
    def _read(path: Path) -> Rounds:
        with storage_errors(path):
            if not path.exists():
                return {}
            content = path.read_bytes()
        try:
            found: Rounds = {}
            for key, tensor in safetensors.torch.load(content).items():
                number, _, name = key.partition("/")
                found.setdefault(int(number), {})[name] = tensor
            return found
        except (safetensors.SafetensorError, ValueError) as error:
            raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> LoricaError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return LoricaError(Code.PERSONAL_UNREADABLE, f"{path} is damaged: {reason}.")


def _last(held: Rounds, before: int | None) -> State:
    numbers = [number for number in held if before is None or number < before]
    if not numbers:
        return {}
    return {name: tensor.clone() for name, tensor in held[max(numbers)].items()}


def _with(held: Rounds, round: int, state: State) -> Rounds:
    """What is kept after a round: it and the last one below it."""
    below = sorted(number for number in held if number < round)[-(_KEPT_ROUNDS - 1) :]
    kept = {number: held[number] for number in below}
    return kept | {round: {name: tensor.detach().clone() for name, tensor in state.items()}}
