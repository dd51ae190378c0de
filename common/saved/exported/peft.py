"""An export in peft's format: what a run leaves, tried with plain peft, to be passed on."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from lorica.common.errors import Code, LoricaError
from lorica.common.plan.methods import METHODS
from lorica.common.saved.exported.agreement import (
    Agreement,
    compare,
    outputs_of,
    require_agreement,
)
from lorica.common.saved.exported.fold import fold
from lorica.common.saved.exported.folded import adapted_model, head_model
from lorica.common.saved.exported.samples import sample_inputs
from lorica.common.saved.exported.written import new_folder, require_new
from lorica.common.saved.folder import load_adapter

_FILES = (
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "head.safetensors",
    "projection.safetensors",
    "lorica.json",
)


@dataclass(frozen=True)
class Copied:
    """A peft folder."""

    folder: Path
    base: str
    """Where its config says that the backbone is."""
    agreement: Agreement


def export_peft(adapter: Path, out: Path, backbone_source: str = "") -> Copied:
    """Copy an adapter's files once plain peft on the plain backbone computes what Lorica does.

    Raises:
        LoricaError: LOR-205, LOR-206, LOR-20x as of a merged export; LOR-209 peft computes
            something else, LOR-210 an adapter that is no LoRA, or of which each site keeps a part;
            LOR-601 to LOR-603.
    """
    import peft

    saved = load_adapter(adapter)
    require_new(out)
    if saved.plan.adapter.kind != "lora":
        raise LoricaError(
            Code.EXPORT_FORM, f'The adapter is of kind "{saved.plan.adapter.kind}", not LoRA.'
        )
    if METHODS[saved.plan.aggregation.method].personal:
        raise LoricaError(
            Code.EXPORT_FORM,
            f"With {saved.plan.aggregation.method} every site keeps a part of its adapter.",
            mend="Export the folder that lorica site adapter writes at a site.",
        )
    backbone = saved.backbone(backbone_source)
    task, adapted = adapted_model(saved, backbone)
    inputs = sample_inputs(task, backbone)
    wanted = outputs_of(task, adapted, inputs)
    with new_folder(out) as new:
        for name in _FILES:
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, new / name)
        folding = fold(saved, backbone)
        plain_task, plain = head_model(saved, folding, folding.rounded)
        base = peft.PeftConfig.from_pretrained(str(new)).base_model_name_or_path or ""
        peft.PeftModel.from_pretrained(plain.encoder, str(new)).eval()  # in place
        found = outputs_of(plain_task, plain, inputs, together=4)
        agreement = require_agreement(compare(wanted, found))
    return Copied(out, base, agreement)
