"""Merge an adapter into its backbone: the result of one run is what the next one starts from.

Formal guarantee:
    The merged weights, W + s·(B·A + R) or the adapter's biases in the place of the backbone's, are
    a function of the public backbone and of the adapter, which has the (ε, δ) of its run at every
    site: post-processing, at no further cost. A run that starts from them adds its own (ε, δ) for
    the records that both runs use.

Of a run whose backbone was kept in fewer bits (backbone.quantize), W is what the codes stand for,
in all linear layers: the folder computes what the run trained, in float32. It is not the original
model with the adapter added, whose weights the adapter never saw.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from lorica.common.backbone.files import read_weights, settings_files, weights_sha256
from lorica.common.backbone.loading import Backbone, backbone_of
from lorica.common.backbone.quantised import QuantisedLinear
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors
from lorica.common.plan.methods import METHODS
from lorica.common.plan.tensors import Part, factor_pairs, part_of, residual_name
from lorica.common.saved.folder import SavedAdapter, load_adapter

_PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Merged:
    """A backbone that an adapter was merged into."""

    folder: Path
    sha256: str
    """SHA-256 of its weights, for backbone.sha256 and for the sites' policies."""
    changed: int
    """Number of matrices, or of biases, that the adapter changed."""
    rounded: int
    """Number of matrices with rounded weights, because the run's backbone had them."""


