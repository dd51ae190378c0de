"""The results folder of a run: plan, rounds, checkpoint. Valid at every moment.

``plan.toml`` is written first, a line of ``rounds.jsonl`` per round, then the round's
``checkpoint.safetensors``, which replaces the one before. The checkpoint decides: lines of
later rounds (a crash between the two writes) are dropped on resume.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from lorica.common.adapter.state import State
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import append_line, storage_errors, write_atomically
from lorica.common.plan import RunPlan
from lorica.common.plan.io import load_plan, to_toml
from lorica.common.saved.card import CardResults
from lorica.server.results.round import RoundRecord, measured_result

_MEMORY = "optimizer/"  # prefix of its tensors in a checkpoint
PLAN, ROUNDS, CHECKPOINT = "plan.toml", "rounds.jsonl", "checkpoint.safetensors"
SUM = "sealed-sum.json"
SUMMARY, REPORT, PICTURE, ADAPTER = "summary.json", "report.html", "picture.png", "adapter"
START = "start"
"""An adapter, too: the untrained start, where a simulation found it better than what it trained."""


@dataclass(frozen=True)
class Checkpoint:
    """The global state after a whole round."""

    run: str
    """Lorica's run id."""
    round: int
    state: State
    memory: State
    """What the coordinator's optimiser remembers."""


class RunFolder:
    """One run's folder."""

    def __init__(self, path: Path) -> None:
        """``path`` may exist or not; nothing is written yet."""
        self.path = path
        self.data = ""
        """Fingerprint of the data, where whoever runs has them; checkpoints carry it."""
        self.data_may_change = False
        """Whether to go on from a checkpoint that was made with other data."""

    def create(self, plan: RunPlan) -> None:
        """Begin a new run.

        Raises:
            LoricaError: LOR-603 when another run's results are there, LOR-601, LOR-602.
        """
        for name in (PLAN, CHECKPOINT, ROUNDS):
            if (self.path / name).exists():
                raise LoricaError(
                    Code.RUN_FOLDER_EXISTS,
                    f"{self.path} holds the results of a run: there is a {name}.",
                )
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / PLAN, to_toml(plan))

    def plan(self) -> RunPlan:
        """The plan of the run in this folder.

        Raises:
            LoricaError: LOR-604 when there is none.
        """
        if not (self.path / PLAN).is_file():
            raise LoricaError(Code.RUN_NOT_RESUMABLE, f"{self.path} has no {PLAN}.")
        return load_plan(self.path / PLAN)

    def save(
        self, run: str, plan: RunPlan, record: RoundRecord, state: State, memory: State
    ) -> None:
        """Write a whole round: its record, then the checkpoint."""
        append_line(self.path / ROUNDS, json.dumps(record.to_dict()))
        metadata = {"run": run, "round": str(record.round), "fingerprint": plan.fingerprint}
        metadata |= {"data": self.data} if self.data else {}
        held = state | {f"{_MEMORY}{name}": tensor for name, tensor in memory.items()}
        blob = safetensors.torch.save(held, metadata=metadata)
        write_atomically(self.path / CHECKPOINT, blob)

    def checkpoint(self, plan: RunPlan) -> Checkpoint | None:
        """The last whole round, None before the first; drops records of later rounds.

        Raises:
            LoricaError: LOR-604 damaged checkpoint, LOR-104 checkpoint of another plan, LOR-333
                of other data.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            self._keep_rounds(-1)
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                metadata = file.metadata()
                held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            memory = {
                name.removeprefix(_MEMORY): held.pop(name)
                for name in list(held)
                if name.startswith(_MEMORY)
            }
            found = Checkpoint(metadata["run"], int(metadata["round"]), held, memory)
            fingerprint = metadata["fingerprint"]
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise LoricaError(Code.RUN_NOT_RESUMABLE, f"{path} is damaged: {error}.") from error
        if fingerprint != plan.fingerprint:
            raise LoricaError(Code.PLAN_MISMATCH, f"{path} belongs to another plan than {PLAN}.")
        data = metadata.get("data", "")
        if data and self.data and data != self.data and not self.data_may_change:
            raise LoricaError(
                Code.DATA_CHANGED,
                f"{path} is of round {found.round} of a run on other data than those of the plan "
                "now.",
                mend="Bring the old data back, or, if the change is meant, add --changed-data.",
            )
        self._keep_rounds(found.round)
        return found

    def begun_sum(self, round: int, kind: str) -> dict[str, Any] | None:
        """What was noted of a round's sealed sum when it was begun; None when it was not."""
        path = self.path / SUM
        if not path.exists():
            return None
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise LoricaError(Code.RUN_NOT_RESUMABLE, f"{path} is damaged: {error}.") from error
        return found if (found["round"], found["kind"]) == (round, kind) else None

    def note_sum(self, round: int, kind: str, content: dict[str, Any]) -> None:
        """Note, durably, who is in a round's sealed sum: before anybody is asked for more."""
        note = {"round": round, "kind": kind, **content}
        write_atomically(self.path / SUM, json.dumps(note))

    def rounds(self) -> list[RoundRecord]:
        """All records written so far, in order; round 0 is the start's evaluation."""
        path = self.path / ROUNDS
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines()
        return [RoundRecord.from_dict(json.loads(line)) for line in lines]

    def results(self) -> CardResults:
        """The newest figures of the result's quality, for its model card."""
        records = self.rounds()
        measured = [record.metrics for record in records if record.metrics]
        at_sites = [found.site_metrics for found in measured_result(records) if found.site_metrics]
        names = {site.site for record in records for site in record.sites if site.status == "ok"}
        return CardResults(
            measured[-1] if measured else {},
            at_sites[-1] if at_sites else {},
            len(names),
            records[-1].kept_round if records else None,
            {record.round: record.judged for record in records if record.judged is not None},
            records[0].headline if records else "",
            records[0].score if records and records[0].round == 0 else None,
        )

    def _keep_rounds(self, last: int) -> None:
        path = self.path / ROUNDS
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                number = int(json.loads(line)["round"])
            except (ValueError, KeyError, TypeError):
                continue  # half a line, from a crash while appending
            if number <= last:
                kept.append(f"{line}\n")
        write_atomically(path, "".join(kept))
