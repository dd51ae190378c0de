"""Simulations and sweeps in the run store and in trackers, with real training on a tiny model."""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import to_toml
from lorica.server.recording.importing import import_folder
from lorica.server.recording.recording import Recording
from lorica.server.recording.spending import CostOf
from lorica.server.store import RunStore
from lorica.simulations.run.keep import Keep
from lorica.simulations.run.simulate import Simulation
from lorica.simulations.sweep.page import PAGE, PICTURE
from lorica.simulations.sweep.run import run_sweep
from tests.conftest import make_small_backbone

WORDS = {"money": ["card", "cash", "loan", "bank"], "health": ["fever", "pain", "heart", "skin"]}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    """Two sites, three rounds."""
    folder, dice = tmp_path_factory.mktemp("keep"), random.Random(0)
    rows = [
        f"{' '.join(dice.choices(words, k=5))},{label}"
        for _ in range(40)
        for label, words in WORDS.items()
    ]
    (folder / "data.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return RunPlan().replace(
        backbone={"source": str(make_small_backbone(folder / "backbone"))},
        adapter={"kind": "head"},
        data={"train": str(folder / "data.csv")},
        privacy={"delta": 1e-3},
        training={"lora": "never"},
        rounds={"count": 3},
        simulation={"sites": 2},
    )


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore.open(str(tmp_path / "runs.sqlite"))


def quiet() -> Console:
    return Console(file=io.StringIO(), width=100)


def test_a_simulation_is_kept_whole(plan: RunPlan, store: RunStore, tmp_path: Path) -> None:
    """ε by site and round is that of the simulation's own summary."""
    summary = Simulation(plan, tmp_path / "run", quiet(), keep=Keep(store)).run()
    (run,) = store.list_runs().items
    run = store.run(run.run_id)
    assert (run.status, run.kind, run.name, run.rounds_done) == ("finished", "simulation", "run", 3)
    assert run.summary == summary and run.versions["lorica"]
    assert run.score == summary["score"]
    for site, points in store.site_curves(run.run_id, "epsilon").items():
        spent = summary["privacy"][site]["epsilon_by_round"]
        assert [value for _, value in points] == pytest.approx(spent)
    rounds = store.rounds(run.run_id)
    assert [row.stage for row in rounds] == ["", "class sums", "head", "head"]
    assert all(row.mean_norm and row.noise_norm and row.exact for row in rounds[1:])
    names = {artefact.name for artefact in store.artefacts(run.run_id)}
    assert {"plan.toml", "report.html", "summary.json", "adapter/head.safetensors"} <= names
    path = store.artefact_path(run.run_id, "adapter/head.safetensors")
    assert path.is_file()
    assert all(site.virtual for site, _ in store.run_sites(run.run_id))


