"""Runs of every kind of task, submitted to a coordinator and answered by sites' own trainers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context

from lorica.client.answering.endpoint import make_client_app
from lorica.client.config.site import load_site
from lorica.client.ledger import Ledger
from lorica.client.node.joining import site_key
from lorica.client.training.opening import open_ledger, open_trainer
from lorica.client.training.trainer import LocalTrainer
from lorica.common.backbone.files import backbone_sha256
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.saved.folder import load_adapter
from lorica.common.wire.sealing import load_site_key
from lorica.common.wire.signing import KEY_VARIABLE, CoordinatorKey
from lorica.server.coordinator.home import HOME_VARIABLE, CoordinatorConfig, CoordinatorHome
from lorica.server.coordinator.register import Register
from lorica.server.coordinator.serve import serve_run
from lorica.server.coordinator.submit import submit
from tests.language_models import TARGETS, make_language_model, questions
from tests.server.coordinator.registered import RegisteredGrid, admitted
from tests.tasks import SECTIONS, plan_of, rows_of, write_rows

SITES = ["north", "south"]
LANGUAGE = {"causal-lm": "gpt2", "masked-lm": "bert"}
ONE_LABEL = {"multi-label-classification": "money", "token-classification": "symptom"}
METRICS = {
    "text-classification": ["accuracy", "loss"],
    "text-regression": ["mae", "loss"],
    "multi-label-classification": ["f1", "loss"],
    "token-classification": ["f1", "loss"],
    "causal-lm": ["accuracy", "loss"],
    "masked-lm": ["accuracy", "loss"],
}
"""Task -> what its sites are asked for."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoordinatorHome:
    home = CoordinatorHome(tmp_path / "coordinator")
    home.create(CoordinatorConfig())
    monkeypatch.setenv("LORICA_STORE", f"sqlite:///{tmp_path / 'runs.sqlite'}")
    monkeypatch.setenv(HOME_VARIABLE, str(home.path))
    CoordinatorKey.create(home.signing_key)
    monkeypatch.setenv(KEY_VARIABLE, str(home.signing_key))
    return home


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def rows(kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    if kind in LANGUAGE:
        return [{"text": prompt, "label": answer} for prompt, answer in questions(count)]
    found = rows_of(kind, count, seed=seed)
    if kind == "multi-label-classification":
        return [row | {"label": [x for x in row["label"] if x == ONE_LABEL[kind]]} for row in found]
    if kind == "token-classification":
        for row in found:
            row["label"] = [tag if tag.endswith(ONE_LABEL[kind]) else "O" for tag in row["label"]]
    return found


def planned(kind: str, folder: Path, small_backbone: Path) -> RunPlan:
    """A plan whose training data are nowhere: sites have their own, the coordinator none."""
    sections: dict[str, Any] = {
        "data": {"train": "at-the-sites-alone.jsonl"},
        "privacy": {"epsilon": 2.0, "delta": 5e-5, "evaluation_metrics": METRICS[kind]},
        "training": {"mode": "local", "local_steps": 1, "expected_batch_size": 8},
        "aggregation": {"method": "fedavg"},
        "rounds": {"count": 1, "evaluate_every": 1, "minimum_sites": 2},
    }
    if kind in LANGUAGE:
        model = LANGUAGE[kind]
        backbone = make_language_model(folder / model, model)
        return RunPlan().replace(
            backbone={"source": str(backbone)},
            task={"kind": kind},
            adapter={"rank": 2, "target_modules": TARGETS[model]},
            **sections,
        )
    labels = {"labels": [ONE_LABEL[kind]]} if kind in ONE_LABEL else SECTIONS[kind]
    return plan_of(kind, small_backbone, **sections).replace(task={"kind": kind, **labels})


def site_of(
    name: str, folder: Path, plan: RunPlan, opened: ExitStack, coordinator: str
) -> tuple[LocalTrainer, Ledger]:
    """The trainer and the ledger of a site.toml, with its policy and its records."""
    kind, home = plan.task.kind, folder / name
    home.mkdir()
    write_rows(home / "data.jsonl", rows(kind, 120, SITES.index(name)))
    backbone = plan.backbone.source
    (home / "site.toml").write_text(
        f'[site]\nname = "{name}"\n[data]\nsource = "data.jsonl"\n'
        f'[policy]\nnoise = "seeded"\nmaximum_delta = 0.01\ntasks = ["{kind}"]\n'
        f"metrics = {json.dumps(METRICS[kind])}\n"
        f"backbones = {json.dumps([backbone_sha256(Path(backbone))])}\n"
        f"backbone_folders = {json.dumps([backbone])}\n"
        f'sampling_units = 120\ncoordinators = ["{coordinator}"]\n'
        '[federation]\naddress = "localhost:8443"\n'
    )
    site_key(home / "node.key")
    config = load_site(home / "site.toml")
    open_ledger(config, home, create=True).close()
    trainer, ledger = open_trainer(config, home)
    opened.callback(ledger.close)
    return trainer, ledger


@pytest.mark.parametrize(
    ("kind", "tested"),
    [(kind, False) for kind in sorted(METRICS)]
    + [(kind, True) for kind in ("text-regression", "causal-lm", "masked-lm")],
)
def test_a_run_of_every_task_is_submitted_and_finished(
    home: CoordinatorHome,
    opened: ExitStack,
    tmp_path: Path,
    small_backbone: Path,
    kind: str,
    tested: bool,
) -> None:
    """With and without test data at the coordinator; it reads no training data."""
    plan = planned(kind, tmp_path, small_backbone)
    if tested:
        plan = plan.replace(data={"test": str(write_rows(tmp_path / "t.jsonl", rows(kind, 40, 9)))})
    public = CoordinatorKey.load(home.signing_key).public
    sites = [site_of(name, tmp_path, plan, opened, public) for name in SITES]

    def trainer_of(context: Context) -> LocalTrainer:
        return sites[int(context.node_config["partition-id"])][0]

    register = Register(home.register)
    keys = [admitted(register, n, load_site_key(tmp_path / n / "node.key")) for n in SITES]
    place = submit(home, plan, run="a")
    place.change(flower_runs=[1])
    serve_run(RegisteredGrid(make_client_app(trainer_of), keys), "a", 1)
    assert place.order().state == "finished"
    last = place.folder.rounds()[-1]
    assert [(site.site, site.status) for site in last.sites] == [(n, "ok") for n in SITES]
    for _, ledger in sites:
        charged = [entry.charge.kind for entry in ledger.history().charges]
        assert sorted(charged) == ["evaluate", "train"]
    assert bool(last.metrics) == tested
    assert load_adapter(place.path / "adapter").plan.task.kind == kind


@pytest.mark.parametrize("kind", ["text-classification", "multi-label-classification"])
def test_a_plan_that_lacks_its_labels_is_refused_before_anything_is_written(
    home: CoordinatorHome, kind: str
) -> None:
    with pytest.raises(LoricaError) as caught:
        submit(home, RunPlan().replace(task={"kind": kind}), run="a")
    assert caught.value.code is Code.DATA_TOO_FEW_LABELS
    assert not (home.runs / "a").exists()
