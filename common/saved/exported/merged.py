"""A merged export: the backbone with the adapter in its weights, and the head, in one folder.

It is what the next run starts from (a backbone like any other, for Lorica), and what plain
transformers load: the encoder by ``AutoModel``, the head by the lines of its README, because
transformers' own heads read states that are not scaled to unit length.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from lorica.common.backbone.files import read_weights, weights_sha256
from lorica.common.backbone.loading import Backbone, load_backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.methods import METHODS
from lorica.common.plan.subject import BackbonePlan
from lorica.common.saved.card import line_that_pads, line_to_part
from lorica.common.saved.exported.agreement import (
    Agreement,
    compare,
    outputs_of,
    require_agreement,
)
from lorica.common.saved.exported.fold import fold
from lorica.common.saved.exported.folded import adapted_model, head_task, on_backbone
from lorica.common.saved.exported.samples import sample_inputs
from lorica.common.saved.exported.written import (
    ABOUT,
    copy_settings,
    has_privacy,
    new_folder,
    privacy_sentence,
    require_new,
    source_shown,
    write_about,
)
from lorica.common.saved.folder import SavedAdapter, load_adapter


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
    agreement: Agreement


def export_merged(adapter: Path, out: Path, backbone_source: str = "") -> Merged:
    """Write the adapter's backbone, with the adapter merged into it, as a folder of its own.

    The task's head is not part of a backbone: it lies beside it in ``head.safetensors``, with
    ``task.json``, which says what its outputs are. Weights that the adapter does not change, config
    and tokenizer are those of the backbone, as the run had them: rounded, where its plan asks for
    that, and written in float32. Of a run that trained the head alone, that is all of them. The
    folder is loaded and compared with the adapter before it gets its name.

    Args:
        adapter: an adapter folder, as a run leaves it.
        out: the folder to write; it must not exist.
        backbone_source: where the backbone is on this machine, if not where the plan says.

    Raises:
        LoricaError: LOR-205 another backbone than the adapter's, or an adapter that changes nothing
            in it and has no head, LOR-206 no adapter, LOR-209 the folder computes something else,
            LOR-603 ``out`` exists, LOR-20x the backbone cannot be loaded, LOR-601, LOR-602.
    """
    saved = load_adapter(adapter)
    require_new(out)
    backbone = saved.backbone(backbone_source)
    folding = fold(saved, backbone)
    plain, merged = folding.backbone, folding.changed
    head = {name: tensor for name, tensor in saved.state.items() if name.startswith("head.")}
    if not merged and (not head or METHODS[saved.plan.aggregation.method].personal):
        raise _nothing(adapter, saved)
    weights = read_weights(plain.folder)
    with new_folder(out) as new, tempfile.TemporaryDirectory(dir=new.parent) as scratch:
        _replace(weights, folding.own | merged, list(merged), plain, Path(scratch) / "plain")
        copy_settings(plain, new)
        blob = safetensors.torch.save(weights, metadata={"format": "pt"})
        (new / "model.safetensors").write_bytes(blob)
        del weights, blob
        found = weights_sha256(new)
        if head:
            (new / "head.safetensors").write_bytes(safetensors.torch.save(head))
            if plain.readout is None and plain.pooling.tensors:
                projection = safetensors.torch.save(plain.pooling.tensors)
                (new / "projection.safetensors").write_bytes(projection)
            write_about(new, saved, plain)
        (new / "README.md").write_text(_readme(saved, plain, found, bool(head)), encoding="utf-8")
        agreement = _checked(saved, backbone, new)
    return Merged(out, found, len(merged), len(folding.rounded), agreement)


def _checked(saved: SavedAdapter, backbone: Backbone, folder: Path) -> Agreement:
    """What the folder computes, loaded as anybody would, beside what the adapter does."""
    task, adapted = adapted_model(saved, backbone)
    inputs = sample_inputs(task, backbone)
    wanted = outputs_of(task, adapted, inputs)
    there = load_backbone(BackbonePlan(source=str(folder)), images=task.traits.images)
    plain, merged = on_backbone(saved, there)
    found = outputs_of(plain, merged, inputs, together=4)
    return require_agreement(compare(wanted, found))


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


def _readme(saved: SavedAdapter, backbone: Backbone, sha256: str, head: bool) -> str:
    plan, source = saved.plan, source_shown(saved)
    number = plan.backbone.quantize
    rounding = (
        f" The run kept the backbone's linear weights in {number}: they are here as it had them, "
        "rounded, in float32."
        if number != "none"
        else ""
    )
    how = _how(saved, backbone) if head else ""
    return f"""---
base_model: {json.dumps(source)}
library_name: transformers
tags: [lorica, federated-learning{", differential-privacy" * has_privacy(saved)}]
---
# A backbone with a merged adapter

`{source}` (weights {backbone.sha256}) with the adapter of a Lorica run for
{plan.task.kind} merged into it. Differential privacy of the adapter: {privacy_sentence(saved)}.
Plan fingerprint: `{plan.fingerprint}`.{rounding}

Weights of this folder: SHA-256 `{sha256}`.
{how}"""


def _how(saved: SavedAdapter, backbone: Backbone) -> str:
    task = head_task(saved.plan)
    images = task.traits.images
    reader, variable = (
        ("AutoImageProcessor", "processor") if images else ("AutoTokenizer", "tokenizer")
    )
    return f"""
## How to use it

With plain transformers, from this folder:

```python
import json, torch
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoModel, {reader}

about = json.loads(Path("{ABOUT}").read_text(encoding="utf-8"))
{variable} = {reader}.from_pretrained(".")
{line_that_pads(backbone)}\
model = AutoModel.from_pretrained(".", dtype=torch.float32).eval()
{line_to_part(backbone)}head = load_file("head.safetensors")
{task.usage(backbone)}```
"""
