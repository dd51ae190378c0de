"""What a coordinator that lies can do: adapters and heads built to amplify one record's influence.

The claim at the centre of everything is that one unit changes a site's sum by at most C (of an
evaluation: Δ), whatever adapter the coordinator sent. So adapters are built that make features of
float32's rounding and amplify it by 10^6 and more: a record's gradient then depends on every bit of
how it is computed, and if that depends on the batch, so does every record's. The site's real
session computes its sum of neighbouring data sets, and the largest change is measured *before*
noise, on the numbers in memory.

Sensitivity is a property of all neighbouring data sets; these are a few, chosen against it: many
short texts of several lengths, and one text more or less that is much longer, or of another length
than all others. A found change above C proves the claim wrong; none found proves nothing more than
that these attacks fail.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from lorica.client.mechanism.noise import SeededNoise
from lorica.client.training.session import Session
from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone
from lorica.common.data.records import Records
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import Stage, stage_of
from lorica.common.plan.tensors import factor_pairs
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.tasks import task_of
from lorica.common.tasks.inputs import collate, encode
from lorica.common.tasks.model import PooledModel
from lorica.common.tasks.noised_metrics import sensitivity
from lorica.simulations.audit.evidence.findings import Check, Finding

GAIN = 1e9
"""What rounding is multiplied by; of float32's relative 6e-8 it makes numbers of 60."""

TOLERANCE = 1e-9
"""Of C; above it, a change is one that should not be."""

_EVENT = PrivacyEvent(1.0, 1.0, 1)
_SHORT = 24  # texts of records that neighbouring data sets share


class Recording(SeededNoise):
    """Draws every unit, and keeps the sums that noise is added to."""

    def __init__(self) -> None:
        super().__init__("adapter attack")
        self.totals: list[torch.Tensor] = []
        """Every sum, in float64, in the order in which it was noised."""

    def add_noise(self, total: torch.Tensor, std: float) -> torch.Tensor:
        self.totals.append(total.detach().double().flatten().clone())
        return super().add_noise(total, std)

    def poisson_mask(self, count: int, rate: float) -> torch.Tensor:
        return torch.ones(count, dtype=torch.bool)


Craft = Callable[[State, RunPlan, Backbone, np.random.Generator, str], State]
"""(start, plan, backbone, randomness, one of the texts) -> what the coordinator sends."""


@dataclass(frozen=True)
class Attack:
    """One way of amplifying, and where."""

    name: str
    craft: Craft
    where: Literal["lora", "head", "sums", "local", "evaluation"]
    """What the site is asked for."""
    modules: tuple[str, ...] = ()
    """LoRA's target modules; the plan's when empty."""


def cancelling_rows(
    state: State, plan: RunPlan, backbone: Backbone, random: np.random.Generator, text: str
) -> State:
    """Two rows of every A that cancel each other, but for how their products with a state round:
    u and -3u, of few bits, so that 3u is exact, and columns w and w/3 of B."""
    found = dict(state)
    for name_a, name_b in factor_pairs(state).values():
        (rank, width), height = state[name_a].shape, state[name_b].shape[0]
        u = torch.from_numpy(random.integers(-8, 9, width) / 8.0).float() / math.sqrt(width)
        w = torch.from_numpy(random.choice([-3.0, 3.0], height)).float()
        a, b = torch.zeros(rank, width), torch.zeros(height, rank)
        # A power of two, so that nothing but the products rounds.
        gain = 2.0 ** round(math.log2(GAIN) / 2)
        a[0], a[1] = gain * u, -3 * gain * u
        b[:, 0], b[:, 1] = gain * w, gain * w / 3
        found[name_a], found[name_b] = a, b
    return found


