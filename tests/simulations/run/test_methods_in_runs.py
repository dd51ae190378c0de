"""Whole runs of every method: nobody's honest update is refused, and a resumed run ends alike."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from lorica.client.admission.gate import Admission
from lorica.client.config.site import Policy, SiteConfig, SiteData, SiteIdentity
from lorica.client.mechanism.noise import SeededNoise
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import State
from lorica.common.backbone.files import backbone_sha256
from lorica.common.backbone.loading import load_backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS, methods_with
from lorica.common.plan.tensors import factor_pairs, residual_name
from lorica.common.saved.predict import Predictor
from lorica.common.tasks.text_classification import TextClassifier, starting_state
from lorica.server.aggregation.means.products import MeanOfProducts
from lorica.server.results.folder import RunFolder
from lorica.server.rounds.loop import RoundLoop
from lorica.simulations.audit.watched.subject import Subject
from lorica.simulations.run.engines import run_in_process
from lorica.simulations.run.progress import LiveProgress
from lorica.simulations.run.simulate import Simulation
from tests.conftest import make_small_backbone

ROUNDS, SITES = 4, 5
WORDS = {
    "money": ["card", "cash", "loan", "bank", "money", "lost"],
    "health": ["fever", "pain", "heart", "skin", "cough", "doctor"],
}
EXTRAS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "krum": {"aggregation": {"robust": "krum"}, "rounds": {"minimum_sites": SITES}},
    "fedadam": {"server": {"local_optimizer": "fedadam", "local_rate": 0.05}},
    "after noise": {"training": {"proximal": 0.1, "smoothing": 0.5}},
}
TWICE = pytest.mark.slow("method and extra are each in a faster case, too")
CASES = [
    *((method, "plain") for method in METHODS),
    *(("fedsvd", extra) for extra in EXTRAS if extra != "plain"),
    pytest.param("rolora", "fedadam", marks=TWICE),
    pytest.param("la-lora", "after noise", marks=TWICE),
    pytest.param("fedex", "krum", marks=TWICE),
]


def texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    generator = random.Random(seed)
    labels = [["money", "health"][row % 2] for row in range(count)]
    return [(" ".join(generator.choices(WORDS[label], k=5)), label) for label in labels]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    """Five sites of 24 records on the small backbone of tests/conftest.py."""
    folder = tmp_path_factory.mktemp("methods")
    with (folder / "data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(texts(150))
    return RunPlan().replace(
        backbone={"source": str(make_small_backbone(folder / "backbone"))},
        adapter={"rank": 4, "layers": [1, 2]},
        data={"train": str(folder / "data.csv")},
        privacy={"epsilon": 8.0, "delta": 1e-3},
        training={"mode": "local", "expected_batch_size": 8, "local_steps": 3},
        rounds={"count": ROUNDS, "warm_start": 0},
        simulation={"sites": SITES},
    )


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


def bytes_of(out: Path) -> dict[str, bytes]:
    """The adapter, and what sites have for themselves."""
    files = [*(out / "adapter").iterdir(), *(out / "personal").glob("*")]
    return {path.name: path.read_bytes() for path in files}


class _Killed(Exception):  # noqa: N818 - no error of ours
    pass


@pytest.mark.parametrize(("method", "extra"), CASES)
def test_a_run_of_every_method_is_whole_and_resumes_to_the_byte(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, extra: str
) -> None:
    """Against the run that was not killed in its third round."""
    sections = {key: dict(value) for key, value in EXTRAS[extra].items()}
    sections["aggregation"] = sections.get("aggregation", {}) | {"method": method}
    run = plan.replace(**sections)
    Simulation(run, tmp_path / "straight", quiet()).run(report=False)
    rounds = RunFolder(tmp_path / "straight").rounds()
    assert len(rounds) == ROUNDS + 1
    for record in rounds[1:]:
        assert [site.status for site in record.sites] == ["ok"] * SITES, record.sites

    whole = RoundLoop._one_round

    def killed(self: RoundLoop, round: int, state: State) -> State:
        if round == 3:
            raise _Killed
        return whole(self, round, state)

    with monkeypatch.context() as patch:
        patch.setattr(RoundLoop, "_one_round", killed)
        with pytest.raises(_Killed):
            Simulation(run, tmp_path / "killed", quiet()).run(report=False)
    Simulation(run, tmp_path / "killed", quiet()).run(resume=True, report=False)
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "straight")
    kept = list((tmp_path / "straight" / "personal").glob("*.safetensors"))
    assert len(kept) == (SITES if METHODS[method].personal else 0)
    (prediction,) = Predictor(tmp_path / "straight" / "adapter")(["my card is lost"])
    assert sum(prediction.probabilities) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("method", ["rolora", "la-lora"])
def test_the_audit_refuses_methods_that_train_in_turn(plan: RunPlan, method: str) -> None:
    with pytest.raises(LoricaError, match="in turn") as caught:
        Subject.of(plan.replace(aggregation={"method": method}))
    assert caught.value.code is Code.PLAN_BAD_VALUE


@pytest.mark.parametrize("extra", ["krum", "after noise"])
def test_the_audit_takes_a_robust_plan_and_what_follows_the_noise_out(
    plan: RunPlan, extra: str
) -> None:
    subject = Subject.of(plan.replace(**EXTRAS[extra]))
    assert subject.plan.aggregation.robust == "none"
    assert subject.plan.training.proximal == subject.plan.training.smoothing == 0.0


def test_rolora_runs_on_the_coordinators_steps(plan: RunPlan, tmp_path: Path) -> None:
    run = plan.replace(
        aggregation={"method": "rolora"},
        training={"mode": "gradient", "lora": "always", "lora_rounds": 3},
        server={"momentum": 0.5},
    )
    Simulation(run, tmp_path / "run", quiet()).run(report=False)
    rounds = RunFolder(tmp_path / "run").rounds()
    assert all(site.status == "ok" for record in rounds for site in record.sites)
    sent = [record.bytes_up for record in rounds[2:]]
    assert sent[0] == sent[2]  # B, A, B


@pytest.mark.parametrize("method", methods_with(lambda method: method.any_rank))
def test_sites_of_different_ranks_train_one_adapter(
    plan: RunPlan, tmp_path: Path, method: str
) -> None:
    """Ranks 1, 2 and 4 in a plan of rank 4, each by its own policy."""
    run = plan.replace(
        aggregation={"method": method},
        task={"labels": ["health", "money"]},
        rounds={"minimum_sites": 3},
    )
    backbone = load_backbone(run.backbone)
    trainers = {}
    for number, rank in enumerate((1, 2, 4)):
        rows = texts(40, seed=number)
        records = Records(
            [text for text, _ in rows], [label for _, label in rows], ["x"] * 40, [""] * 40
        )
        site = f"site-{number}"
        config = SiteConfig(
            site=SiteIdentity(name=site),
            data=SiteData(source="x.csv"),
            policy=Policy(
                sampling_units=10,
                backbones=[backbone_sha256(backbone.folder)],
                backbone_folders=[str(backbone.folder)],
                maximum_rank=rank,
                maximum_delta=1e-2,
                minimum_units=1,
            ),
        )
        trainers[site] = LocalTrainer(
            site,
            records,
            noise=lambda stream, round, site=site: SeededNoise(stream, site, round),
            admission=Admission(config),
        )
    folder = RunFolder(tmp_path / "run")
    folder.create(run)
    with LiveProgress(quiet(), run.privacy.epsilon) as observer:
        state = run_in_process(
            lambda grid: RoundLoop(
                grid,
                run,
                folder,
                run="r",
                start=lambda: starting_state(TextClassifier(backbone, run), backbone, run),
                evaluate=None,
                observer=observer,
                nodes=3,
            ).run(),
            trainers,
        )
    for record in folder.rounds()[1:]:
        assert [site.status for site in record.sites] == ["ok"] * 3, record.sites
    moved = ".residual" if method == "flora" else ".lora_B."
    assert any(bool(tensor.any()) for name, tensor in state.items() if moved in name)


@pytest.mark.parametrize("method", methods_with(lambda method: method.any_rank))
def test_a_simulations_sites_train_at_their_ranks_and_their_products_are_averaged(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Five sites of ranks 1, 2, 4, 1, 2; every round against a loop in float64 over the updates
    that the rule was given: the weighted mean of products, cut at rank r under "flexlora"."""
    seen: list[tuple[State, list[tuple[State, float]], State]] = []
    held: list[tuple[State, float]] = []
    add, finish = MeanOfProducts.add, MeanOfProducts.finish

    def adding(self: MeanOfProducts, update: State, weight: float) -> None:
        held.append((update, weight))
        add(self, update, weight)

    def finishing(self: MeanOfProducts) -> State:
        seen.append((self._start, list(held), finish(self)))
        held.clear()
        return seen[-1][2]

    monkeypatch.setattr(MeanOfProducts, "add", adding)
    monkeypatch.setattr(MeanOfProducts, "finish", finishing)
    ranks, rank = [1, 2, 4], plan.adapter.rank
    run = plan.replace(
        aggregation={"method": method}, simulation={"ranks": ranks}, rounds={"count": 2}
    )
    Simulation(run, tmp_path / "run", quiet()).run(report=False)
    for record in RunFolder(tmp_path / "run").rounds()[1:]:
        assert [site.status for site in record.sites] == ["ok"] * SITES, record.sites
    assert [len(updates) for _, updates, _ in seen] == [SITES] * 2
    for start, updates, state in seen:
        total = sum(weight for _, weight in updates)
        for path, (name_a, name_b) in factor_pairs(state).items():
            residual = state.get(residual_name(path), torch.zeros(()))
            mean = start.get(residual_name(path), torch.zeros(())).double()
            for number, (update, weight) in enumerate(updates):
                a, b = (start[n].double() + update[n].double() for n in (name_a, name_b))
                own = ranks[number % len(ranks)]
                assert int(torch.linalg.matrix_rank(b @ a, rtol=1e-4)) == own
                mean = mean + weight / total * (b @ a)
            if method == "flexlora":
                u, s, v_t = torch.linalg.svd(mean)
                mean = (u[:, :rank] * s[:rank]) @ v_t[:rank]
            found = state[name_b].double() @ state[name_a].double() + residual.double()
            assert float((found - mean).abs().max()) < 1e-5 * max(1.0, float(mean.abs().max()))


def test_ranks_that_no_site_could_have_are_refused(plan: RunPlan) -> None:
    flora = plan.replace(aggregation={"method": "flora"})
    for changed, ranks in ((plan, [1, 2]), (flora, [2, 5]), (flora, [0])):
        with pytest.raises(ValueError, match="ranks"):
            changed.replace(simulation={"ranks": ranks})
