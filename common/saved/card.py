"""The model card beside an adapter: a README in the Hugging Face hub's format.

YAML metadata first (base model, library, task, measured results as a model-index), then the
sections that the hub's template has: what it is, what it is for, how it was trained and under
which guarantee, how good it is, how to use it.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorica.common.backbone.loading import Backbone
from lorica.common.display.text import printable
from lorica.common.plan import RunPlan
from lorica.common.plan.lora import lora_sentence
from lorica.common.plan.stages import schedule
from lorica.common.plan.subject import SYNTHETIC_NOTES
from lorica.common.saved.trained import adapting_rounds, what_is_trained
from lorica.common.tasks import task_of
from lorica.common.tasks.fusion.usage import usual_row
from lorica.common.version import __version__


@dataclass(frozen=True)
class CardResults:
    """What is known of a finished run's quality."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """On the coordinator's test data."""
    site_metrics: Mapping[str, float] = field(default_factory=dict)
    """By the sites' own noised counts."""
    sites: int = 0
    """That took part; 0 when not known."""
    kept_round: int | None = None
    """The round after which the state was that the run ended with; None: the last."""
    judged: Mapping[int, float] = field(default_factory=dict)
    """Round -> what the judge made of the state after it, where LoRA was on trial."""
    headline: str = ""
    """The metric that decides what is better."""
    start: float | None = None
    """That metric before any round, on the coordinator's test data; None when not known."""
    seeded: bool = False
    """Whether the noise follows from the plan's seed, as in simulations: whoever has the plan can
    subtract it."""

    @property
    def gained(self) -> bool | None:
        """Whether training made it better than the untrained start; None when not known."""
        end = self.metrics.get(self.headline)
        return None if end is None or self.start is None else end > self.start


def model_card(
    plan: RunPlan, backbone: Backbone, source: str, revision: str, results: CardResults
) -> str:
    """The whole card.

    Args:
        plan: the run's.
        backbone: the model that the adapter belongs to.
        source: where others find it: a hub id or a path.
        revision: of the source on the hub; empty for its main branch.
        results: what was measured.
    """
    task = task_of(plan)
    sections = [
        f"# Adapter for {task.subject}",
        _details(plan, source, results),
        _use(plan, results),
        _training(plan, results),
        _evaluation(plan, results),
        _how(plan, backbone, source, revision),
    ]
    return f"---\n{_metadata(plan, source, results)}---\n" + "\n\n".join(sections) + "\n"


def _metadata(plan: RunPlan, source: str, results: CardResults) -> str:
    task = task_of(plan)
    lora = plan.adapter.kind == "lora"
    content: dict[str, Any] = {
        "base_model": source,
        "library_name": "peft" if lora else "transformers",  # what reads the folder
        "pipeline_tag": task.pipeline_tag,
        "tags": [
            "lorica",
            *([plan.adapter.kind] if adapting_rounds(plan, results.kept_round) else []),
            "federated-learning",
            *(["differential-privacy"] if plan.privacy.private and not results.seeded else []),
        ],
    }
    if lora:
        content["base_model_relation"] = "adapter"
    measured = _finite(results.metrics)
    if measured:
        content["metrics"] = [name for name in measured if name != "loss"]
        content["model-index"] = [
            {
                "name": f"lorica-{plan.fingerprint[:10]}",
                "results": [
                    {
                        "task": {"type": task.pipeline_tag},
                        "dataset": {"name": _data_name(plan), "type": "private"},
                        "metrics": [
                            {"type": name, "value": round(value, 6)}
                            for name, value in measured.items()
                        ],
                    }
                ],
            }
        ]
    # Every line is a key and JSON, which is YAML too: no value can break out of its line.
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in content.items())


