"""Distillation: a smaller model that answers as an adapter does, learnt from texts without labels.

The student has some of the backbone's layers, the adapter merged into them, and the adapter's head.
It is trained to the adapter's logits (Hinton et al. 2015, arXiv 1503.02531: KL divergence at a
temperature) and to its features (by cosine). Of all epochs the state is kept that agrees best on
texts set aside.

Formal guarantee:
    The adapter's answers are a function of the adapter. A student learnt from them and from public
    texts is post-processing: it has the adapter's (ε, δ) and costs nothing more. Of texts that are
    not public it may tell, and nothing is noised here: its plan then says ε = ∞.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone, load_backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.subject import DESCRIBED, BackbonePlan
from lorica.common.saved.card import CardResults
from lorica.common.saved.exported.fold import fold
from lorica.common.saved.exported.folded import head_model, head_task
from lorica.common.saved.exported.written import new_folder, require_new
from lorica.common.saved.folder import load_adapter, save_adapter
from lorica.common.saved.ready import use_batches
from lorica.common.saved.student import parameters, smaller, trainable, write_model
from lorica.common.tasks.base import Task
from lorica.common.tasks.inputs import Inputs
from lorica.common.tasks.model import AdaptedModel

FEWEST = 20
"""Texts."""
ASIDE = 0.1
"""Share of the texts that agreement is measured on."""
FIGURES = "distilled.json"
_TEMPERATURE = 2.0
_BATCH = 32
_WARM = 0.1  # of all steps
_LENGTH = 1.0  # bound on a step's gradient


@dataclass(frozen=True)
class Distilled:
    """A student and how well it agrees with its teacher."""

    layers: int
    parameters: int
    teacher_parameters: int
    texts: int
    """It was trained on."""
    aside: int
    """Texts that agreement was measured on."""
    agreement: float
    """Share of them that get the same label."""
    distance: float
    """Mean total variation distance of the two's probabilities, in [0, 1]."""
    before: float
    """Agreement before any training."""
    epoch: int
    """Whose state is kept, from 1; 0: the untrained one."""
    times_as_fast: float
    """Teacher's seconds for the texts set aside by the student's."""


def distill(
    adapter: Path,
    texts: Sequence[str],
    out: Path,
    *,
    layers: int,
    epochs: int = 5,
    rate: float = 2e-4,
    seed: int = 0,
    public: bool = True,
    backbone_source: str = "",
) -> Distilled:
    """Train a student and write it: ``out/backbone`` and ``out/adapter``, a head on it.

    Args:
        adapter: an adapter folder of text classification.
        texts: without labels.
        out: a folder that does not exist.
        layers: of the student.
        epochs: over the texts.
        rate: largest step size of AdamW, no unit.
        seed: of order and of the texts set aside.
        public: whether anybody may know the texts.
        backbone_source: where the adapter's backbone is, if not where its plan says.

    Raises:
        LoricaError: LOR-103 another task, LOR-204 no such student, LOR-206 no adapter, LOR-308 too
            few texts, LOR-603 ``out`` exists, LOR-20x, LOR-601, LOR-602.
    """
    saved = load_adapter(adapter)
    require_new(out)
    if saved.plan.task.kind != DESCRIBED[0]:
        raise LoricaError(
            Code.PLAN_BAD_VALUE,
            f"Students are of text classification, not of {saved.plan.task.kind}.",
        )
    texts = list(dict.fromkeys(text for text in texts if text.strip()))
    if len(texts) < FEWEST:
        raise LoricaError(
            Code.DATA_TOO_FEW_RECORDS,
            f"{len(texts)} different texts are too few: a student needs at least {FEWEST}.",
        )
    folding = fold(saved, saved.backbone(backbone_source))
    task, teacher = head_model(saved, folding, folding.changed)
    teacher.requires_grad_(False)
    encoded = task.encode_for_use(folding.backbone, _records(texts))
    with tempfile.TemporaryDirectory(prefix="lorica-student-") as name:
        first = Path(name) / "start"
        write_model(smaller(folding, layers), folding.backbone, first)
        start = load_backbone(BackbonePlan(source=str(first)))
        own = replace(start, model=copy.deepcopy(start.model))
        student = task.model(own)
        head = {key: saved.state[key] for key in student.adapter_parameters}
        student.load_state(head)
        found, state = _train(task, teacher, student, own, encoded, epochs, rate, seed)
        plan = _plan(saved.plan, out / "backbone", public)
        with new_folder(out) as new:
            write_model(own.model, folding.backbone, new / "backbone")
            written = load_backbone(BackbonePlan(source=str(new / "backbone")))
            written = replace(written, folder=(out / "backbone").absolute())
            save_adapter(new / "adapter", state, plan, written, CardResults(seeded=saved.seeded))
            _note(new / "adapter" / "README.md", found, public)
            content = json.dumps(asdict(found), indent=2) + "\n"
            (new / FIGURES).write_text(content, encoding="utf-8")
    return found


def _records(texts: Sequence[str]) -> Records:
    nothing = [""] * len(texts)
    return Records(list(texts), nothing, nothing, nothing)


