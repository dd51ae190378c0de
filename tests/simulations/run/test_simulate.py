"""A whole simulation: its results, its repeatability, and what becomes of a broken one."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from opacus.accountants import PRVAccountant
from rich.console import Console
from safetensors.torch import load_file

from lorica.client.training.trainer import Begun, LocalTrainer
from lorica.common.cli import main
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import load_plan, to_toml
from lorica.common.plan.stages import Stage, total_steps
from lorica.common.privacy.accountant import epsilon
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.privacy.of_plan import run_privacy
from lorica.common.saved.folder import load_adapter
from lorica.common.saved.predict import Predictor
from lorica.common.tasks.base import Metrics
from lorica.common.tasks.run_data import load_data
from lorica.common.wire.messages import Reply, Request
from lorica.server.recording.importing import import_folder
from lorica.server.results.round import RoundRecord, SiteRound
from lorica.server.store import RunStore
from lorica.simulations.run import simulate
from lorica.simulations.run.at_sites import AtSite
from lorica.simulations.run.keep import Keep
from lorica.simulations.run.simulate import Simulation, resumable
from lorica.simulations.run.sites import make_trainer
from lorica.simulations.run.summary import summarise
from tests.conftest import largest_file, make_small_backbone

ROUNDS, SITES = 3, 3
WORDS = {
    "money": ["card", "cash", "loan", "bank", "money", "lost"],
    "health": ["fever", "pain", "heart", "skin", "cough", "doctor"],
}


def write_csv(
    path: Path, rows: int, *, seed: int = 0, extra: list[list[str]] | None = None
) -> Path:
    generator = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "place"])
        for row in range(rows):
            label = ["money", "health"][row % 2]
            words = generator.choices(WORDS[label], k=generator.randint(2, 8))
            writer.writerow([" ".join(words), label, f"town {row % 4}"])
        writer.writerows(extra or [])
    return path


MODES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "gradient": ({"lora": "always", "lora_rounds": 1}, {}),
    "local": ({"mode": "local"}, {"warm_start": 0}),
}
"""Sections training and rounds. The first has one round of every stage."""


@pytest.fixture(scope="module", params=sorted(MODES))
def plan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    """Three sites of 32 records on the small backbone of tests/conftest.py."""
    training, rounds = MODES[request.param]
    folder = tmp_path_factory.mktemp("simulate")
    return RunPlan().replace(
        backbone={"source": str(make_small_backbone(folder / "backbone"))},
        adapter={"rank": 8, "layers": [1, 2]},
        data={"train": str(write_csv(folder / "data.csv", 120))},
        privacy={"epsilon": 8.0, "delta": 1e-3},
        training={"expected_batch_size": 8, "local_steps": 2, **training},
        rounds={"count": ROUNDS, **rounds},
        simulation={"sites": SITES},
    )


def quiet(file: io.StringIO | None = None) -> Console:
    return Console(file=file or io.StringIO(), width=100)


def run(plan: RunPlan, out: Path, *, report: bool = False, **how: bool) -> dict[str, Any]:
    """Without the report, which takes half of a small run's time."""
    return Simulation(plan, out, quiet()).run(report=report, **how)


def adapter_files(out: Path) -> dict[str, bytes]:
    """All files of the finished adapter."""
    found = {path.name: path.read_bytes() for path in (out / "adapter").iterdir()}
    assert "head.safetensors" in found
    return found