def _details(plan: RunPlan, source: str, results: CardResults) -> str:
    part = what_is_trained(plan, results.kept_round)
    if plan.adapter.kind != "head" and not adapting_rounds(plan, results.kept_round):
        part += (
            f" (the {'LoRA factors' if plan.adapter.kind == 'lora' else 'biases'} change nothing)"
        )
    labels = ""
    if plan.task.labels:
        shown = ", ".join(f"`{printable(label)}`" for label in plan.task.labels[:20])
        more = len(plan.task.labels) - 20
        labels = f"\n- **Labels:** {shown}" + (f" and {more} more" if more > 0 else "")
    sites = f" at {results.sites} {'site' if results.sites == 1 else 'sites'}" * bool(results.sites)
    by = (
        f"Lorica {__version__}, federated{sites}, with {plan.aggregation.method} over\n"
        f"  {plan.rounds.count} rounds"
    )
    if results.kept_round == 0:
        by = f"nobody: the start of a run of Lorica {__version__}, from the labels' names alone"
    number = plan.backbone.quantize
    rounded = "" if number == "none" else f", its linear weights rounded to {number}"
    return f"""## Model details

- **What it is:** {part}, on the frozen backbone `{printable(source)}`{rounded}
- **Task:** {plan.task.kind}{labels}
- **Trained by:** {by}
- **Plan fingerprint:** `{plan.fingerprint}`"""


def _use(plan: RunPlan, results: CardResults) -> str:
    private = (
        "The guarantee holds for every "
        + ("record" if plan.privacy.unit == "record" else f"`{printable(plan.privacy.unit)}`")
        + " of every site separately; what several sites hold about one person adds up."
        if plan.privacy.private and not results.seeded
        else "It was trained **without privacy**: treat it as you treat the training data."
    )
    records = "images" if task_of(plan).traits.images else "texts"
    return f"""## Intended use and limits

Meant for {records} like those that the participating sites hold, and for the task above. It has
been measured on what is named under *Evaluation* and on nothing else: a site or a group that is
rare in the training data may be served worse. {private}"""


def _training(plan: RunPlan, results: CardResults) -> str:
    if results.kept_round == 0:
        return "## Training\n\nNone: no record was read for it, and it costs no ε."
    privacy = plan.privacy
    if privacy.private and results.seeded:
        guarantee = (
            f"none: the noise of this simulation was seeded, and whoever has its plan can subtract "
            f"it. Sites that draw it of their own would give (ε = {privacy.epsilon:g}, "
            f"δ = {privacy.delta:g})"
        )
    elif privacy.private:
        clip = f"clip norm {privacy.clip_norm:g}"
        guarantee = (
            f"(ε = {privacy.epsilon:g}, δ = {privacy.delta:g}) differential privacy per "
            f"{printable(privacy.unit)}, enforced by every site, with {clip}"
        )
        if plan.sealed:
            guarantee += (
                f", in sealed sums: with the noise of {plan.honest_sites} honest sites together. "
                "The coordinator saw no single site's update and could screen none: norms, "
                "agreement and robust rules are sealed"
            )
    else:
        guarantee = "none (ε = ∞)"
    stages = ", ".join(f"{rounds} of {stage.value}" for stage, rounds in schedule(plan))
    return f"""## Training

- **Data:** {_data_name(plan)}; it never left the sites
- **Differential privacy:** {guarantee}
- **Rounds:** {stages}
- **Mode:** {plan.training.mode}{_kept(plan, results)}"""


def _kept(plan: RunPlan, results: CardResults) -> str:
    """What was decided, tried and kept, as items of a list."""
    found = [lora_sentence(plan)]
    if results.judged:
        tried = ", ".join(f"{score:.4f} after round {n}" for n, score in results.judged.items())
        found.append(f"Judged: {tried}; kept the state after round {results.kept_round}.")
    return "".join(f"\n- **LoRA:** {sentence}" for sentence in found if sentence)


def _evaluation(plan: RunPlan, results: CardResults) -> str:
    rows = [
        f"| {name} | {value:.4f} | {where} |"
        for where, values in (
            ("the coordinator's test data", results.metrics),
            ("the sites' own held-out records, by noised counts", results.site_metrics),
        )
        for name, value in _finite(values).items()
    ]
    if not rows:
        return "## Evaluation\n\nNot measured: the coordinator held no test data."
    name, start = printable(results.headline), results.start
    if start is not None and math.isfinite(start):
        rows.append(f"| {name} before training | {start:.4f} | the coordinator's test data |")
    table = "## Evaluation\n\n| metric | value | on |\n| --- | --- | --- |\n" + "\n".join(rows)
    if results.gained is False:
        table += (
            f"\n\n**Training gained nothing:** by {name}, this adapter is no better than its "
            "untrained start, which costs no ε."
        )
    return table


