"""Handwritten digits that scikit-learn ships, as folders of images, and a small vision transformer.

There are 1,797 images of 8 x 8 pixels. The transformer can be pre-trained on some of the digits and
adapted to the others: a transfer problem of seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 8
TEST_SHARE = 0.3
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Labels, and names of the sub-folders."""

SOURCE, TARGET = range(5), range(5, 10)
"""Digits that a model is developed on, and those that it is reused for."""

TURNS = 8
"""Ways to turn and mirror a square."""

VIT_MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
"""The transformer's linear modules, as transformers calls them."""

_RATE, _WARM_UP, _BATCH = 3e-3, 50, 64  # of pre-training: step size, steps that reach it, images
_SHARPNESS = 8.0  # factor of cosines, inverse temperature


def digits(classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 8, 8) and their digits (n,), of these classes, in scikit-learn's order."""
    from sklearn.datasets import load_digits

    found = load_digits()
    chosen = np.isin(found.target, classes)
    return (found.images[chosen] * 255 / 16).round().astype(np.uint8), found.target[chosen]


def write_digits(
    folder: Path, classes: Sequence[int], *, turns: int = 1, seed: int = 0
) -> tuple[Path, Path]:
    """Two folders of images with a sub-folder for every label: for training and for testing
    (``TEST_SHARE``).

    Args:
        folder: where to.
        classes: the digits.
        turns: 1: labels are :data:`NAMES`; more: every image is there in the first so many turns
            of :func:`turned`, and labels are "five-0", "five-1" ...
        seed: of what is for testing; all turns of an image are on one side.
    """
    from PIL import Image

    images, labels = digits(classes)
    test = np.random.default_rng(seed).random(len(images)) < TEST_SHARE
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        for turn in range(turns):
            name = f"{NAMES[label]}-{turn}" if turns > 1 else NAMES[label]
            place = folder / ("test" if test[number] else "train") / name
            place.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(turned(image[None, None], turn)[0, 0])
            picture.convert("RGB").save(place / f"{number:04}.png")
    return folder / "train", folder / "test"


def make_vit(
    folder: Path, *, classes: Sequence[int] = (), steps: int = 1500, width: int = 48, seed: int = 0
) -> float:
    """Write a small ViT with its image processor as a backbone folder.

    What is learnt in pre-training is to tell apart the digits *and* the eight ways in which they
    are turned and mirrored, under small random moves: more classes than digits, so that the states
    describe strokes and not those few digits alone.

    Args:
        folder: where to.
        classes: digits that it is pre-trained on, on all of their images; none: its weights are
            random.
        steps: of AdamW, 64 images each.
        width: hidden size.
        seed: of weights and batches.

    Returns:
        Accuracy on the last batches of pre-training, chance being 1 / (8 digits); 0 without.
    """
    import torch
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    half = [0.5, 0.5, 0.5]
    processor = ViTImageProcessorPil(
        size={"height": SIDE, "width": SIDE}, image_mean=half, image_std=half
    )
    config = ViTConfig(
        image_size=SIDE,
        patch_size=2,
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * width,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ViTModel(config, add_pooling_layer=False)
        accuracy = _pretrain(model, classes, steps) if classes else 0.0
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return accuracy


def _pretrain(model: Any, classes: Sequence[int], steps: int) -> float:
    """Train the whole model; accuracy on the last batches."""
    import torch
    from torch.nn import functional

    raw, digit = digits(classes)
    bank = np.stack([turned(raw[:, None], turn) for turn in range(TURNS)])
    views = torch.from_numpy(bank).float().expand(-1, -1, 3, -1, -1) / 127.5 - 1
    wanted = TURNS * torch.from_numpy(np.searchsorted(sorted(classes), digit))
    head = torch.nn.Linear(model.config.hidden_size, TURNS * len(classes), bias=False)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=0.01)
    hits: list[float] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _RATE * min(1.0, (step + 1) / _WARM_UP) * (1 - step / steps)
        rows, turns = torch.randint(len(raw), (_BATCH,)), torch.randint(TURNS, (_BATCH,))
        answers = wanted[rows] + turns
        states = model(pixel_values=_moved(views[turns, rows])).last_hidden_state[:, 0]
        cosines = functional.normalize(states, dim=1) @ functional.normalize(head.weight, dim=1).T
        optimizer.zero_grad()
        functional.cross_entropy(_SHARPNESS * cosines, answers).backward()
        optimizer.step()
        hits.append(float((cosines.argmax(1) == answers).float().mean()))
    return float(np.mean(hits[-20:]))


def turned(images: np.ndarray, turn: int) -> np.ndarray:
    """Images (n, C, S, S) by ``turn`` quarters of a circle; mirrored, too, from 4 on."""
    found = np.rot90(images, turn % 4, (2, 3))
    return np.ascontiguousarray(found[..., ::-1] if turn >= 4 else found)


def _moved(images: Any) -> Any:
    """Every image by itself turned by up to 0.35 rad, scaled by up to 15 % and shifted by up to an
    eighth of its side."""
    import torch
    from torch.nn import functional

    count = len(images)
    angle, size = 0.7 * (torch.rand(count) - 0.5), 1 + 0.3 * (torch.rand(count) - 0.5)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = size * angle.cos()
    theta[:, 1, 0] = size * angle.sin()
    theta[:, 0, 1] = -theta[:, 1, 0]
    theta[:, :, 2] = 0.5 * (torch.rand(count, 2) - 0.5)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