@pytest.fixture(scope="module")
def finished(plan: RunPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of an uninterrupted run of ``plan``."""
    out = tmp_path_factory.mktemp("finished") / "run"
    summary = run(plan, out, report=True)
    assert summary == json.loads((out / "summary.json").read_text())
    return out


def read_rounds(out: Path) -> list[dict[str, Any]]:
    lines = (out / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=lambda name: pytest.fail(name)) for line in lines]


def test_the_results_folder_is_complete(plan: RunPlan, finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"plan.toml", "rounds.jsonl", "summary.json", "report.html", "adapter"} <= names
    assert not [name for name in names if name.endswith(".tmp") or name.startswith(".")]
    stored = load_plan(finished / "plan.toml")
    size = {name: getattr(stored.rounds, name) for name in ("expected_units", "expected_sites")}
    assert stored == plan.replace(task={"labels": ["health", "money"]}, rounds=size)
    decides = plan.training.mode == "gradient" and plan.training.lora == "auto"
    assert bool(size["expected_units"]) is decides
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert "site-02" in page


def test_the_summary_holds_what_was_measured(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    rounds = read_rounds(finished)
    assert [record["round"] for record in rounds] == [0, 1, 2, 3]
    assert summary["accuracy"] == rounds[-1]["accuracy"]
    assert summary["baselines"] == {"zero_shot": rounds[0]["accuracy"]}
    assert 0 <= summary["accuracy"] <= 1
    trained = rounds[1:]
    assert all(record["sites"] and record["bytes_up"] for record in trained)
    assert summary["bytes_up_per_round"] == sum(r["bytes_up"] for r in trained) / ROUNDS
    assert summary["bytes_down_per_round"] == sum(r["bytes_down"] for r in trained) / ROUNDS
    assert summary["seconds"] == pytest.approx(sum(record["seconds"] for record in rounds))
    assert summary["peak_rss_bytes"] > 50_000_000, "bytes, and torch is loaded"
    cost = summary["cost"]
    assert cost["cpu_seconds"] > 0
    assert set(cost["seconds_by_site"]) == set(summary["epsilon"])
    for site, seconds in cost["seconds_by_site"].items():
        by_round = [s["seconds"] for r in rounds for s in r["sites"] if s["site"] == site]
        assert seconds == pytest.approx(sum(by_round)) and seconds > 0
    worst = summary["worst"]["site"]
    assert worst["score"] == min(summary["score_at_sites"].values())
    assert summary["score_at_sites"][worst["name"]] == worst["score"]
    assert summary["seed"] == 0
    assert summary["noise"] == "seeded"
    assert summary["versions"]["torch"] == torch.__version__
    assert {"python", "lorica", "flwr", "opacus"} <= set(summary["versions"])
    assert summary["plan_fingerprint"] == resumable(finished).fingerprint
    assert set(summary["epsilon"]) == {"site-00", "site-01", "site-02"}


def test_the_stated_epsilon_is_right(plan: RunPlan, finished: Path) -> None:
    """Against Opacus' PRV accountant on every stage's recorded σ, q and steps, within 1 %."""
    summary = json.loads((finished / "summary.json").read_text())
    figures = summary["privacy"]["site-00"]
    assert all(other == figures for other in summary["privacy"].values()), "equal sites"
    local = plan.training.mode == "local"
    stages = [Stage.LOCAL] if local else [Stage.CLASS_SUMS, Stage.HEAD, Stage.LORA]
    events = figures["events"]
    assert [event["stage"] for event in events] == [stage.value for stage in stages]
    assert figures["steps"] == total_steps(plan) == sum(event["steps"] for event in events)
    rates = [8 / figures["records"]] if local else [1.0, 1.0, plan.lora_sample_rate]
    assert [event["sample_rate"] for event in events] == rates
    for round, stated in enumerate(figures["epsilon_by_round"], 1):
        reference = PRVAccountant()
        left = figures["steps"] * round // ROUNDS  # every round of either plan has equally many
        for event in events:
            done = min(event["steps"], left)
            left -= done
            if done:
                history = (event["noise_multiplier"], event["sample_rate"], done)
                reference.history.append(history)
        independent = reference.get_epsilon(figures["delta"], eps_error=5e-3)
        assert stated == pytest.approx(independent, rel=0.01, abs=6e-3)
    for spent in summary["epsilon"].values():
        assert spent == figures["epsilon_by_round"][-1]
        assert 0.98 * 8.0 <= spent <= 8.0, "the budget is used, and kept"


def test_a_site_that_was_absent_is_charged_for_its_own_rounds_alone(plan: RunPlan) -> None:
    """Asked in the last two rounds: what they cost, not what the first two do."""
    data = load_data(plan)
    full = plan.replace(task={"labels": ["health", "money"]})
    trainer = make_trainer("late", data.train, full)
    cost = run_privacy(full, len(data.train))
    there = [SiteRound("late", "ok")]
    rounds = [RoundRecord(0), RoundRecord(1), RoundRecord(2, there), RoundRecord(3, there)]
    quality = {"late": AtSite(0.5, Metrics({"accuracy": 0.5}))}
    trainers = {"late": trainer}
    summary = summarise(full, rounds, {}, {"late": cost}, trainers, data, quality)
    figures = summary["privacy"]["late"]
    own = [cost.of_round(2), cost.of_round(3)]
    delta = full.privacy.delta
    expected = [0.0, epsilon(own[:1], delta), epsilon(own, delta)]
    assert figures["epsilon_by_round"] == expected
    recorded = [
        PrivacyEvent(event["noise_multiplier"], event["sample_rate"], event["steps"])
        for event in figures["events"]
    ]
    assert epsilon(recorded, delta) == summary["epsilon"]["late"] == expected[-1]


def test_the_stated_epsilon_is_that_of_the_ledgers_when_rounds_ask_a_share_of_the_sites(
    plan: RunPlan, tmp_path: Path
) -> None:
    """Evaluations charge every site, also those that their round did not ask to train; so in the
    summary, in the run store, and in the store when the folder is taken in afterwards."""
    shared = plan.replace(
        rounds={"count": 4, "fraction": 0.5, "evaluate_every": 1},
        privacy={"evaluation_share": 0.5},
        data={"validation": 0.5},
        simulation={"sites": 4, "workers": 1},
    )
    store = RunStore.open(str(tmp_path / "runs.sqlite"))
    simulation = Simulation(shared, tmp_path / "run", quiet(), keep=Keep(store))
    summary = simulation.run(report=False)
    plan = simulation.plan
    charged = {
        site: epsilon(trainer._ledger_of(plan).history().events(), plan.privacy.delta)
        for site, trainer in simulation._trainers.items()
    }
    assert len({record["sites"][0]["site"] for record in read_rounds(tmp_path / "run")[1:]}) > 1
    assert len(set(charged.values())) > 1, "some sites trained more often"
    assert summary["epsilon"] == pytest.approx(charged, rel=1e-6)
    assert all(figures["evaluations"] == 4 for figures in summary["privacy"].values())
    (run,) = store.list_runs().items
    imported = RunStore.open(str(tmp_path / "imported.sqlite"))
    taken_in = import_folder(imported, tmp_path / "run", None)
    for kept, run_id in ((store, run.run_id), (imported, taken_in)):
        assert kept.run(run_id).epsilon_spent == pytest.approx(max(charged.values()), rel=1e-6)
    told = {site.name: sums.epsilon for site, sums in store.run_sites(run.run_id)}
    assert told == pytest.approx(charged, rel=1e-6)


def test_the_adapter_is_that_of_the_last_round_and_classifies(finished: Path) -> None:
    saved = load_adapter(finished / "adapter").state
    checkpoint = load_file(finished / "checkpoint.safetensors")
    remembered = [name for name in checkpoint if name.startswith("optimizer/")]
    assert bool(remembered) == (load_plan(finished / "plan.toml").training.mode == "gradient")
    for name in remembered:
        del checkpoint[name]
    assert saved.keys() == checkpoint.keys()
    assert all(torch.equal(saved[name], checkpoint[name]) for name in saved)
    predictions = Predictor(finished / "adapter")(["fever and pain", "a new card"])
    assert {prediction.label for prediction in predictions} <= {"money", "health"}


def test_the_same_plan_gives_the_same_adapter_to_the_byte(
    plan: RunPlan, finished: Path, tmp_path: Path
) -> None:
    run(plan, tmp_path / "run")
    assert adapter_files(tmp_path / "run") == adapter_files(finished)


def test_the_coordinator_tests_as_often_as_the_plan_says(
    plan: RunPlan, finished: Path, tmp_path: Path
) -> None:
    """Before the first round, after every second and the last; training is what it was."""
    Simulation(plan.replace(rounds={"test_every": 2}), tmp_path, quiet()).run(report=False)
    found, always = read_rounds(tmp_path), read_rounds(finished)
    for record, whole in zip(found, always, strict=True):
        if record["round"] % 2 == 0 or record["round"] == ROUNDS:
            assert record["accuracy"] == whole["accuracy"]
        else:
            assert record["accuracy"] is None
    assert not (tmp_path / "report.html").exists()


def test_another_seed_gives_another_adapter(plan: RunPlan, finished: Path, tmp_path: Path) -> None:
    run(plan.replace(simulation={"seed": 1}), tmp_path / "run")
    name = "head.safetensors"
    assert adapter_files(tmp_path / "run")[name] != adapter_files(finished)[name]


def test_seeded_noise_is_another_for_every_seed_run_site_and_round(plan: RunPlan) -> None:
    """What a site adds to zeros; equal only when all four are."""

    def drawn(seed: int = 0, run: str = "r", site: str = "a", round: int = 1) -> bytes:
        held = Records(["a card"], ["money"], ["0"], [""])
        made = make_trainer(site, held, plan.replace(simulation={"seed": seed}))
        return made._noise(run, round).add_noise(torch.zeros(8), 1.0).numpy().tobytes()

    others = [drawn(seed=1), drawn(run="s"), drawn(site="b"), drawn(round=2)]
    assert drawn() == drawn()
    assert len({drawn(), *others}) == 5


def test_secure_noise_differs_from_run_to_run_and_costs_the_same(
    plan: RunPlan, finished: Path, tmp_path: Path
) -> None:
    secure = plan.replace(simulation={"noise": "secure"})
    summaries = [run(secure, tmp_path / name) for name in ("one", "two")]
    heads = [adapter_files(tmp_path / name)["head.safetensors"] for name in ("one", "two")]
    assert heads[0] != heads[1]
    stated = json.loads((finished / "summary.json").read_text())["epsilon"]
    assert all(summary["epsilon"] == stated for summary in summaries)
    assert {summary["noise"] for summary in summaries} == {"secure"}
    assert load_adapter(finished / "adapter").seeded
    assert not load_adapter(tmp_path / "one" / "adapter").seeded


@pytest.mark.parametrize("method", ["fedavg", "ffa"])
def test_every_method_learns_what_can_be_learnt(plan: RunPlan, tmp_path: Path, method: str) -> None:
    """Without privacy, on texts that a linear head can tell apart, it learns them."""
    easy = plan.replace(
        aggregation={"method": method},
        privacy={"epsilon": float("inf")},
        training={"lora_rounds": 3},
        rounds={"count": 6},
    )
    summary = run(easy, tmp_path / "run")
    assert summary["method"] == method
    assert set(summary["epsilon"].values()) == {"inf"}
    assert summary["accuracy"] > max(0.7, summary["baselines"]["zero_shot"])


# Broken runs.


class Interrupting(io.StringIO):
    """A terminal at which somebody presses Ctrl-C when a line begins so."""

    def __init__(self, line: str) -> None:
        super().__init__()
        self._line = line

    def write(self, text: str) -> int:
        if text.startswith(self._line):
            raise KeyboardInterrupt
        return super().write(text)


@pytest.mark.parametrize("round", [0, 1, ROUNDS])
def test_a_run_interrupted_between_rounds_ends_as_if_it_had_not_been(
    plan: RunPlan, finished: Path, tmp_path: Path, round: int
) -> None:
    """Against the uninterrupted run, to the byte."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        Simulation(plan, out, quiet(Interrupting(f"round {round}/"))).run()
    assert len(read_rounds(out)) == round + 1
    assert not (out / "adapter").exists()
    summary = run(resumable(out), out, resume=True)
    assert adapter_files(out) == adapter_files(finished)
    assert [record["round"] for record in read_rounds(out)] == list(range(ROUNDS + 1))
    expected = json.loads((finished / "summary.json").read_text())
    for key in ("accuracy", "epsilon", "privacy", "baselines", "bytes_up_per_round"):
        assert summary[key] == expected[key]


@pytest.fixture(scope="module")
def remembering(plan: RunPlan, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunPlan, Path]:
    """An uninterrupted run whose steps depend on those before: class sums, 3 head, 3 LoRA; or 7
    of local steps."""
    training = {"lora_rounds": 3} if plan.training.mode == "gradient" else {}
    optimizer = {"momentum": 0.9, "local_optimizer": "fedadam"}
    if plan.training.mode == "gradient":
        optimizer["local_optimizer"] = "none"
    longer = plan.replace(training=training, rounds={"count": 7}, server=optimizer)
    out = tmp_path_factory.mktemp("remembering") / "run"
    run(longer, out)
    return longer, out


@pytest.mark.parametrize("round", [1, 2, 3, 4, 5, 6])
def test_a_run_resumed_in_any_stage_remembers_its_steps(
    remembering: tuple[RunPlan, Path], tmp_path: Path, round: int
) -> None:
    """Within the head's rounds, between stages and within the LoRA rounds; to the byte."""
    plan, whole = remembering
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        Simulation(plan, out, quiet(Interrupting(f"round {round}/"))).run()
    assert len(read_rounds(out)) == round + 1
    run(resumable(out), out, resume=True)
    assert adapter_files(out) == adapter_files(whole)
    name = "checkpoint.safetensors"
    assert load_file(out / name).keys() == load_file(whole / name).keys()
    for key, tensor in load_file(whole / name).items():
        assert torch.equal(load_file(out / name)[key], tensor), key


@pytest.mark.parametrize("call", [1, SITES + 2], ids=["first round", "second round"])
def test_a_run_interrupted_within_a_round_repeats_that_round(
    plan: RunPlan,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: int,
) -> None:
    """Sites that had answered answer the same again."""
    calls = iter(range(1, 100))
    begin = LocalTrainer._begin_training  # what a site does first, alone or beside others

    def interrupted(self: LocalTrainer, request: Request) -> Begun | Reply:
        if next(calls) == call:
            raise KeyboardInterrupt
        return begin(self, request)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(LocalTrainer, "_begin_training", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(plan, out)
    assert len(read_rounds(out)) == 1 + (call > SITES)
    run(resumable(out), out, resume=True)
    assert adapter_files(out) == adapter_files(finished)


def test_a_finished_run_resumed_stays_as_it_is(finished: Path, tmp_path: Path) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    before = json.loads((out / "summary.json").read_text())
    again = run(resumable(out), out, resume=True)
    assert adapter_files(out) == adapter_files(finished)
    assert again | {"peak_rss_bytes": 0} == before | {"peak_rss_bytes": 0}


COMMAND = "from lorica.common.cli import main; main()"


def command(*arguments: str) -> subprocess.Popen[str]:
    """The ``lorica`` command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        # A shell starts its background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )


def resume_on_a_full_disk(out: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of ``lorica simulate --resume`` when no file may pass ``size`` bytes."""
    monkeypatch.setattr(sys, "argv", ["lorica", "simulate", "--resume", str(out)])
    with largest_file(size), pytest.raises(SystemExit) as ended:
        main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.process
def test_ctrl_c_keeps_whole_rounds_and_says_how_to_go_on(plan: RunPlan, tmp_path: Path) -> None:
    """A real SIGINT, then --resume; against an uninterrupted run, to the byte."""
    longer = plan.replace(rounds={"count": 8}, privacy={"epsilon": float("inf")})
    (tmp_path / "plan.toml").write_text(to_toml(longer), encoding="utf-8")
    out = tmp_path / "run"
    process = command("simulate", str(tmp_path / "plan.toml"), "--out", str(out))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("round 1/"):
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert f"lorica simulate --resume {out}" in rest
    assert "Traceback" not in errors
    done = len(read_rounds(out)) - 1
    assert 1 <= done < 8

    run(resumable(out), out, resume=True)
    run(longer, tmp_path / "whole")
    assert adapter_files(out) == adapter_files(tmp_path / "whole")


def test_a_disk_that_fills_ends_the_run_with_its_code_and_can_be_resumed(
    plan: RunPlan,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Round 2 cannot be written; against the uninterrupted run, to the byte."""
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        Simulation(plan, out, quiet(Interrupting("round 1/"))).run()
    checkpoint = (out / "checkpoint.safetensors").read_bytes()
    room = (out / "rounds.jsonl").stat().st_size + 100  # for no further line
    assert resume_on_a_full_disk(out, room, monkeypatch) == 16
    assert "error LOR-601" in capsys.readouterr().err
    assert (out / "checkpoint.safetensors").read_bytes() == checkpoint
    run(resumable(out), out, resume=True)
    assert adapter_files(out) == adapter_files(finished)


def test_a_disk_that_fills_while_the_adapter_is_saved_has_its_code_too(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A finished run resumed: only the adapter and reports are written again."""
    out = shutil.copytree(finished, tmp_path / "run")
    room = (out / "rounds.jsonl").stat().st_size
    assert (out / "adapter" / "adapter_model.safetensors").stat().st_size > room
    assert resume_on_a_full_disk(out, room, monkeypatch) == 16
    assert "error LOR-601" in capsys.readouterr().err
    assert adapter_files(out) == adapter_files(finished), "the adapter that was there is kept"
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def test_a_run_replaced_by_force_takes_nothing_else_with_it(
    plan: RunPlan, finished: Path, tmp_path: Path
) -> None:
    """Results may lie in a folder that holds a person's own files."""
    out = shutil.copytree(finished, tmp_path / "mine")
    (out / "adapter" / "head.safetensors").unlink()
    (out / "my-data.csv").write_text("text,label\n")
    (out / "notes").mkdir()
    (out / "notes" / "a.txt").write_text("irreplaceable")
    run(plan, out, replace=True)
    assert adapter_files(out) == adapter_files(finished)
    assert len(read_rounds(out)) == ROUNDS + 1
    assert (out / "my-data.csv").read_text() == "text,label\n"
    assert (out / "notes" / "a.txt").read_text() == "irreplaceable"


# Baselines, and what is refused before a run begins.


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Waits for sites that never come are cut short."""
    monkeypatch.setattr(simulate, "_NODES_SECONDS", 0.5)
    yield


@pytest.mark.parametrize(("asked", "minimum"), [("all", 1), ("alone", SITES)])
def test_all_baselines_are_trained_and_named(
    plan: RunPlan, tmp_path: Path, impatient: None, asked: str, minimum: int
) -> None:
    """Whatever rounds.minimum_sites asks of the federation: a baseline has one site. Sites' own
    models are made for "all" alone."""
    out = tmp_path / "run"
    every = plan.replace(
        simulation={"baselines": asked}, rounds={"minimum_sites": minimum, "count": 2}
    )
    summary = run(every, out)
    found = summary["baselines"]
    assert ("benefit" in summary) == (asked == "all")
    assert set(found) == {"zero_shot", "alone", "alone_mean", "pooled_without_privacy"}
    assert set(found["alone"]) == {"site-00", "site-01", "site-02"}
    assert found["alone_mean"] == pytest.approx(sum(found["alone"].values()) / SITES)
    figures = [*found["alone"].values(), found["pooled_without_privacy"], found["zero_shot"]]
    assert all(0 <= figure <= 1 for figure in figures)
    plans = {path.parent.name: load_plan(path) for path in (out / "baselines").glob("*/plan.toml")}
    assert len(plans) == SITES + 1
    assert plans.pop("pooled").privacy.epsilon == float("inf")
    assert {one.privacy.epsilon for one in plans.values()} == {8.0}
    for name in plans:
        assert len(read_rounds(out / "baselines" / name)) == 3


@pytest.mark.parametrize("workers", [1, 2])
def test_interrupted_baselines_are_resumed(plan: RunPlan, tmp_path: Path, workers: int) -> None:
    """Against an uninterrupted run: same accuracies. With more than one worker they run side by
    side, and the interrupt comes when the first of them has ended."""
    every = plan.replace(
        simulation={"baselines": "alone", "workers": workers},
        rounds={"count": 2},
        privacy={"epsilon": float("inf")},
    )
    whole = run(every, tmp_path / "whole")
    out = tmp_path / "run"
    file = Interrupting("Baseline: site-01")
    with pytest.raises(KeyboardInterrupt):
        Simulation(every, out, quiet(file)).run()
    assert run(resumable(out), out, resume=True)["baselines"] == whole["baselines"]


def test_more_minimum_sites_than_sites_are_refused_before_anything_is_written(
    plan: RunPlan, tmp_path: Path, impatient: None
) -> None:
    too_many = plan.replace(rounds={"minimum_sites": SITES + 1})
    with pytest.raises(LoricaError) as caught:
        run(too_many, tmp_path / "run")
    assert caught.value.code in (Code.TOO_FEW_SITES, Code.PLAN_BAD_VALUE)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_label_that_occurs_once_is_part_of_the_run(
    plan: RunPlan, tmp_path: Path, part: str
) -> None:
    """Wherever the seed puts its one record: among the training or the test records."""
    source = write_csv(tmp_path / "data.csv", 100, extra=[["the only rash", "rare", "x"]])
    rare = plan.replace(data={"train": str(source)}, privacy={"epsilon": float("inf")})
    seeds = (rare.replace(simulation={"seed": seed}) for seed in range(99))
    chosen = next(one for one in seeds if "rare" in getattr(load_data(one), part).labels)
    simulation = Simulation(chosen, tmp_path / "run", quiet())
    assert simulation.plan.task.labels == ["health", "money", "rare"]


@pytest.mark.slow("starts Flower's simulation engine, with Ray")
@pytest.mark.xdist_group("ray")  # one after another: each takes the machine's cores
def test_flowers_engine_gives_the_same_adapter(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray against in-process, to 1e-4: sums may be taken in another order."""
    monkeypatch.chdir(tmp_path)
    Path("data.csv").write_bytes(Path(plan.data.train).read_bytes())
    relative = plan.replace(data={"train": "data.csv"}, rounds={"minimum_sites": SITES})
    expected = run(relative, Path("in-process"))
    on_ray = relative.replace(simulation={"engine": "ray"})
    Path("ray.toml").write_text(to_toml(on_ray), encoding="utf-8")
    process = command("simulate", "ray.toml", "--out", "ray")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    reference = load_file("in-process/checkpoint.safetensors")
    for name, tensor in load_file("ray/checkpoint.safetensors").items():
        assert torch.allclose(tensor, reference[name], rtol=0, atol=1e-4), name
    assert json.loads(Path("ray/summary.json").read_text())["epsilon"] == expected["epsilon"]
    assert all(len(record["sites"]) == SITES for record in read_rounds(Path("ray"))[1:])