def rounding_units(
    state: State, plan: RunPlan, backbone: Backbone, random: np.random.Generator, text: str
) -> State:
    """Of every feed-forward layer two units that are constant but for rounding: the row of A is
    the public weights' own, and B takes it away again. The second layer's row subtracts one unit
    from the other, so that rounding is left, and multiplies."""
    found = dict(state)
    pairs = factor_pairs(state)
    scale = plan.adapter.alpha / plan.adapter.rank
    for path, (name_a, name_b) in pairs.items():
        if not path.endswith("intermediate.dense"):
            continue
        layer: Any = backbone.model.get_submodule(path.removeprefix("base_model.model."))
        units = layer.bias.detach().abs().topk(2).indices.tolist()
        a, b = torch.zeros_like(state[name_a]), torch.zeros_like(state[name_b])
        for row, unit in enumerate(units):
            a[row] = layer.weight.detach()[unit]
            b[unit, row] = -1.0 / scale
        found[name_a], found[name_b] = a, b
        values = torch.nn.functional.gelu(layer.bias.detach()[units])
        above_a, above_b = pairs[path.replace("intermediate.dense", "output.dense")]
        a, b = torch.zeros_like(state[above_a]), torch.zeros_like(state[above_b])
        share = float(values[0] / values[1]) if float(values[1]) else 0.0
        a[0, units[0]], a[0, units[1]] = GAIN, -GAIN * share
        b[:, 0] = torch.from_numpy(random.choice([-1.0, 1.0], len(b))).float()
        found[above_a], found[above_b] = a, b
    return found


def centre_on_a_text(
    state: State, plan: RunPlan, backbone: Backbone, random: np.random.Generator, text: str
) -> State:
    """The head's centre is what a text is pooled to: what is left of that text is rounding, which
    is then scaled to unit length."""
    model = task_of(plan).model(backbone).eval()
    assert isinstance(model, PooledModel)
    model.load_state(state)
    with torch.no_grad():
        alone = collate(encode(backbone, [text], plan.training.max_length), [0])
        center = model.pooled_of_ids(*alone)[0]
    return state | {"head.center": center, "head.weight": GAIN * state["head.weight"]}


def huge_head(
    state: State, plan: RunPlan, backbone: Backbone, random: np.random.Generator, text: str
) -> State:
    """Outputs of 10^9: a bit of the feature decides which class is told."""
    weight = GAIN * torch.from_numpy(random.standard_normal(state["head.weight"].shape)).float()
    bias = GAIN * torch.from_numpy(random.standard_normal(state["head.bias"].shape)).float()
    return state | {"head.weight": weight, "head.bias": 0.01 * bias}


ATTACKS = (
    Attack("LoRA rows that cancel", cancelling_rows, "lora"),
    Attack("feed-forward units of rounding", rounding_units, "lora", ("dense",)),
    Attack("LoRA rows, several local steps", cancelling_rows, "local"),
    Attack("a head's centre on a text", centre_on_a_text, "head"),
    Attack("a head of huge weights and bias", huge_head, "head"),
    Attack("class sums", cancelling_rows, "sums"),
    Attack("LoRA rows, evaluation", cancelling_rows, "evaluation"),
    Attack("a head's centre, evaluation", centre_on_a_text, "evaluation"),
)
"""All that the audit tries."""


def attacked_plan(plan: RunPlan, attack: Attack) -> RunPlan:
    """The plan as the coordinator would write it for an attack: every layer adapted, every unit
    drawn, and the stage that is attacked."""
    mode = "local" if attack.where == "local" else "gradient"
    rounds: dict[str, Any] = {"count": 3, "evaluate_every": 1}
    rounds["warm_start"] = 0.0 if mode == "local" else RunPlan().rounds.warm_start
    adapter: dict[str, Any] = {"kind": "lora", "layers": []}
    if attack.modules:
        adapter["target_modules"] = list(attack.modules)
    return plan.replace(
        adapter=adapter,
        rounds=rounds,
        training={"mode": mode, "lora": "always", "lora_rounds": 1, "augmentations": 1},
        server={"local_optimizer": "none"},
        aggregation={"method": RunPlan().aggregation.method},
        privacy={"unit": "record"},
    )


