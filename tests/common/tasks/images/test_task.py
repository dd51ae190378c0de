"""Image classification: backbones, pixels, features, README, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lorica.common.backbone.batch_norm import couples_records
from lorica.common.backbone.loading import load_backbone
from lorica.common.cache.prefix import PrefixCache
from lorica.common.cache.shelf import CacheShelf
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.saved.folder import save_adapter
from lorica.common.saved.predict import Predictor
from lorica.common.tasks import task_of
from lorica.common.tasks.images.pixels import VIEW_NUMBERS, pixels_of
from tests.images import FAMILIES, SIDE, image_plan, image_records, make_image_backbone

LORA = {"kind": "lora", "layers": [-1], "rank": 2, "target_modules": ["fc1"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("images")
    for family in FAMILIES:
        make_image_backbone(made / family, family)
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_of_the_models_own_processor(folder: Path, family: str) -> None:
    """Against transformers' processor with everything done at once."""
    backbone = load_backbone(image_plan(folder / family).backbone)
    records = image_records(5)
    pixels = task_of(image_plan(folder / family)).encode(backbone, records)
    assert records.images is not None
    (found,) = pixels.collate([3, 1])
    expected = backbone.processor([records.images[3], records.images[1]], return_tensors="pt")
    torch.testing.assert_close(found, expected["pixel_values"], rtol=0, atol=1e-5)
    assert len(set(pixels.lengths)) == 1 and backbone.tokenizer is None
    other = task_of(image_plan(folder / family)).encode(backbone, image_records(5, seed=1))
    assert other.digest() != pixels.digest()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 40), (40, 3), (3, 3)])