def _plan(plan: RunPlan, backbone: Path, public: bool) -> RunPlan:
    """The head's plan on the student; a copy that nobody agrees to (:func:`head_task`)."""
    own = head_task(plan).plan
    source = str(backbone.absolute())
    changes = {"source": source, "sha256": "", "revision": "", "quantize": "none"}
    update: dict[str, object] = {"backbone": own.backbone.model_copy(update=changes)}
    if not public:
        update["privacy"] = own.privacy.model_copy(update={"epsilon": float("inf")})
    return own.model_copy(update=update)


@torch.no_grad()
def _answers(
    model: AdaptedModel, encoded: Inputs, wanted: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features (n, H) and logits (n, C) of these rows, in their order."""
    found: list[torch.Tensor] = []
    order: list[np.ndarray] = []
    for places in use_batches(encoded.sizes[wanted], encoded.limit):
        rows = wanted[places]
        found.append(model.features(model.pooled_of_ids(*encoded.collate(rows))))
        order.append(places)
    features = torch.cat(found)[torch.from_numpy(np.argsort(np.concatenate(order)))]
    return features, model.head(features)


def _train(
    task: Task,
    teacher: AdaptedModel,
    student: AdaptedModel,
    own: Backbone,
    encoded: Inputs,
    epochs: int,
    rate: float,
    seed: int,
) -> tuple[Distilled, State]:
    """Train ``student`` and the weights in ``own``, which it computes with, to their best state."""
    draw = np.random.default_rng(seed)
    order = draw.permutation(len(encoded))
    aside, rows = np.split(order, [max(1, round(ASIDE * len(order)))])
    features, logits = _answers(teacher, encoded, np.arange(len(encoded)))
    moving = [*trainable(own.model), *student.head.requires_grad_(True).parameters()]
    optimizer = torch.optim.AdamW(moving, lr=rate, weight_decay=0.01)
    batches = epochs * max(1, len(rows) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, batches + 2, pct_start=_WARM)
    agreed = [_agreement(student, encoded, aside, logits)]
    best = 0, agreed[0], _copied(own, student)
    for epoch in range(1, epochs + 1):
        shuffled = draw.permutation(rows)
        for part in np.array_split(shuffled, max(1, len(rows) // _BATCH)):
            seen = student.features(student.pooled_of_ids(*encoded.collate(part)))
            at = torch.from_numpy(part)
            loss = _loss(student.head(seen), seen, logits[at], features[at])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(moving, _LENGTH)
            optimizer.step()
            schedule.step()
        agreed.append(_agreement(student, encoded, aside, logits))
        if agreed[-1] > best[1]:
            best = epoch, agreed[-1], _copied(own, student)
    epoch, (agreement, distance), (weights, head) = best
    own.model.load_state_dict(weights)
    student.load_state(head)
    started = time.perf_counter()
    _answers(teacher, encoded, aside)
    between = time.perf_counter()
    _answers(student, encoded, aside)
    faster = (between - started) / max(1e-9, time.perf_counter() - between)
    found = Distilled(
        layers=int(own.model.config.num_hidden_layers),
        parameters=parameters(own.model),
        teacher_parameters=parameters(teacher.encoder),
        texts=len(rows),
        aside=len(aside),
        agreement=agreement,
        distance=-distance,
        before=agreed[0][0],
        epoch=epoch,
        times_as_fast=faster,
    )
    return found, head


def _copied(own: Backbone, student: AdaptedModel) -> tuple[dict[str, torch.Tensor], State]:
    weights = {name: tensor.detach().clone() for name, tensor in own.model.state_dict().items()}
    return weights, student.adapter_state()


def _loss(
    logits: torch.Tensor, features: torch.Tensor, wanted: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    soft = functional.kl_div(
        functional.log_softmax(logits / _TEMPERATURE, 1),
        functional.log_softmax(wanted / _TEMPERATURE, 1),
        reduction="batchmean",
        log_target=True,
    )
    apart = 1 - functional.cosine_similarity(features, seen).mean()
    return _TEMPERATURE**2 * soft + apart


def _agreement(
    student: AdaptedModel, encoded: Inputs, aside: np.ndarray, logits: torch.Tensor
) -> tuple[float, float]:
    """Share with the same label, and less the mean total variation distance: more is better."""
    wanted = logits[torch.from_numpy(aside)]
    found = _answers(student, encoded, aside)[1]
    same = float((found.argmax(1) == wanted.argmax(1)).double().mean())
    apart = (found.softmax(1) - wanted.softmax(1)).abs().sum(1) / 2
    return same, -float(apart.double().mean())


def _note(card: Path, found: Distilled, public: bool) -> None:
    """A section of the model card."""
    texts = "public texts" if public else "texts that are not public: it has no privacy"
    section = f"""
## Distilled

A student of {found.layers} layers, trained by `lorica distill` to the answers of the run's adapter
on {found.texts:,} {texts}. On {found.aside:,} texts set aside it gives the same label for
{found.agreement:.1%}; its probabilities are {found.distance:.3f} apart (total variation) in the
mean. Its backbone lies beside it. What stands above of training is of the adapter it learnt from.
"""
    card.write_text(card.read_text(encoding="utf-8") + section, encoding="utf-8")
