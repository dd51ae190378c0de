"""An export for onnxruntime: one graph from tokens, pixels and table to the head's outputs."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from lorica.common.backbone.loading import Backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.saved.card import line_that_pads
from lorica.common.saved.exported.agreement import (
    Agreement,
    arguments,
    compare,
    outputs_by,
    outputs_of,
    require_agreement,
)
from lorica.common.saved.exported.fold import fold
from lorica.common.saved.exported.folded import adapted_model, head_model
from lorica.common.saved.exported.graph import (
    computing,
    input_names,
    quantise_graph,
    require_packages,
    write_graph,
)
from lorica.common.saved.exported.samples import models_language, sample_inputs
from lorica.common.saved.exported.written import (
    ABOUT,
    copy_settings,
    new_folder,
    privacy_sentence,
    require_new,
    source_shown,
    write_about,
)
from lorica.common.saved.folder import SavedAdapter, load_adapter
from lorica.common.tasks.base import Task
from lorica.common.tasks.fusion.usage import lines_to_numbers
from lorica.common.tasks.usage import lines_to_batch

GRAPH = "model.onnx"

Numbers = Literal["float32", "int8"]


@dataclass(frozen=True)
class Written:
    """An ONNX folder."""

    folder: Path
    size_bytes: int
    agreement: Agreement
    """Of the graph in float32."""
    rounded: Agreement | None
    """Of the graph in int8, where that is what was written."""


def export_onnx(
    adapter: Path, out: Path, backbone_source: str = "", numbers: Numbers = "float32"
) -> Written:
    """Write backbone, adapter and head as one graph, with tokenizer (or image processor), a
    ``task.json`` and a README whose code needs no torch.

    Args:
        adapter: an adapter folder, as a run leaves it.
        out: the folder to write; it must not exist.
        backbone_source: where the backbone is on this machine, if not where the plan says.
        numbers: what the weights of matrix products are kept in. How much int8 changes is
            measured, not bounded.

    Raises:
        LoricaError: LOR-205, LOR-206, LOR-20x as of a merged export; LOR-207 a package is missing,
            LOR-209 the graph computes something else, LOR-210 a task or architecture that is no
            such graph, LOR-601 to LOR-603.
    """
    require_packages()
    saved = load_adapter(adapter)
    require_new(out)
    if models_language(saved.plan.task.kind):
        raise LoricaError(
            Code.EXPORT_FORM,
            f"The adapter's task is {saved.plan.task.kind}, whose answers are made token by token.",
            mend="Export it with --format merged; `optimum-cli export onnx` makes graphs of that.",
        )
    backbone = saved.backbone(backbone_source)
    adapted_task, adapted = adapted_model(saved, backbone)
    inputs = sample_inputs(adapted_task, backbone)
    wanted = outputs_of(adapted_task, adapted, inputs)
    folding = fold(saved, backbone)
    task, model = head_model(saved, folding, {**folding.rounded, **folding.changed})
    with new_folder(out) as new, tempfile.TemporaryDirectory(dir=new.parent) as scratch:
        first = new if numbers == "float32" else Path(scratch)
        example = arguments(inputs, np.arange(2))
        write_graph(task, model, example, inputs.limit, first / GRAPH)
        found = outputs_by(computing(task, first / GRAPH), model, inputs, together=len(inputs))
        agreement, rounded = require_agreement(compare(wanted, found)), None
        if numbers == "int8":
            quantise_graph(first / GRAPH, new / GRAPH)
            less = outputs_by(computing(task, new / GRAPH), model, inputs, together=len(inputs))
            rounded = compare(wanted, less)
        copy_settings(folding.backbone, new)
        write_about(new, saved, folding.backbone)
        readme = _readme(saved, task, folding.backbone, rounded or agreement, numbers)
        (new / "README.md").write_text(readme, encoding="utf-8")
        size = sum(file.stat().st_size for file in new.glob(f"{GRAPH}*"))
    return Written(out, size, agreement, rounded)


def _readme(
    saved: SavedAdapter, task: Task, backbone: Backbone, agreement: Agreement, numbers: Numbers
) -> str:
    plan, images = saved.plan, task.traits.images
    reader, variable = (
        ("AutoImageProcessor", "processor") if images else ("AutoTokenizer", "tokenizer")
    )
    return f"""# {task.subject.capitalize()}, as an ONNX graph

`{source_shown(saved)}` with the adapter and the head of a Lorica run for {plan.task.kind}, in
`{GRAPH}`.

- **Numbers:** {numbers}; {agreement.sentence}
- **Differential privacy of the adapter:** {privacy_sentence(saved)}
- **Plan fingerprint:** `{plan.fingerprint}`

Inputs: {", ".join(f"`{name}`" for name in input_names(task))}. Output: `outputs`, what the head
gives before any softmax; `{ABOUT}` says what it stands for.

```python
import json
from pathlib import Path

import numpy as np
import onnxruntime
from transformers import {reader}  # loads without torch

about = json.loads(Path("{ABOUT}").read_text(encoding="utf-8"))
{variable} = {reader}.from_pretrained(".")
{line_that_pads(backbone)}\
session = onnxruntime.InferenceSession("{GRAPH}", providers=["CPUExecutionProvider"])
{_batch(plan, task, backbone)}{_table(plan, task)}\
outputs = session.run(["outputs"], given)[0]
{task.answer}
```
"""


def _batch(plan: RunPlan, task: Task, backbone: Backbone) -> str:
    """From a text or a picture to what the session is given."""
    if task.traits.images:
        return """from PIL import Image

picture = Image.open("picture.png").convert("RGB")
batch = processor([picture], return_tensors="np")
given = {"pixel_values": np.asarray(batch["pixel_values"], np.float32)}
"""
    prompt = "" if task.kind == "token-classification" else backbone.pooling.prompt
    lines = lines_to_batch(backbone, plan.training.keep, prompt=prompt)
    return lines.replace('return_tensors="pt"', 'return_tensors="np"') + (
        'given = {name: np.asarray(batch[name], np.int64) for name in ("input_ids", '
        '"attention_mask")}\n'
    )


def _table(plan: RunPlan, task: Task) -> str:
    if not task.traits.table:
        return ""
    return (
        f"{lines_to_numbers(plan.table)}\n"
        'given["table"] = np.array([numbers], np.float32) / np.float32(count**0.5)\n'
    )