def test_images_of_one_or_three_rows_are_read_as_images(
    folder: Path, size: tuple[int, int]
) -> None:
    """Processors take them for images with their channels first, unless they are told."""
    backbone = load_backbone(image_plan(folder / "vit").backbone)
    records = image_records(2)
    assert records.images is not None
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    given = replace(records, images=[image, records.images[1]])
    (found,) = task_of(image_plan(folder / "vit")).encode(backbone, given).collate([0])
    # reference: the processor on a picture of Pillow, as the README's code gives it
    expected = backbone.processor([Image.fromarray(image)], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", ["fixed", "group"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_readmes_code_gives_the_outputs_of_the_predictor(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, how: str
) -> None:
    """Plain transformers and peft, batch norms as they come or grouped."""
    adapter = dict(LORA) if family == "vit" else {"kind": "head"}
    plan = image_plan(folder / family).replace(adapter=adapter | {"batch_norm": how})
    backbone, task = load_backbone(plan.backbone), task_of(plan)
    model = task.model(backbone).eval()
    assert not any(couples_records(module) for module in model.modules())
    generator = torch.Generator().manual_seed(1)
    state = {
        name: 0.5 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in task.start(backbone).items()
    }
    save_adapter(tmp_path / "adapter", state, plan, backbone)
    monkeypatch.chdir(tmp_path / "adapter")
    records = image_records(1)
    assert records.images is not None
    Image.fromarray(records.images[0]).save("picture.png")
    code = Path("README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), found)
    model.load_state(state)
    inputs = task.encode(backbone, records)
    with torch.no_grad():
        expected = PrefixCache(model, inputs).outputs(model, np.array([0]))
    torch.testing.assert_close(found["outputs"], expected, rtol=0, atol=1e-5)
    (answer,) = Predictor(tmp_path / "adapter")(["picture.png"])
    assert answer.shown == plan.task.labels[int(expected.argmax())]


def test_batch_norms_are_refused_unless_the_plan_says_what_stands_for_them(folder: Path) -> None:
    plan = image_plan(folder / "resnet").replace(adapter={"batch_norm": "refuse"})
    with pytest.raises(LoricaError) as refused:
        task_of(plan).model(load_backbone(plan.backbone))
    assert refused.value.code is Code.PRIVACY_UNSAFE_MODEL
    assert "adapter.batch_norm" in str(refused.value.mend)


def test_features_with_one_kind_of_norm_do_not_serve_the_other(folder: Path) -> None:
    shelf, records = CacheShelf(), image_records(4)
    found = []
    for how in ("fixed", "group"):
        plan = image_plan(folder / "resnet").replace(adapter={"batch_norm": how})
        backbone, task = load_backbone(plan.backbone), task_of(plan)
        model, inputs = task.model(backbone).eval(), task.encode(backbone, records)
        rows = np.arange(len(inputs))
        for cache in (shelf.get(model, inputs, backbone=backbone), PrefixCache(model, inputs)):
            with torch.no_grad():
                found.append(cache.features(model, rows))
    fixed, fixed_anew, group, group_anew = found
    assert torch.equal(fixed, fixed_anew) and torch.equal(group, group_anew)
    assert not torch.allclose(fixed, group, atol=0.01)


def test_a_fixed_batch_norm_computes_what_the_backbone_did(folder: Path) -> None:
    """Against the model as transformers loads it."""
    plan = image_plan(folder / "resnet")
    backbone = load_backbone(plan.backbone)
    (pixels,) = task_of(plan).encode(backbone, image_records(3)).collate([0, 1, 2])
    with torch.no_grad():
        found = task_of(plan).model(backbone).train().pooled_of_ids(pixels)
        expected = backbone.model(pixels).pooler_output.flatten(1)
    expected = torch.nn.functional.normalize(expected, dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert any(couples_records(module) for module in backbone.model.modules())  # not changed


def test_views_stay_within_their_bounds_and_differ(folder: Path) -> None:
    """A bright pixel in the middle moves by at most an eighth of the side, and is not lost."""
    backbone = load_backbone(image_plan(folder / "vit").backbone)
    records = image_records(1)
    image = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    image[7:9, 7:9] = 255
    records.images[0] = image  # type: ignore[index]
    pixels = task_of(image_plan(folder / "vit")).encode(backbone, records)

    def numbers(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).random((200, VIEW_NUMBERS), dtype=np.float32)

    rows = np.zeros(200, dtype=np.int64)
    (views,) = pixels.views(rows, ["shift"], numbers(0))
    light = views[:, 0] - views[:, 0].amin()
    assert len(torch.unique(light.flatten(1), dim=0)) == 200
    places = torch.arange(SIDE).float()
    for axis in (1, 2):
        at = (light.sum(axis) * places).sum(1) / light.sum((1, 2))
        assert float((at - 7.5).abs().max()) <= SIDE / 8 + 0.3
        assert float(at.std()) > 0.5
    again = pixels.views(rows, ["shift"], numbers(0))[0]
    assert torch.equal(again, views)
    flipped = pixels.views(rows, ["flip"], numbers(1))[0]
    (same,) = pixels.collate(rows)
    kinds = [torch.allclose(view, same[0], atol=1e-5) for view in flipped]
    mirror = [torch.allclose(view, same[0].flip(-1), atol=1e-5) for view in flipped]
    assert all(a or b for a, b in zip(kinds, mirror, strict=True))
    cropped = pixels.views(rows, ["crop"], numbers(2))[0]
    assert float((cropped[:, 0] - cropped[:, 0].amin()).sum((1, 2)).min()) > 0


BAD: list[tuple[dict[str, Any], str]] = [
    ({"adapter": {**LORA, "target_modules": ["query"]}}, "no linear module named 'query'"),
]


def test_what_an_image_task_cannot_do_is_refused(folder: Path, small_backbone: Path) -> None:
    for sections, says in BAD:
        plan = image_plan(folder / "vit").replace(**sections)
        with pytest.raises(LoricaError, match=says):
            task_of(plan).model(load_backbone(plan.backbone))
    layers = image_plan(folder / "convnext").replace(adapter=dict(LORA))
    with pytest.raises(LoricaError, match="no list of equal layers"):
        task_of(layers).model(load_backbone(layers.backbone))
    everywhere = layers.replace(adapter={"layers": [], "target_modules": ["pwconv1"]})
    names = task_of(everywhere).model(load_backbone(everywhere.backbone)).adapter_parameters
    assert sum("lora_B" in name for name in names) == 2
    text = image_plan(small_backbone)
    with pytest.raises(LoricaError, match="reads texts"):
        task_of(text).encode(load_backbone(text.backbone), image_records(2))
    from dataclasses import replace

    with pytest.raises(LoricaError, match="no images"):
        task_of(text).check(replace(image_records(2), images=None), where="Site a")
    with pytest.raises(ValueError, match="only images have augmented views"):
        text.replace(task={"kind": "text-classification"}, training={"augmentations": 2})


def test_a_model_without_its_processor_is_refused(tmp_path: Path) -> None:
    folder = make_image_backbone(tmp_path / "vit", "vit")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(LoricaError, match=r"no preprocessor_config\.json"):
        load_backbone(image_plan(folder).backbone)


def test_a_processor_whose_size_depends_on_the_image_is_refused_before_any_image_is_read(
    tmp_path: Path,
) -> None:
    """A site tries its machine on the one size; images that happen to be alike do not tell."""
    folder = make_image_backbone(tmp_path / "images", "resnet")
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    settings |= {"do_resize": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    backbone = load_backbone(RunPlan().replace(backbone={"source": str(folder)}).backbone)
    image = np.zeros((16, 16, 3), np.uint8)
    for images in ([], [image, image]):
        count = len(images)
        records = Records([""] * count, [""] * count, ["u"] * count, [""] * count, images=images)
        with pytest.raises(LoricaError, match="images of several sizes") as caught:
            pixels_of(backbone, records)
        assert caught.value.code is Code.BACKBONE_UNSUPPORTED
