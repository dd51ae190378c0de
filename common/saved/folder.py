"""A trained adapter as a folder that plain peft and transformers can load.

``adapter_model.safetensors`` and ``adapter_config.json`` are peft's own format (LoRA on the
encoder); ``head.safetensors`` holds the task's head, ``projection.safetensors`` what the backbone's
own modules make of pooled states (where it has such), ``lorica.json`` what is needed to use it,
``README.md`` is its model card (:mod:`lorica.common.saved.card`). Kind "head" has no peft files;
kind "bitfit" has ``biases.safetensors`` instead, by the backbone's own names. Residual weights
(methods "fedex" and "flora") are there as LoRA factors of a higher rank
(:func:`lorica.common.adapter.residuals.widened`), so that peft's own format holds the whole
adapter.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch

from lorica.common.adapter.lora import lora_config
from lorica.common.adapter.residuals import narrowed, widened
from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone, backbone_of
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors
from lorica.common.plan import RunPlan
from lorica.common.plan.io import from_canonical
from lorica.common.plan.methods import METHODS
from lorica.common.saved.card import CardResults, model_card
from lorica.common.tasks import task_of
from lorica.common.version import __version__

FORMAT = 1
SEEDED = "seeded"
"""``lorica.json``'s "noise" of a simulation whose noise follows from its plan."""
EMBEDDED_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
EMBEDDED_REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"

_DAMAGE = (OSError, ValueError, KeyError, TypeError, RecursionError, safetensors.SafetensorError)


@dataclass(frozen=True)
class SavedAdapter:
    """An adapter read from a folder."""

    state: State
    plan: RunPlan
    backbone_sha256: str
    backbone_folder: str = ""
    """Where the backbone was on the machine that wrote the adapter; "" when it is not a folder of
    somebody's own but the packaged model or one of the hub."""
    seeded: bool = False
    """Whether its noise follows from the plan's seed, so that it has no privacy."""

    def backbone(self, given: str = "") -> Backbone:
        """The adapter's backbone, and no other.

        Args:
            given: where it is on this machine, if not where it was.

        Raises:
            LoricaError: LOR-201 it is not where it was, LOR-205 it is another, LOR-20x it cannot be
                loaded.
        """
        source = given or self.backbone_folder
        # What was a folder is never asked of the hub, where anybody may own a model of that name.
        if not given and self.backbone_folder and not Path(self.backbone_folder).is_dir():
            raise LoricaError(
                Code.BACKBONE_NOT_FOUND,
                f"The adapter's backbone was the folder {self.backbone_folder}, which is not on "
                "this machine.",
                mend="Say where it is with --backbone FOLDER; its weights have SHA-256 "
                f"{self.backbone_sha256}.",
            )
        changes = {"sha256": ""} | ({"source": source} if source else {})
        plan = self.plan.replace(backbone=changes)
        found = backbone_of(plan)
        if found.sha256 != self.backbone_sha256:
            raise LoricaError(
                Code.ADAPTER_MISMATCH,
                f"The adapter was trained on a backbone with SHA-256 {self.backbone_sha256}, but "
                f"'{plan.backbone.source}' has {found.sha256}.",
                mend="Give the adapter's own backbone with --backbone.",
            )
        return found


def save_adapter(
    folder: Path,
    state: State,
    plan: RunPlan,
    backbone: Backbone,
    results: CardResults | None = None,
) -> None:
    """Write an adapter folder, whole or not at all; replaces one that was there.

    Everything is prepared in a hidden folder beside it. A process that is killed in the instant
    between moving the old folder away and the new one in leaves both there, whole.

    Raises:
        LoricaError: LOR-601 disk full, LOR-602 refused by the system.
    """
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        new, old = temporary / "new", temporary / "old"
        try:
            new.mkdir()
            _write(new, state, plan, backbone, results or CardResults())
            if folder.is_dir():
                folder.replace(old)
            new.replace(folder)
        finally:
            if old.exists() and not folder.exists():
                old.replace(folder)
            shutil.rmtree(temporary, ignore_errors=True)


