"""Adapters that make a whole gradient of a rounding error: one unit more moves the sum by C."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.nn import functional

from lorica.client.admission.figures import SiteFigures
from lorica.client.admission.gate import Admission
from lorica.client.mechanism.noise import SeededNoise
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import State, pack_state
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.plan import RunPlan
from lorica.common.tasks import task_of
from lorica.common.wire.messages import Request

CLIP_NORM = 0.5
TEXTS = [f"{word} {other}" for word in ("card", "loan", "skin") for other in ("the", "my", "old")]
"""Of one canonical length."""


class Totals(SeededNoise):
    """Seeded noise that keeps the sums it is added to."""

    def __init__(self) -> None:
        super().__init__("neighbours")
        self.seen: list[torch.Tensor] = []

    def add_noise(self, total: torch.Tensor, std: float) -> torch.Tensor:
        self.seen.append(total.detach().double().clone())
        return super().add_noise(total, std)


def multi_label(backbone: Path) -> RunPlan:
    """All units in every step (of a site that says it has 4), head and LoRA together."""
    return RunPlan().replace(
        backbone={"source": str(backbone)},
        task={"kind": "multi-label-classification", "labels": ["money", "health"]},
        adapter={"rank": 2, "layers": [-1]},
        privacy={"epsilon": 8.0, "delta": 1e-3, "clip_norm": CLIP_NORM},
        training={"mode": "local", "local_steps": 1, "expected_batch_size": 4},
        aggregation={"method": "ffa"},
        rounds={"count": 2},
    )


def sums(plan: RunPlan, state: State, count: int) -> torch.Tensor:
    """The clipped sums, before noise, of the first so many records."""
    texts = TEXTS[:count]
    records = Records(texts, ["[]"] * count, [str(row) for row in range(count)], [""] * count)
    noise = Totals()
    admission = Admission(figures=SiteFigures(units=4))
    site = LocalTrainer("a", records, noise=lambda *_: noise, admission=admission)
    reply = site.train(Request(plan, "r", 1, pack_state(state)))
    assert reply.status == "ok", reply.reason
    assert noise.seen
    return torch.cat([total.flatten() for total in noise.seen])


def slopes(outputs: torch.Tensor) -> torch.Tensor:
    """The derivative of the usual binary cross-entropy, with target 0."""
    given = outputs.clone().requires_grad_(True)
    losses = functional.binary_cross_entropy_with_logits(
        given, torch.zeros_like(given), reduction="none"
    )
    return torch.autograd.grad(losses.sum(), given)[0]


def biases() -> tuple[float, float]:
    """Of two outputs, one of whose slopes is twice the other's to the bit where torch computes many
    values, and not where it computes few; any, if there are none on this machine."""
    usual = torch.linspace(-2.0, 2.0, 4096)
    many, few = slopes(usual), torch.cat([slopes(part) for part in usual.split(3)])
    for place in torch.nonzero(many != few).flatten().tolist():
        half = many[place].double() / 2
        near = torch.logit(half).float() + 2.0**-22 * torch.arange(-16, 16)
        fits = (2 * slopes(near) == many[place]).nonzero().flatten().tolist()
        for other in fits:
            if torch.equal(slopes(near[other : other + 1]), slopes(near)[other : other + 1]):
                return float(usual[place]), float(near[other])
    return -1.0, -2.0


def cancelling(plan: RunPlan) -> State:
    """The head sees two slopes, r and r / 2, as r - 2·(r / 2): nothing, but for a last bit. B = 0
    leaves the encoder as it is whatever A is, and A makes that bit longer than any bound."""
    state = dict(task_of(plan).start(load_backbone(plan.backbone)))
    generator = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        drawn = torch.randn(tensor.shape, generator=generator)
        if ".lora_" in name:
            state[name] = 1e30 * drawn if ".lora_A." in name else torch.zeros(tensor.shape)
    signs = 2.0**-40 * state["head.weight"][0].sign()
    state["head.weight"] = torch.stack([signs, -2 * signs])
    state["head.bias"] = torch.tensor(biases())
    return state


def test_one_unit_more_moves_the_sum_by_c_when_the_last_bit_of_a_loss_is_amplified(
    small_backbone: Path,
) -> None:
    """The ninth text makes the batch one of 16 rows, not 8."""
    plan = multi_label(small_backbone)
    state = cancelling(plan)
    moved = sums(plan, state, 9) - sums(plan, state, 8)
    assert float(moved.norm()) <= CLIP_NORM * (1 + 1e-9)
