"""Merge an adapter into its backbone: the result of one run is what the next one starts from.

Formal guarantee:
    The merged weights W + s·(B·A + R) are a function of the public backbone and of the adapter,
    which has the (ε, δ) of its run at every site: post-processing, at no further cost. A run
    that starts from them adds its own (ε, δ) for the records that both runs use.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from lorica.common.adapter_folder import SavedAdapter, load_adapter
from lorica.common.backbones import (
    Backbone,
    load_backbone,
    read_weights,
    settings_files,
    weights_sha256,
)
from lorica.common.errors import Code, LoricaError
from lorica.common.methods import factor_pairs, residual_name
from lorica.common.storage import storage_errors

_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Merged:
    """A backbone that an adapter was merged into."""

    folder: Path
    sha256: str
    """SHA-256 of its weights, for backbone.sha256 and for the sites' policies."""
    changed: int
    """Number of matrices that the adapter changed."""


def export_merged(adapter: Path, out: Path, backbone_source: str = "") -> Merged:
    """Write the adapter's backbone, with the adapter merged into it, as a folder of its own.

    The task's head is not part of a backbone and is left out. Weights that the adapter does not
    change, config and tokenizer are those of the backbone.

    Args:
        adapter: an adapter folder, as a run leaves it.
        out: the folder to write; it must not exist.
        backbone_source: where the backbone is on this machine, if not where the plan says.

    Raises:
        LoricaError: LOR-205 another backbone than the adapter's, LOR-206 no adapter, LOR-603
            ``out`` exists, LOR-20x the backbone cannot be loaded, LOR-601, LOR-602.
    """
    saved = load_adapter(adapter)
    if saved.plan.adapter.kind != "lora":
        raise LoricaError(
            Code.ADAPTER_MISMATCH,
            f"{adapter} holds a head alone: there is nothing to merge into the backbone.",
        )
    if out.exists():
        raise LoricaError(
            Code.RUN_FOLDER_EXISTS, f"{out} exists already.", mend="Name a new folder."
        )
    source = {"source": backbone_source} if backbone_source else {}
    backbone = load_backbone(saved.plan.replace(backbone={"sha256": "", **source}).backbone)
    if backbone.sha256 != saved.backbone_sha256:
        raise LoricaError(
            Code.ADAPTER_MISMATCH,
            f"The adapter was trained on a backbone with SHA-256 {saved.backbone_sha256}, the one "
            f"in {backbone.folder} has {backbone.sha256}.",
            mend="Give the adapter's own backbone with --backbone.",
        )
    weights = read_weights(backbone.folder)
    changed = _merge(weights, saved, backbone)
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            new = temporary / "new"
            new.mkdir()
            for file in settings_files(backbone.folder):
                target = new / file.relative_to(backbone.folder)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
            blob = safetensors.torch.save(weights, metadata={"format": "pt"})
            (new / "model.safetensors").write_bytes(blob)
            found = weights_sha256(new)
            (new / "README.md").write_text(_readme(saved, backbone, found), encoding="utf-8")
            new.replace(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Merged(out, found, changed)


@torch.no_grad()
def _merge(weights: dict[str, torch.Tensor], saved: SavedAdapter, backbone: Backbone) -> int:
    """Add the adapter to the tensors of the backbone's files, in place; how many changed."""
    adapter = saved.plan.adapter
    scale = adapter.alpha / adapter.rank
    pairs = factor_pairs(saved.state)
    for path, (name_a, name_b) in pairs.items():
        module = path.removeprefix(_PEFT_PREFIX)
        key = _key(weights, f"{module}.weight")
        change = saved.state[name_b].double() @ saved.state[name_a].double()
        residual = saved.state.get(residual_name(path))
        if residual is not None:
            change = change + residual.double()
        if not isinstance(backbone.model.get_submodule(module), torch.nn.Linear):
            change = change.T  # GPT-2's Conv1D keeps W as (in, out)
        weights[key] = (weights[key].double() + scale * change).float()
    return len(pairs)


def _key(weights: dict[str, torch.Tensor], name: str) -> str:
    """The name that a module's weight has in the files, where models put prefixes before it."""
    keys = [key for key in weights if key == name or key.endswith(f".{name}")]
    if len(keys) != 1:
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"The backbone's files name {len(keys)} tensors {name}; one is needed.",
        )
    return keys[0]


def _readme(saved: SavedAdapter, backbone: Backbone, sha256: str) -> str:
    plan = saved.plan
    budget = (
        f"(ε = {plan.privacy.epsilon:g}, δ = {plan.privacy.delta:g}) per {plan.privacy.unit}, "
        "enforced by every site"
        if plan.privacy.private
        else "none (ε = ∞)"
    )
    return f"""---
base_model: {json.dumps(plan.backbone.source)}
library_name: transformers
tags: [lorica, federated-learning, differential-privacy]
---
# A backbone with a merged adapter

`{plan.backbone.source}` (weights {backbone.sha256}) with the adapter of a Lorica run for
{plan.task.kind} merged into it. Differential privacy of the adapter: {budget}. Plan fingerprint:
`{plan.fingerprint}`.

Weights of this folder: SHA-256 `{sha256}`.
"""
