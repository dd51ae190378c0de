"""Families of backbones: loaded, trained, saved; plain peft gives the same logits by the README.

Texts are longer than any window of the models, some of them than what the models take.
"""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lorica.client.ledger import MemoryLedger
from lorica.client.mechanism.gradient_trial import require_right_gradients
from lorica.client.mechanism.noise import SeededNoise
from lorica.client.training.session import Session
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import State, pack_state
from lorica.common.backbone.loading import Backbone, backbone_of, load_backbone
from lorica.common.cache.prefix import PrefixCache, predict_logits
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import Stage
from lorica.common.plan.subject import BackbonePlan
from lorica.common.privacy.event import PrivacyEvent
from lorica.common.saved.folder import load_adapter, save_adapter
from lorica.common.tasks import task_of
from lorica.common.wire.messages import Request
from tests.families import (
    IMAGES,
    SIDE,
    TEXT,
    make_family,
    make_image_family,
    make_two_towers,
)
from tests.language_models import WORDS

REFUSED = {
    # family -> who refuses it with the modules of the list, and what the sentence names
    "funnel": (Code.BACKBONE_UNSUPPORTED, "padded"),
    "fnet": (Code.BACKBONE_UNSUPPORTED, "padded"),
    "mobilebert": (Code.BACKBONE_UNSUPPORTED, "padded"),  # a token's embedding has the next one's
    "albert": (Code.PRIVACY_UNSAFE_MODEL, "runs 3 times"),
    "xlnet": (Code.PRIVACY_UNSAFE_MODEL, "record first"),
    "longformer": (Code.PRIVACY_UNSAFE_MODEL, "record first"),
}
TRAINED = [name for name in TEXT if name not in REFUSED]
LIKE = {
    # family -> another one here whose code it shares but for names and numbers
    "xlm-roberta": "roberta",
    "mt5": "t5",
    "marian": "bart",
    "deit": "vit",
    "regnet": "resnet",
    "data2vec-vision": "beit",
    "mobilenet-v1": "mobilenet-v2",
}
NEVER = {"funnel", "fnet", "mobilebert"}


def families(names: Iterable[str]) -> list[Any]:
    """Parameters, slow where a family like it is among the fast ones."""
    return [
        pytest.param(name, marks=pytest.mark.slow(f"its code is that of {LIKE[name]}"))
        if name in LIKE
        else name
        for name in names
    ]


def text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(2, 60)))


def records(count: int) -> Records:
    draw = random.Random(0)
    labels = ["a" if row % 2 else "b" for row in range(count)]
    return Records(
        [text(draw) for _ in range(count)], labels, [str(r) for r in range(count)], [""] * count
    )


def plan_for(folder: Path, family: str, **sections: Any) -> RunPlan:
    layers: list[int] = [] if family in ("albert",) else [1, 2]
    plan = RunPlan().replace(
        backbone={"source": str(folder)},
        task={"labels": ["a", "b"]},
        adapter={"rank": 2, "layers": layers, "target_modules": TEXT[family][2]},
        training={"mode": "local", "max_length": 40},
        aggregation={"method": "fedavg"},
        rounds={"count": 2, "warm_start": 0},
        privacy={"delta": 1e-3},
    )
    return plan.replace(**sections)


def trained(plan: RunPlan, backbone: Backbone) -> State:
    """The adapter after two private steps at one site; every trained matrix has moved."""
    session = Session(plan, backbone, records(12), cache_bytes=2**22, secret=b"of the test")
    state = task_of(plan).start(backbone)
    session.read()
    session.load(state, Stage.LOCAL)
    update = session.train(1, PrivacyEvent(0.5, 0.5, 2), SeededNoise("families", 1))
    assert {name for name in update if ".lora_" in name} == {n for n in state if ".lora_" in n}
    assert all(bool(tensor.any()) for tensor in update.values())
    large = {name: 10.0 if ".lora_B." in name else 1.0 for name in update}
    return state | {name: state[name] + large[name] * update[name] for name in update}


def logits_here(plan: RunPlan, backbone: Backbone, state: State, texts: list[str]) -> torch.Tensor:
    task = task_of(plan)
    model: Any = task.model(backbone).eval()
    model.load_state(state)
    nothing = [""] * len(texts)
    encoded = task.encode(backbone, Records(texts, nothing, nothing, nothing))
    return predict_logits(model, PrefixCache(model, encoded))


