"""The same pictures in files of 8, 12 and 16 bits and of fractions: the same run, to the byte."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorica.common.display.console import Console
from lorica.common.plan import RunPlan
from lorica.common.saved.folder import load_adapter
from lorica.common.saved.given import read_given
from lorica.common.saved.predict import Predictor
from lorica.simulations.run.simulate import Simulation
from tests.images import SIDE, make_image_backbone

LABELS = ("dark", "light")
PER_LABEL = 40

WRITTEN: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "u8 PNG": ("png", lambda v: v),
    "u16 PNG": ("png", lambda v: v.astype(np.uint16) * 257),
    "12 bits in u16 PNG": ("png", lambda v: np.rint(v / 255 * 4095).astype(np.uint16)),
    "u16 TIFF": ("tif", lambda v: v.astype(np.uint16) * 257),
    "float TIFF": ("tiff", lambda v: (v / 255).astype(np.float32)),
}


def pictures() -> list[tuple[str, np.ndarray]]:
    """Noise on a darker or a lighter ground, each with a black and a white pixel."""
    draw = np.random.default_rng(0)
    found = []
    for number in range(len(LABELS) * PER_LABEL):
        grey = draw.integers(20, 120, (SIDE, SIDE)) + 110 * (number % 2)
        grey[0, :2] = 0, 255
        found.append((LABELS[number % 2], grey.astype(np.uint8)))
    return found


def write(folder: Path, kind: str) -> Path:
    ending, form = WRITTEN[kind]
    for number, (label, grey) in enumerate(pictures()):
        (folder / label).mkdir(parents=True, exist_ok=True)
        Image.fromarray(form(grey)).save(folder / label / f"{number:03}.{ending}")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run on the pictures as a kind of file; each is made once."""
    root = tmp_path_factory.mktemp("depths")
    backbone = make_image_backbone(root / "vit", "vit", spread=0.5)

    @functools.cache
    def made(kind: str) -> Path:
        plan = RunPlan().replace(
            backbone={"source": str(backbone)},
            task={"kind": "image-classification"},
            data={"train": str(write(root / kind / "data", kind))},
            adapter={"kind": "head"},
            training={"expected_batch_size": 16},
            rounds={"count": 12},
            privacy={"epsilon": float("inf")},
            simulation={"sites": 2},
        )
        out = root / kind / "out"
        summary = Simulation(plan, out, Console(quiet=True)).run(report=False)
        (out / "score").write_text(repr(summary["score"]))
        return out

    return made


def test_what_is_learnt_can_be_told_from_chance(run: Callable[[str], Path]) -> None:
    assert float((run("u8 PNG") / "score").read_text()) >= 0.9


@pytest.mark.parametrize("kind", [kind for kind in WRITTEN if kind != "u8 PNG"])
def test_pictures_of_more_bits_give_the_run_and_the_predictions_of_8_bits(
    run: Callable[[str], Path], kind: str
) -> None:
    eight, more = run("u8 PNG"), run(kind)
    assert (more / "score").read_text() == (eight / "score").read_text()
    wanted, found = load_adapter(eight / "adapter").state, load_adapter(more / "adapter").state
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    predictor = Predictor(more / "adapter")
    given = read_given(more.parent / "data" / "dark", predictor.plan)
    labels = [prediction.label for prediction in predictor(given.texts, images=given.images)]
    assert len(labels) == PER_LABEL and labels.count("dark") >= 0.8 * PER_LABEL