def export_merged(adapter: Path, out: Path, backbone_source: str = "") -> Merged:
    """Write the adapter's backbone, with the adapter merged into it, as a folder of its own.

    The task's head is not part of a backbone: it lies beside it in ``head.safetensors``. Weights
    that the adapter does not change, config and tokenizer are those of the backbone, as the run had
    them: rounded, where its plan asks for that, and written in float32. Of a run that trained the
    head alone, that is all of them.

    Args:
        adapter: an adapter folder, as a run leaves it.
        out: the folder to write; it must not exist.
        backbone_source: where the backbone is on this machine, if not where the plan says.

    Raises:
        LoricaError: LOR-205 another backbone than the adapter's, or an adapter that changes nothing
            in it and has no head, LOR-206 no adapter, LOR-603 ``out`` exists, LOR-20x the backbone
            cannot be loaded, LOR-601, LOR-602.
    """
    saved = load_adapter(adapter)
    if out.exists():
        raise LoricaError(
            Code.RUN_FOLDER_EXISTS, f"{out} exists already.", mend="Name a new folder."
        )
    backbone = saved.backbone(backbone_source)
    backbone, rounded = _plain(saved, backbone)
    own = backbone.model.state_dict() | rounded
    merged = _merged(saved, backbone, own)
    head = {name: tensor for name, tensor in saved.state.items() if name.startswith("head.")}
    if not merged and (not head or METHODS[saved.plan.aggregation.method].personal):
        raise _nothing(adapter, saved)
    weights = read_weights(backbone.folder)
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            _replace(weights, own | merged, list(merged), backbone, temporary / "plain")
            new = temporary / "new"
            new.mkdir()
            for file in settings_files(backbone.folder):
                target = new / file.relative_to(backbone.folder)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
            blob = safetensors.torch.save(weights, metadata={"format": "pt"})
            (new / "model.safetensors").write_bytes(blob)
            found = weights_sha256(new)
            if head:
                (new / "head.safetensors").write_bytes(safetensors.torch.save(head))
            (new / "README.md").write_text(_readme(saved, backbone, found), encoding="utf-8")
            new.replace(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Merged(out, found, len(merged), len(rounded))


def _nothing(adapter: Path, saved: SavedAdapter) -> LoricaError:
    method = saved.plan.aggregation.method
    if METHODS[method].personal:
        why = f"with {method} every site keeps what would change it."
        mend = "Export the folder that lorica site adapter writes at a site."
    else:
        why = "its factors are as at the start, and its task has no head."
        mend = "Export the adapter of a run that trained something."
    return LoricaError(
        Code.ADAPTER_MISMATCH, f"{adapter} changes nothing in the backbone: {why}", mend=mend
    )


def _plain(saved: SavedAdapter, backbone: Backbone) -> tuple[Backbone, dict[str, torch.Tensor]]:
    """The backbone in float32, and what its rounded weights are, by their names in the model."""
    if backbone.quantize == "none":
        return backbone, {}
    source = {"source": str(backbone.folder), "sha256": "", "quantize": "none"}
    plain = backbone_of(saved.plan.replace(backbone=source))
    rounded = {}
    for name, module in backbone.model.named_modules():
        if isinstance(module, QuantisedLinear):
            weight = module.dequantised()
            # GPT-2's Conv1D keeps W as (in, out).
            linear = isinstance(plain.model.get_submodule(name), torch.nn.Linear)
            rounded[f"{name}.weight"] = weight if linear else weight.T.contiguous()
    return plain, rounded


@torch.no_grad()
def _merged(
    saved: SavedAdapter, backbone: Backbone, own: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The encoder's tensors that the adapter gives another value than ``own``, by their names in
    the model."""
    adapter = saved.plan.adapter
    found = {name: bias for name, bias in saved.state.items() if part_of(name) is Part.BIAS}
    for path, (name_a, name_b) in factor_pairs(saved.state).items():
        module = path.removeprefix(_PEFT_PREFIX)
        change = saved.state[name_b].double() @ saved.state[name_a].double()
        residual = saved.state.get(residual_name(path))
        if residual is not None:
            change = change + residual.double()
        if not isinstance(backbone.model.get_submodule(module), torch.nn.Linear):
            change = change.T  # GPT-2's Conv1D keeps W as (in, out)
        weight = own[f"{module}.weight"].double()
        found[f"{module}.weight"] = (weight + adapter.alpha / adapter.rank * change).float()
    return {name: tensor for name, tensor in found.items() if not torch.equal(tensor, own[name])}


def _replace(
    weights: dict[str, torch.Tensor],
    state: dict[str, torch.Tensor],
    needed: list[str],
    backbone: Backbone,
    scratch: Path,
) -> None:
    """Put the model's ``state`` in the place of what its files hold for it, in place.

    transformers may name and shape tensors in files otherwise than in the model; its own
    save_pretrained tells how, in the folder ``scratch``.
    """
    backbone.model.save_pretrained(scratch, state_dict=state)
    for name, tensor in read_weights(scratch).items():
        keys = _keys(weights, f"{backbone.part}.{name}" if backbone.part else name)
        if not keys and name not in needed:
            continue  # a pooler that the files lack
        if len(keys) != 1:
            raise LoricaError(
                Code.BACKBONE_UNSUPPORTED,
                f"The backbone's files name {len(keys)} tensors {name}; one is needed.",
            )
        key = keys[0]
        if not torch.equal(weights[key].to(tensor.dtype), tensor):
            weights[key] = tensor.clone()


def _keys(weights: dict[str, torch.Tensor], name: str) -> list[str]:
    """What a tensor may be called in the files, where whole models put a prefix before it."""
    if name in weights:
        return [name]
    return [key for key in weights if key.endswith(f".{name}")]


def _readme(saved: SavedAdapter, backbone: Backbone, sha256: str) -> str:
    plan = saved.plan
    budget = (
        f"(ε = {plan.privacy.epsilon:g}, δ = {plan.privacy.delta:g}) per {plan.privacy.unit}, "
        "enforced by every site"
        if plan.privacy.private
        else "none (ε = ∞)"
    )
    number = plan.backbone.quantize
    rounding = (
        f" The run kept the backbone's linear weights in {number}: they are here as it had them, "
        "rounded, in float32."
        if number != "none"
        else ""
    )
    return f"""---
base_model: {json.dumps(plan.backbone.source)}
library_name: transformers
tags: [lorica, federated-learning, differential-privacy]
---
# A backbone with a merged adapter

`{plan.backbone.source}` (weights {backbone.sha256}) with the adapter of a Lorica run for
{plan.task.kind} merged into it. Differential privacy of the adapter: {budget}. Plan fingerprint:
`{plan.fingerprint}`.{rounding}

Weights of this folder: SHA-256 `{sha256}`.
"""
