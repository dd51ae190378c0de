"""A DP-SGD step of Lorica against a plain LoRA step, and against Opacus' own ways.

    python benchmarks/speed/dp_step.py [repeats]

LoRA of rank 8 on query and value of all six layers of the embedded backbone, and the head, at
batch 64 and texts of 32 and 128 tokens. The four ways take turns in one run, in this order,
"repeats" times (default 15):

- plain: cross-entropy, backward, Adam; all records in one batch, padded to the longest; no privacy
- lorica: canonical batches (what is computed of a record depends on that record alone, to the bit),
  per-record gradients in the one backward pass, exact clipped sums, secure noise
- hooks: Opacus' GradSampleModule and DPOptimizer
- ghost: Opacus' fast gradient clipping (two backward passes)

A third row has texts of 4 to 64 tokens, as real ones are: there the usual padding costs more than
canonical lengths do. The last line is the largest ratio of the medians, lorica to plain, of the
texts of one length, where exactness can only cost; the target is at most 1.15.
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
from rich.table import Table

from lorica.client.mechanism.dp_sgd import NoisyOptimizer
from lorica.client.mechanism.noise import SecureNoise
from lorica.client.mechanism.per_sample import enable_per_sample_gradients
from lorica.common.backbone.loading import load_backbone
from lorica.common.cache.batching import unit_batches
from lorica.common.display.console import Console
from lorica.common.plan import RunPlan
from lorica.common.plan.tensors import Part, part_of
from lorica.common.tasks.shapes import padded
from lorica.common.tasks.text_classification import TextClassifier

BATCH, LENGTHS, MIXED = 64, (32, 128), (4, 64)
PLAN = RunPlan().replace(
    task={"labels": [f"label {number}" for number in range(77)]}, adapter={"layers": []}
)
Step = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None]


class Whole(torch.nn.Module):
    """Token ids to logits, as one module that Opacus can wrap."""

    def __init__(self, classifier: TextClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Logits (n, C)."""
        return self.classifier.head(self.classifier.features_of_ids(ids, mask))


def trained(classifier: TextClassifier) -> list[torch.nn.Parameter]:
    """The LoRA factors and the head, and nothing else, made trainable."""
    for parameter in classifier.parameters():
        parameter.requires_grad_(False)
    chosen = [
        p for name, p in classifier.adapter_parameters.items() if part_of(name) is not Part.CENTER
    ]
    for parameter in chosen:
        parameter.requires_grad_(True)
    return chosen


def fresh() -> tuple[Whole, list[torch.nn.Parameter]]:
    """A model with B away from 0, so that every gradient is there."""
    classifier = TextClassifier(load_backbone(PLAN.backbone), PLAN).train()
    parameters = trained(classifier)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.01 * torch.randn_like(parameter))
    return Whole(classifier), parameters


def plain() -> Step:
    """The step that everybody takes."""
    model, parameters = fresh()
    optimizer = torch.optim.Adam(parameters, lr=1e-3)

    def step(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(ids, mask), labels).backward()
        optimizer.step()

    return step


def lorica() -> Step:
    """Our step, as :class:`lorica.client.mechanism.dp_sgd.DPTrainer` takes it."""
    model, parameters = fresh()
    enable_per_sample_gradients(model.classifier, parameters)
    groups = [{"params": parameters, "lr": 1e-3, "clip_norm": 1.0}]
    optimizer = NoisyOptimizer(
        torch.optim.Adam(groups),
        noise=SecureNoise(),
        noise_multiplier=1.0,
        expected_batch_size=BATCH,
    )

    def step(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> None:
        lengths = mask.sum(1).numpy()
        drawn = list(np.arange(len(ids))[:, None])
        batches = list(unit_batches(drawn, lengths[:, None], ids.shape[1]))
        for place, batch in enumerate(batches):
            optimizer.zero_grad(set_to_none=True)
            rows = torch.from_numpy(batch.rows)
            width = int(padded(int(lengths[batch.rows].max()), ids.shape[1]))
            outputs = model(ids[rows, :width], mask[rows, :width])
            torch.nn.functional.cross_entropy(outputs, labels[rows], reduction="sum").backward()
            optimizer.counted = torch.from_numpy(batch.owner) >= 0
            optimizer.signal_skip_step(place + 1 < len(batches))
            optimizer.step()

    return step


def opacus(mode: str) -> Step:
    """Opacus' own per-sample gradients: "hooks" or "ghost"."""
    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    model, parameters = fresh()
    data = DataLoader(TensorDataset(torch.zeros(BATCH * 10, 1)), batch_size=BATCH)
    kind = "hooks" if mode == "hooks" else "ghost"
    made = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.Adam(parameters, lr=1e-3),
        criterion=torch.nn.CrossEntropyLoss(),
        data_loader=data,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        grad_sample_mode=kind,
        poisson_sampling=False,
    )
    private, optimizer = made[0], made[1]
    criterion = made[2] if mode == "ghost" else torch.nn.CrossEntropyLoss()

    def step(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        criterion(private(ids, mask), labels).backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure and print."""
    warnings.filterwarnings("ignore")
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    generator = torch.Generator().manual_seed(0)
    steps = {
        "plain": plain(),
        "lorica": lorica(),
        "hooks": opacus("hooks"),
        "ghost": opacus("ghost"),
    }
    table = Table(box=None, title=f"Median milliseconds of a step, batch {BATCH}")
    for head in ("tokens", *steps, "lorica / plain"):
        table.add_column(head, justify="right")
    worst = 0.0
    for length in (*LENGTHS, 0):
        ids = torch.randint(1000, 20_000, (BATCH, length or MIXED[1]), generator=generator)
        mask, labels = torch.ones_like(ids), torch.randint(0, 77, (BATCH,), generator=generator)
        if not length:
            held = torch.randint(MIXED[0], MIXED[1] + 1, (BATCH, 1), generator=generator)
            mask = (torch.arange(ids.shape[1])[None] < held).long()
            ids = ids * mask
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(repeats + 1):
            for name, step in steps.items():
                begun = time.perf_counter()
                step(ids, mask, labels)
                if turn:  # the first warms up
                    seconds[name].append(time.perf_counter() - begun)
        medians = {name: statistics.median(found) for name, found in seconds.items()}
        ratio = medians["lorica"] / medians["plain"]
        worst = max(worst, ratio) if length else worst
        cells = [f"{1000 * value:.1f}" for value in medians.values()]
        table.add_row(str(length or "4 to 64"), *cells, f"{ratio:.3f}")
    Console().print(table)
    print(f"dp-step ratio: {worst:.3f}")


if __name__ == "__main__":
    main()