def _how(plan: RunPlan, backbone: Backbone, source: str, revision: str) -> str:
    lora = plan.adapter.kind == "lora"
    wrap = 'model = PeftModel.from_pretrained(model, ".").eval()\n' if lora else ""
    if plan.adapter.kind == "bitfit":
        wrap = 'model.load_state_dict(load_file("biases.safetensors"), strict=False)\n'
    images = task_of(plan).traits.images
    reader = "AutoImageProcessor" if images else "AutoTokenizer"
    variable = "processor" if images else "tokenizer"
    example = "picture.png" if images else '"some text"'
    example += "".join(f" {_value_option(n, v)}" for n, v in usual_row(plan.table).items())
    return f"""## How to use it

`lorica predict --adapter . {example}` uses it. With plain transformers{
        " and peft" if lora else ""
    }:

```python
import json, torch
from pathlib import Path
{"from peft import PeftModel" if lora else ""}
from safetensors.torch import load_file
from transformers import AutoModel, {reader}

about = json.loads(Path("lorica.json").read_text(encoding="utf-8"))
source = {source!r}  # or a local folder with the same weights
revision = {revision or "main"!r}  # of the source on the Hugging Face hub
{variable} = {reader}.from_pretrained(source, revision=revision)
{line_that_pads(backbone)}\
model = AutoModel.from_pretrained(source, revision=revision, dtype=torch.float32).eval()
{line_to_part(backbone)}{_ROUNDING.get(plan.backbone.quantize, "")}{
        wrap
    }head = load_file("head.safetensors")
{task_of(plan).usage(backbone)}```"""


def line_that_pads(backbone: Backbone) -> str:
    """A line by which texts are padded as in training: some tokenizers pad at the left, or not."""
    if backbone.tokenizer is None:
        return ""
    token = backbone.tokenizer.pad_token
    return f'tokenizer.pad_token, tokenizer.padding_side = {token!r}, "right"\n'


def line_to_part(backbone: Backbone) -> str:
    """A line that takes the part of the model which the adapter is on."""
    part = backbone.part
    return f"model = model.get_submodule({part!r})  # the rest is not used\n" if part else ""


def _value_option(name: str, value: float | str) -> str:
    shown = f"{value:g}" if isinstance(value, float) else value
    return f"--value {shlex.quote(printable(f'{name}={shown}').replace('`', ' '))}"


_ROUND = """import bitsandbytes.functional as bnb

for module in model.modules():  # the frozen weights, rounded as they were in training
    if type(module).__name__ in ("Linear", "Conv1D"):
        turned = type(module).__name__ == "Conv1D"
        weight = (module.weight.data.T if turned else module.weight.data).contiguous()
{rounded}
        module.weight.data = rounded.T.contiguous() if turned else rounded
"""
_ROUNDING = {
    "int8": _ROUND.format(
        rounded="""\
        rounded = bnb.int8_vectorwise_dequant(*bnb.int8_vectorwise_quant(weight)[:2])"""
    ),
    "int4": _ROUND.format(
        rounded="""\
        flat = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).view(-1, 64)
        codes = bnb.quantize_4bit(flat, blocksize=64, quant_type="nf4")
        rounded = bnb.dequantize_4bit(*codes).flatten()[:weight.numel()].view_as(weight)"""
    ),
}
"""Number format -> the lines that round a plain model's weights to it."""


def _data_name(plan: RunPlan) -> str:
    if plan.data.train in SYNTHETIC_NOTES:
        return "synthetic clinic notes"
    return f"records of the sites ({printable(Path(plan.data.train).name)})"


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {printable(k): v for k, v in values.items() if v is not None and math.isfinite(v)}