def logits_by_readme(folder: Path, texts: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Logits by the code as it is printed, from its own folder; its text replaced by ours."""
    readme = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert code.count('["some text"]') == 1
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    exec(code.replace('["some text"]', repr(texts)), found)
    return found["outputs"]


def check_folder(
    folder: Path, plan: RunPlan, backbone: Backbone, state: State, patch: pytest.MonkeyPatch
) -> None:
    save_adapter(folder, state, plan, backbone)
    saved = load_adapter(folder)
    assert all(torch.equal(saved.state[name], tensor) for name, tensor in state.items())
    draw = random.Random(1)
    texts = [text(draw) for _ in range(4)] + ["patient", " ".join(WORDS * 3)]
    for given in (texts, texts[:1]):
        found = logits_by_readme(folder, given, patch)
        here = logits_here(plan, backbone, state, given)
        # reference: transformers and peft alone
        torch.testing.assert_close(here, found, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", families(TRAINED))
def test_a_family_is_trained_and_plain_peft_computes_the_same(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_family(tmp_path / family, family, pad=family != "gpt2")
    backbone = load_backbone(BackbonePlan(source=str(folder)))
    plan = plan_for(folder, family)
    state = trained(plan, backbone)
    check_folder(tmp_path / "adapter", plan, backbone, state, monkeypatch)


@pytest.mark.parametrize("family", sorted(REFUSED))
def test_what_cannot_be_trained_is_refused_before_anything_is_charged(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, named = REFUSED[family]
    folder = make_family(tmp_path / family, family)
    plan = plan_for(folder, family)
    with pytest.raises(LoricaError, match=named) as caught:
        Session(
            plan,
            load_backbone(plan.backbone),
            records(12),
            cache_bytes=2**22,
            secret=b"of the test",
        )  # before a round
    assert caught.value.code is code and caught.value.mend
    if family not in NEVER:  # its head can be trained
        head = plan_for(folder, family, adapter={"kind": "head"})
        backbone = load_backbone(head.backbone)
        state = task_of(head).start(backbone)
        check_folder(tmp_path / "adapter", head, backbone, state, monkeypatch)


SHARED = {
    "query_proj": {"share_att_key": True},
    "key_proj": {"share_att_key": True, "pos_att_type": ["c2p"]},
    "value_proj": None,
}


@pytest.mark.parametrize("module", SHARED)
def test_a_layer_that_runs_twice_is_refused_by_name_when_the_model_is_made(
    tmp_path: Path, module: str
) -> None:
    changes = SHARED[module]
    folder = make_family(tmp_path / "deberta", "deberta-v2", **(changes or {"share_att_key": True}))
    plan = plan_for(folder, "deberta-v2", adapter={"target_modules": [module]})
    backbone = load_backbone(plan.backbone)
    if changes is None:
        require_right_gradients(plan, backbone)
        return
    with pytest.raises(LoricaError, match=f"layer.1.attention.self.{module}.* runs 2") as caught:
        task_of(plan).model(backbone)
    assert caught.value.code is Code.PRIVACY_UNSAFE_MODEL


@pytest.mark.parametrize("adapter", [{}, {"target_modules": ["query_proj"]}, {"kind": "bitfit"}])
def test_of_a_group_what_runs_twice_is_left_out_and_the_rest_trained(
    tmp_path: Path, adapter: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeBERTa-v3 with the adapter that a plan has by itself; what is named is never left out."""
    folder = make_family(tmp_path / "deberta", "deberta-v2", share_att_key=True)
    usual = {"target_modules": RunPlan().adapter.target_modules}
    plan = plan_for(folder, "deberta-v2", adapter=usual | adapter)
    backbone = load_backbone(plan.backbone)
    if "target_modules" in adapter:
        with pytest.raises(LoricaError, match="runs 2 times"):
            require_right_gradients(plan, backbone)
        return
    require_right_gradients(plan, backbone)
    names = set(task_of(plan).start(backbone))
    adapted = {name.rpartition(".lora_")[0].rpartition(".self.")[2] for name in names}
    if not adapter:
        assert {"value_proj"} < adapted and not {"query_proj", "key_proj"} & adapted
        assert any("attention.output.dense" in name for name in names)
        check_folder(tmp_path / "adapter", plan, backbone, trained(plan, backbone), monkeypatch)
    else:
        assert any("value_proj.bias" in name for name in names)
        assert not any("query_proj" in name for name in names)


@pytest.mark.parametrize(
    ("family", "module"),
    [
        ("deberta-v2", "query_proj"),
        ("albert", "query"),
        ("albert", "pooler"),
        ("xlnet", "layer_1"),
    ],
)
def test_nothing_is_charged_for_a_run_whose_lora_rounds_could_not_be(
    tmp_path: Path, family: str, module: str
) -> None:
    """The first rounds train the head alone, which these backbones bear."""
    changes = {"share_att_key": True} if family == "deberta-v2" else {}
    folder = make_family(tmp_path / family, family, **changes)
    plan = plan_for(
        folder,
        family,
        adapter={"target_modules": [module]},
        training={"mode": "gradient", "lora": "always", "lora_rounds": 1},
        rounds={"count": 8, "warm_start": 0.25},
    )
    head = plan.replace(adapter={"kind": "head"})
    blob = pack_state(task_of(head).start(load_backbone(head.backbone)))
    ledger = MemoryLedger(plan.privacy.delta, unit="record")
    site = LocalTrainer(
        "a", records(12), noise=lambda run, round: SeededNoise(run, round), ledger=ledger
    )
    with pytest.raises(LoricaError) as caught:
        site.train(Request(plan, "r", 1, blob))
    assert caught.value.code is Code.PRIVACY_UNSAFE_MODEL
    assert ledger.spending().lifetime == 0


@pytest.mark.parametrize("keep", ["head", "tail", "both"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_long_texts_are_cut_as_the_readmes_code_cuts_them(
    tmp_path: Path, family: str, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_family(tmp_path / family, family)
    backbone = load_backbone(BackbonePlan(source=str(folder)))
    plan = plan_for(folder, family, training={"keep": keep, "max_length": 13})
    state = task_of(plan).start(backbone)
    check_folder(tmp_path / "adapter", plan, backbone, state, monkeypatch)


def test_a_wrong_gradient_is_found(small_backbone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer whose rule gives a record a part of another's gradient."""
    from lorica.client.mechanism import gradient_trial, per_sample

    plan = RunPlan().replace(backbone={"source": str(small_backbone)}, task={"labels": ["a", "b"]})
    backbone = load_backbone(plan.backbone)
    require_right_gradients(plan, backbone)
    right: Callable[..., None] = per_sample.store

    def mixing(parameter: Any, per_record: torch.Tensor) -> None:
        right(parameter, per_record + 0.05 * per_record.roll(1, 0))

    monkeypatch.setattr(per_sample, "store", mixing)
    monkeypatch.setattr(gradient_trial, "_TRIED", set())
    with pytest.raises(LoricaError, match="lora_B") as caught:
        require_right_gradients(plan, backbone)
    assert caught.value.code is Code.PRIVACY_UNSAFE_MODEL


def pictures(count: int) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return list(draw.integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))


def check_images(folder: Path, plan: RunPlan, patch: pytest.MonkeyPatch) -> None:
    """Train on images, save, and compare with the README's code on one image and on three."""
    task, backbone = task_of(plan), backbone_of(plan)
    given = pictures(10)
    blank = [""] * len(given)
    labels = ["a" if row % 2 else "b" for row in range(len(given))]
    whole = Records(blank, labels, [str(row) for row in range(len(given))], blank, given)
    session = Session(plan, backbone, whole, cache_bytes=2**22, secret=b"of the test")
    state = task.start(backbone)
    session.read()
    session.load(state, Stage.LOCAL)
    update = session.train(1, PrivacyEvent(0.5, 0.5, 2), SeededNoise("families", 1))
    assert update and all(bool(tensor.any()) for tensor in update.values())
    state |= {name: state[name] + 10 * tensor for name, tensor in update.items()}
    save_adapter(folder, state, plan, backbone)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    for number in range(3):
        Image.fromarray(given[number]).save(folder / f"{number}.png")
    shutil.copyfile(folder / "0.png", folder / "picture.png")
    patch.chdir(folder)
    model: Any = task.model(backbone).eval()
    model.load_state(state)
    here = predict_logits(model, PrefixCache(model, task.encode(backbone, whole)))
    opened = 'Image.open("picture.png").convert("RGB")'
    assert code.count(opened) == 1
    for count in (1, 3):
        images = [opened.replace("picture", str(number)) for number in range(count)]
        found: dict[str, Any] = {}
        exec(code if count == 1 else code.replace(opened, ", ".join(images)), found)
        # reference: transformers and peft alone
        torch.testing.assert_close(here[:count], found["outputs"], rtol=1e-4, atol=1e-4)


def image_plan_for(folder: Path, modules: list[str], layers: list[int]) -> RunPlan:
    kind = {"kind": "lora", "target_modules": modules} if modules else {"kind": "head"}
    return RunPlan().replace(
        backbone={"source": str(folder)},
        task={"kind": "image-classification", "labels": ["a", "b"]},
        adapter={"rank": 2, "layers": layers, "batch_norm": "fixed", **kind},
        training={"mode": "local"},
        aggregation={"method": "fedavg"},
        rounds={"count": 2, "warm_start": 0},
        privacy={"delta": 1e-3},
    )


@pytest.mark.parametrize("family", families(IMAGES))
def test_a_family_of_images_is_trained_and_plain_peft_computes_the_same(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, modules = make_image_family(tmp_path / family, family), IMAGES[family][2]
    layers = [-1] if modules and family != "segformer" else []
    check_images(tmp_path / "adapter", image_plan_for(folder, modules, layers), monkeypatch)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_of_two_towers_each_task_has_its_own(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_two_towers(tmp_path / kind, kind)
    modules = ["q_proj", "v_proj"]
    check_images(tmp_path / "images", image_plan_for(folder, modules, [-1]), monkeypatch)
    plan = plan_for(folder, "bart")
    backbone = backbone_of(plan)
    assert (backbone.part, backbone.processor) == ("text_model", None)
    check_folder(tmp_path / "texts", plan, backbone, trained(plan, backbone), monkeypatch)