def load_adapter(folder: Path) -> SavedAdapter:
    """Read an adapter folder.

    Raises:
        LoricaError: LOR-206 when a file is missing or damaged, or from a newer format.
    """
    try:
        about = json.loads((folder / "lorica.json").read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise LoricaError(
                Code.ADAPTER_UNREADABLE, f"{folder} has format {about['format']}, not {FORMAT}."
            )
        plan = _plan(folder, about["plan"])
        state = safetensors.torch.load((folder / "head.safetensors").read_bytes())
        if plan.adapter.kind == "lora":
            lora = safetensors.torch.load((folder / "adapter_model.safetensors").read_bytes())
            wide = METHODS[plan.aggregation.method].residual
            state |= narrowed(lora, plan.adapter) if wide else lora
        if plan.adapter.kind == "bitfit":
            state |= safetensors.torch.load((folder / "biases.safetensors").read_bytes())
        where = str(about["backbone"].get("folder", ""))
        seeded = about.get("noise") == SEEDED
        return SavedAdapter(state, plan, about["backbone"]["sha256"], where, seeded)
    except FileNotFoundError as error:
        raise LoricaError(
            Code.ADAPTER_UNREADABLE, f"{folder} is no adapter: it lacks {error.filename}."
        ) from None
    except _DAMAGE as error:
        raise LoricaError(Code.ADAPTER_UNREADABLE, f"{folder} is damaged: {error}.") from error


def _plan(folder: Path, content: Any) -> RunPlan:
    try:
        return from_canonical(json.dumps(content))
    except LoricaError as error:
        raise LoricaError(
            Code.ADAPTER_UNREADABLE,
            f"The plan in {folder} is damaged or of another version of Lorica: {error.detail}",
        ) from error


def _write(
    folder: Path, state: State, plan: RunPlan, backbone: Backbone, results: CardResults
) -> None:
    head = {name: tensor for name, tensor in state.items() if name.startswith("head.")}
    lora = {name: tensor for name, tensor in state.items() if name not in head}
    source, revision = plan.backbone.source, plan.backbone.revision
    if source == "embedded":
        source, revision = EMBEDDED_HUB_ID, EMBEDDED_REVISION
    own = str(backbone.folder.resolve()) if backbone.origin == "folder" else ""
    source = own or source
    # Bytes, not save_file, whose errors do not say that the disk is full.
    (folder / "head.safetensors").write_bytes(safetensors.torch.save(head))
    if backbone.readout is None and backbone.pooling.tensors:
        projection = safetensors.torch.save(backbone.pooling.tensors)
        (folder / "projection.safetensors").write_bytes(projection)
    if plan.adapter.kind == "bitfit":
        (folder / "biases.safetensors").write_bytes(safetensors.torch.save(lora))
    elif lora:
        adapter = plan.filled_adapter
        if METHODS[plan.aggregation.method].residual:
            lora, adapter = widened(lora, adapter)
        config = lora_config(adapter, backbone.model)
        config.base_model_name_or_path = source
        config.revision = revision or None
        config.inference_mode = True
        config.save_pretrained(folder)
        (folder / "adapter_model.safetensors").write_bytes(safetensors.torch.save(lora))
    about: dict[str, Any] = {
        "format": FORMAT,
        "lorica": __version__,
        "task": plan.task.kind,
        **task_of(plan).about(backbone),
        "backbone": {
            "source": source,
            "folder": own,
            "part": backbone.part,
            "revision": revision,
            "sha256": backbone.sha256,
            "settings_sha256": backbone.settings_sha256,
            "quantize": backbone.quantize,
        },
        "plan": json.loads(plan.canonical()),
        "plan_fingerprint": plan.fingerprint,
        **({"noise": SEEDED} if results.seeded else {}),
    }
    (folder / "lorica.json").write_text(json.dumps(about, indent=2, ensure_ascii=False), "utf-8")
    card = model_card(plan, backbone, source, revision, results)
    (folder / "README.md").write_text(card, "utf-8")