def test_a_stop_ends_a_simulation_that_can_be_resumed(
    plan: RunPlan, store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked after the first round; resumed it is one run, with every round once."""
    monkeypatch.setattr("lorica.server.recording.observer._POLL_SECONDS", 0.02)
    out, keep = tmp_path / "run", Watched(store)
    simulation = Simulation(plan, out, quiet(), keep=keep)
    evaluate, calls = simulation._evaluate, iter(range(10))

    def asked_to_stop(state: object) -> object:
        if next(calls) == 2:
            store.request_stop(keep.kept[0].run_id, by="ada")
            until = time.monotonic() + 10
            while not keep.kept[0].stop():
                assert time.monotonic() < until
                time.sleep(0.01)
        return evaluate(state)  # type: ignore[arg-type]

    monkeypatch.setattr(simulation, "_evaluate", asked_to_stop)
    with pytest.raises(LoricaError) as caught:
        simulation.run(report=False)
    assert caught.value.code is Code.RUN_STOPPED
    (run,) = store.list_runs().items
    assert (run.status, run.rounds_done, run.stop_requested_by) == ("stopped", 2, "ada")
    Simulation(plan, out, quiet(), keep=keep).run(resume=True, report=False)
    (run,) = store.list_runs().items
    assert (run.status, run.rounds_done) == ("finished", 3)
    assert [row.round for row in store.rounds(run.run_id)] == [0, 1, 2, 3]


class Watched(Keep):
    """Gives away what it keeps."""

    def __init__(self, store: RunStore) -> None:
        super().__init__(store)
        self.kept: list[Recording] = []

    @contextlib.contextmanager
    def run(self, plan: RunPlan, folder: Path, *, cost_of: CostOf) -> Iterator[Recording]:
        with super().run(plan, folder, cost_of=cost_of) as recording:
            self.kept.append(recording)
            yield recording


def test_the_results_are_the_same_with_a_store_and_without(
    plan: RunPlan, store: RunStore, tmp_path: Path
) -> None:
    kept = Simulation(plan, tmp_path / "kept", quiet(), keep=Keep(store)).run(report=False)
    alone = Simulation(plan, tmp_path / "alone", quiet()).run(report=False)
    assert kept["loss"] == alone["loss"] and kept["epsilon"] == alone["epsilon"]
    files = [
        (tmp_path / name / "adapter" / "head.safetensors").read_bytes()
        for name in ("kept", "alone")
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_baselines_belong_to_their_simulation(
    plan: RunPlan, store: RunStore, tmp_path: Path, workers: int
) -> None:
    """Also where they run in processes of their own, side by side."""
    every = plan.replace(simulation={"baselines": "alone", "workers": workers}, rounds={"count": 2})
    Simulation(every, tmp_path / "run", quiet(), keep=Keep(store)).run()
    (run,) = store.list_runs().items
    baselines = store.list_runs(parent=run.run_id).items
    assert [b.kind for b in baselines] == ["baseline"] * 3
    assert {b.status for b in baselines} == {"finished"}
    assert [b.epsilon for b in baselines].count(None) == 1  # pooled, without privacy


def test_a_sweep_is_the_parent_of_its_runs_and_goes_on(
    plan: RunPlan, store: RunStore, tmp_path: Path
) -> None:
    settings = {
        "backbone.source": plan.backbone.source,
        "data.train": plan.data.train,
        "adapter.kind": "head",
        "training.lora": "never",
        "privacy.delta": 1e-3,
        "rounds.count": 2,
        "simulation.sites": 2,
    }
    rows = "\n".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in settings.items())
    file = tmp_path / "sweep.toml"
    file.write_text(
        f'name = "two budgets"\naxes = {{ "privacy.epsilon" = [2, 8] }}\n[settings]\n{rows}\n'
        "[variants.head]\n"
    )
    for _ in range(2):
        run_sweep(file, tmp_path / "out", quiet(), store=store)
        (sweep,) = store.list_runs().items
        assert (sweep.kind, sweep.status, sweep.rounds_done) == ("sweep", "finished", 2)
        runs = store.list_runs(parent=sweep.run_id).items
        assert [(run.kind, run.epsilon) for run in runs] == [("sweep-run", 8.0), ("sweep-run", 2.0)]
        (difference,) = store.differences([run.run_id for run in runs])
        assert difference.key == "privacy.epsilon"
        files = {item.name: item.kind for item in store.artefacts(sweep.run_id)}
        assert files == {"sweep.json": "records", PAGE: "report", PICTURE: "report"}


@pytest.mark.parametrize("earlier", [False, True], ids=["now", "by an earlier version"])
def test_a_score_on_test_data_is_never_one_on_validation_data(
    plan: RunPlan, tmp_path: Path, earlier: bool
) -> None:
    """The same file with another ``score``, in the same folder; and back, which runs nothing."""
    out = tmp_path / "out"
    settings = {
        "backbone.source": plan.backbone.source,
        "data.train": plan.data.train,
        "adapter.kind": "head",
        "training.lora": "never",
        "privacy.delta": 1e-3,
        "rounds.count": 1,
        "simulation.sites": 2,
    }
    rows = "\n".join(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in settings.items())

    def test_records(score: str) -> dict[str, int]:
        file = tmp_path / "sweep.toml"
        file.write_text(f'score = "{score}"\nreports = false\n[settings]\n{rows}\n[variants.v]\n')
        run_sweep(file, out, quiet())
        assert json.loads((out / "sweep.json").read_text())["score"] == score
        found = sorted(out.glob("runs/*/summary.json"))
        return {at.parent.name: json.loads(at.read_text())["test_records"] for at in found}

    ((chosen, few),) = test_records("validation").items()
    if earlier:
        bare = chosen.removesuffix("-validation")
        (out / "runs" / chosen).rename(out / "runs" / bare)
    both = test_records("test")
    assert both.pop(chosen) == few
    ((measured, more),) = both.items()
    assert measured == chosen.removesuffix("-validation") and more != few
    begun = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}
    for score in ("validation", "test"):
        test_records(score)
    assert begun == {path: path.stat().st_mtime_ns for path in out.glob("runs/*/summary.json")}


def test_a_folder_that_was_never_kept_can_be_taken_in(
    plan: RunPlan, store: RunStore, tmp_path: Path
) -> None:
    """What import gives equals what keeping it from the start gives; twice changes nothing."""
    Simulation(plan, tmp_path / "kept", quiet(), keep=Keep(store)).run()
    kept = store.list_runs().items[0]
    Simulation(plan, tmp_path / "alone", quiet()).run()
    run_id = import_folder(store, tmp_path / "alone")
    assert import_folder(store, tmp_path / "alone") == run_id
    run = store.run(run_id)
    for name in ("kind", "status", "rounds_done", "score", "bytes_up", "epsilon_spent", "method"):
        assert getattr(run, name) == getattr(kept, name), name
    assert store.curves(run_id, ("score", "epsilon")) == store.curves(
        kept.run_id, ("score", "epsilon")
    )
    with pytest.raises(LoricaError) as caught:
        import_folder(store, tmp_path)
    assert caught.value.code is Code.RUN_NOT_RESUMABLE


def test_mlflow_and_tensorboard_get_plan_and_rounds(plan: RunPlan, tmp_path: Path) -> None:
    """Read back with their own readers, against rounds.jsonl."""
    mlflow = pytest.importorskip("mlflow.tracking")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    trackers = [f"mlflow:{uri}", f"tensorboard:{tmp_path / 'boards'}"]
    out = tmp_path / "run"
    Simulation(plan, out, quiet(), keep=Keep(trackers=trackers)).run()
    losses = [json.loads(line)["loss"] for line in (out / "rounds.jsonl").read_text().splitlines()]
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("lorica")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["privacy.epsilon"] == "8.0"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == list(enumerate(losses))
    (folder,) = (tmp_path / "boards").iterdir()
    events = reader.EventAccumulator(str(folder)).Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert "privacy/epsilon" in events.Tags()["scalars"]


@pytest.mark.parametrize("text", ["wandb:x", "mlflow", "mlflow:", "mlflow:nowhere://x"])
def test_a_tracker_that_cannot_be_is_refused_before_training(
    plan: RunPlan, tmp_path: Path, text: str
) -> None:
    with pytest.raises(LoricaError) as caught:
        Simulation(plan, tmp_path / "run", quiet(), keep=Keep(trackers=[text])).run()
    assert caught.value.code is Code.TRACKER_FAILED
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


def test_a_default_store_that_does_not_open_stops_nobody(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plan: RunPlan,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import sys

    from lorica.common.cli import main

    (tmp_path / "broken.sqlite").write_text("no database " * 400)
    monkeypatch.setenv("LORICA_STORE", str(tmp_path / "broken.sqlite"))
    (tmp_path / "plan.toml").write_text(to_toml(plan))
    command = ["lorica", "simulate", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert (tmp_path / "run" / "report.html").exists()
    monkeypatch.setattr(
        sys,
        "argv",
        [*command[:-1], str(tmp_path / "b"), "--store", str(tmp_path / "broken.sqlite")],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 18
    assert "LOR-801" in capsys.readouterr().err