def largest_change(
    attack: Attack, plan: RunPlan, backbone: Backbone, texts: Sequence[str], *, seed: int = 0
) -> float:
    """The largest change of the sum between neighbouring data sets, in units of C (of Δ).

    Args:
        attack: what to send and ask for.
        plan: with labels; changed as the attack needs.
        backbone: the plan's.
        texts: of several lengths; the shortest are taken.
        seed: of the made-up numbers.
    """
    plan = attacked_plan(plan, attack)
    random = np.random.default_rng(seed)
    labels = plan.task.labels
    chosen = sorted(set(texts), key=lambda text: (len(text), text))[:_SHORT]
    longest = chosen[-1]
    shared = [*chosen, *[longest] * (_SHORT // 2)]
    others = [(" ".join([longest] * 40), labels[0]), (longest, labels[-1])]
    start = task_of(plan).start(backbone)
    sent = attack.craft(start, plan, backbone, random, longest)
    known = [labels[int(random.integers(len(labels)))] for _ in shared]
    without = _total(attack, plan, backbone, shared, known, sent)
    found = 0.0
    for other, label in others:
        total = _total(attack, plan, backbone, [*shared, other], [*known, label], sent)
        found = max(found, float((total - without).norm()))
    return found / _bound(attack, plan)


def adapter_audit(
    plan: RunPlan, backbone: Backbone, texts: Sequence[str], *, seed: int
) -> tuple[Finding, list[Check]]:
    """Try every attack.

    Args:
        plan: with labels.
        backbone: the plan's.
        texts: as of :func:`largest_change`.
        seed: of the made-up numbers.
    """
    begun = time.monotonic()
    changes = {}
    for attack in ATTACKS:
        if attack.modules and not _has(backbone, attack.modules):
            continue
        changes[attack.name] = largest_change(attack, plan, backbone, texts, seed=seed)
    worst = max(changes, key=lambda name: changes[name])
    passed = all(change <= 1 + TOLERANCE for change in changes.values())
    check = Check(
        "sensitivity under crafted adapters",
        passed,
        f"one record changes a site's sum by at most {changes[worst]:.9f} of what is claimed "
        f"({len(changes)} attacks; the worst: {worst})",
    )
    finding = Finding(
        "adapter",
        0.0,
        1.0,
        "one record changes the sum by more than the clip norm",
        time.monotonic() - begun,
        {"largest_change": changes},
    )
    return finding, [check]


def _has(backbone: Backbone, modules: Sequence[str]) -> bool:
    names = [name for name, _ in backbone.model.named_modules()]
    return all(any(name.endswith("intermediate.dense") for name in names) for _ in modules)


def _total(
    attack: Attack,
    plan: RunPlan,
    backbone: Backbone,
    texts: Sequence[str],
    labels: Sequence[str],
    sent: State,
) -> torch.Tensor:
    """What a site with these records adds noise to, in float64, in one vector."""
    names = [str(row) for row in range(len(texts))]
    records = Records(list(texts), list(labels), names, [""] * len(texts))
    session = _Everything(plan, backbone, records, cache_bytes=2**28, secret=b"unused")
    session.read()
    noise = Recording()
    if attack.where == "evaluation":
        session.load(sent, Stage.LORA)
        session.evaluate(_EVENT, noise)
    else:
        stage = {
            "lora": Stage.LORA,
            "head": Stage.HEAD,
            "sums": Stage.CLASS_SUMS,
            "local": Stage.LOCAL,
        }[attack.where]
        round = next(r for r in range(1, plan.rounds.count + 1) if stage_of(plan, r) is stage)
        heads = {name: t for name, t in sent.items() if name.startswith("head.")}
        session.load(heads if stage.on_frozen_features else sent, stage)
        session.train(round, _EVENT, noise)
    return torch.cat(noise.totals)


class _Everything(Session):
    """A session that sets every record aside as well as training on it, so that a neighbour is in
    both and nothing depends on which texts are set aside."""

    def _divide(self, records: Records, plan: RunPlan) -> tuple[np.ndarray, np.ndarray]:
        everything = np.arange(len(records))
        return everything, everything


def _bound(attack: Attack, plan: RunPlan) -> float:
    if attack.where == "evaluation":
        return sensitivity(plan)
    return 1.0 if attack.where == "sums" else plan.privacy.clip_norm
