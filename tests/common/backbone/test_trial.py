"""What a trial of a model at load finds wrong is refused in a sentence, with what would mend it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from lorica.common.backbone import trial
from lorica.common.backbone.loading import backbone_of, load_backbone, made_up_inputs
from lorica.common.errors import Code
from lorica.common.plan import RunPlan
from lorica.common.plan.subject import BackbonePlan
from lorica.common.tasks.inputs import encode
from tests.families import make_family, make_image_family, make_two_towers, write_processor
from tests.images import make_image_backbone

Refuses = Callable[[Code, Callable[[], object]], str]


def plan_of(folder: Path) -> BackbonePlan:
    return BackbonePlan(source=str(folder))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_tokens_without_an_embedding_are_refused_by_name(
    small_backbone: Path, refuses: Refuses, count: int
) -> None:
    longer = transformers.AutoTokenizer.from_pretrained(small_backbone)
    longer.add_tokens([f"parcel{number}" for number in range(count)])
    longer.save_pretrained(small_backbone)
    detail = refuses(Code.BACKBONE_UNSUPPORTED, lambda: load_backbone(plan_of(small_backbone)))
    assert "parcel0" in detail and str(count) in detail


def test_a_special_token_that_no_text_has_needs_no_embedding(small_backbone: Path) -> None:
    longer = transformers.AutoTokenizer.from_pretrained(small_backbone)
    rows = len(longer)
    longer.add_special_tokens({"pad_token": "<pad>", "mask_token": "<mask>"})
    longer.save_pretrained(small_backbone)
    backbone = load_backbone(plan_of(small_backbone))
    assert backbone.tokenizer.pad_token_id < rows
    spelt = encode(backbone, ["card <mask> <pad> lost", "card"], 16)
    assert max(int(ids.max()) for ids in spelt.tokens) < rows
    ids, mask = spelt.collate([0, 1])
    assert backbone.model(ids, mask).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("family", ["xlnet", "bloom", "t5"])
def test_models_without_a_limit_of_length_take_any_text(tmp_path: Path, family: str) -> None:
    backbone = load_backbone(plan_of(make_family(tmp_path / family, family)))
    long = encode(backbone, ["sky " * 300], 250)
    assert len(long.tokens[0]) == 250
    ids, mask = long.collate([0])
    states = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert states.isfinite().all()


@pytest.mark.parametrize("family", ["t5", "bart", "marian"])
def test_of_an_encoder_decoder_the_encoder_is_taken(tmp_path: Path, family: str) -> None:
    folder = make_family(tmp_path / family, family)
    backbone = load_backbone(plan_of(folder))
    assert backbone.part == "encoder" and backbone.hidden_size == 16
    whole = transformers.AutoModel.from_pretrained(folder).eval()
    inputs = made_up_inputs(backbone)
    with torch.no_grad():
        wanted = whole.get_encoder()(**inputs).last_hidden_state
        found = backbone.model(**inputs).last_hidden_state
    torch.testing.assert_close(found, wanted)  # reference: plain transformers


def test_a_model_that_was_saved_as_an_encoder_alone_is_loaded(tmp_path: Path) -> None:
    folder = make_family(tmp_path / "t5", "t5")
    encoder = transformers.T5EncoderModel.from_pretrained(folder)
    encoder.save_pretrained(tmp_path / "encoder")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "encoder" / name).write_bytes((folder / name).read_bytes())
    backbone = load_backbone(plan_of(tmp_path / "encoder"))
    ids, mask = torch.tensor([[7, 8, 9]]), torch.ones(1, 3, dtype=torch.int64)
    wanted = encoder.eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    found = backbone.model(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("make", ["speech", "masking", "protein"])
def test_what_works_otherwise_is_refused_in_a_sentence(
    tmp_path: Path, make: str, refuses: Refuses
) -> None:
    folder = tmp_path / make
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    if make == "speech":  # reads sounds
        make_family(folder, "bert")
        config = transformers.WhisperConfig(
            vocab_size=60, d_model=16, encoder_layers=1, decoder_layers=1,
            encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
            decoder_ffn_dim=16, num_mel_bins=8, max_source_positions=20, max_target_positions=20,
            pad_token_id=0, bos_token_id=2, eos_token_id=3, decoder_start_token_id=2,
        )  # fmt: skip
        transformers.WhisperModel(config).save_pretrained(folder)
    elif make == "masking":  # hides patches at random
        write_processor(folder)
        config = transformers.ViTMAEConfig(image_size=32, patch_size=8, **sizes)
        transformers.ViTMAEModel(config).save_pretrained(folder)
    else:  # wants structures beside the text
        make_family(folder, "bert")
        config = transformers.TapasConfig(vocab_size=60, **sizes)
        transformers.TapasModel(config).save_pretrained(folder)
    if make == "protein":
        load_backbone(plan_of(folder))  # a table reader reads plain texts, too
        return
    detail = refuses(Code.BACKBONE_UNSUPPORTED, lambda: load_backbone(plan_of(folder)))
    assert "Traceback" not in detail and len(detail) < 500


class Remembers(torch.nn.Module):
    """A model that changes by what it has read."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.config, self.inner, self.read = model.config, model, 0

    def get_input_embeddings(self) -> Any:
        return self.inner.get_input_embeddings()

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        self.read += 1
        output.last_hidden_state = output.last_hidden_state * (1 + 0.01 * (self.read > 2))
        return output


class Switches(Remembers):
    """One that switches its kind of attention by the length of a text, for good."""

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        self.config.attention_type = "short"
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


class Ragged(Remembers):
    """One that gives no states."""

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        output = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        output.last_hidden_state = output.last_hidden_state.mean(1)
        return output


@pytest.mark.parametrize(
    ("kind", "named"),
    [(Remembers, "second time"), (Switches, "its own configuration"), (Ragged, "every token")],
)
def test_states_that_depend_on_what_came_before_are_refused(
    small_backbone: Path, refuses: Refuses, kind: Any, named: str
) -> None:
    backbone = load_backbone(plan_of(small_backbone))
    model = kind(backbone.model)
    detail = refuses(
        Code.BACKBONE_UNSUPPORTED, lambda: trial.try_texts(model, backbone.tokenizer, 64)
    )
    assert named in detail


@pytest.mark.parametrize("family", ["mobilenet-v2", "segformer", "poolformer"])
def test_the_length_of_an_images_state_is_measured(tmp_path: Path, family: str) -> None:
    """Configs of these families name it otherwise, or not at all."""
    backbone = load_backbone(plan_of(make_image_family(tmp_path / family, family)))
    assert backbone.hidden_size == backbone.feature_size > 0
    assert backbone.layers == 0


@pytest.mark.parametrize("kind", ["text-classification", "image-classification"])
def test_a_backbone_of_the_other_kind_is_refused(
    tmp_path: Path, small_backbone: Path, kind: str, refuses: Refuses
) -> None:
    images = kind == "image-classification"
    folder = small_backbone if images else make_image_backbone(tmp_path / "vit", "vit")
    plan = RunPlan().replace(
        backbone={"source": str(folder)}, task={"kind": kind, "labels": ["a", "b"]}
    )
    assert "reads" in refuses(Code.BACKBONE_UNSUPPORTED, lambda: backbone_of(plan))


def test_the_towers_have_identities_of_their_own(tmp_path: Path) -> None:
    folder = make_two_towers(tmp_path / "clip")
    texts = load_backbone(plan_of(folder))
    images = load_backbone(plan_of(folder), images=True)
    assert (texts.sha256, texts.part) == (images.sha256, "text_model")
    assert texts.identity != images.identity
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clip"
