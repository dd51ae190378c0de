"""Handwritten digits that scikit-learn ships, as folders of images, and a small vision transformer.

There are 1,797 images of 8 x 8 pixels. The transformer can be pre-trained on some of the digits and
adapted to the others: a transfer problem of seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

SIDE = 8
TEST_SHARE = 0.3
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""Labels, and names of the sub-folders."""


def digits(classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (n, 8, 8) and their digits (n,), of these classes, in scikit-learn's order."""
    from sklearn.datasets import load_digits

    found = load_digits()
    chosen = np.isin(found.target, classes)
    return (found.images[chosen] * 255 / 16).round().astype(np.uint8), found.target[chosen]


def write_digits(folder: Path, classes: Sequence[int], *, seed: int = 0) -> tuple[Path, Path]:
    """Two folders of images with a sub-folder for every digit: for training and for testing
    (``TEST_SHARE``)."""
    from PIL import Image

    images, labels = digits(classes)
    test = np.random.default_rng(seed).random(len(images)) < TEST_SHARE
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / ("test" if test[number] else "train") / NAMES[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).convert("RGB").save(place / f"{number:04}.png")
    return folder / "train", folder / "test"


def make_vit(
    folder: Path, *, classes: Sequence[int] = (), steps: int = 250, width: int = 32, seed: int = 0
) -> float:
    """Write a small ViT with its image processor as a backbone folder.

    Args:
        folder: where to.
        classes: digits that it is pre-trained to tell apart, on all of their images; none: its
            weights are random.
        steps: of Adam, 32 images each.
        width: hidden size.
        seed: of weights and batches.

    Returns:
        Accuracy on the last batches of pre-training; 0 without.
    """
    import torch
    from torch.nn import functional
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

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
    hits: list[float] = [0.0]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ViTModel(config, add_pooling_layer=False)
        if classes:
            raw, labels = digits(classes)
            pixels = torch.from_numpy(raw).float()[:, None].expand(-1, 3, -1, -1) / 127.5 - 1
            wanted = torch.from_numpy(np.searchsorted(sorted(classes), labels))
            head = torch.nn.Linear(width, len(classes))
            optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=2e-3)
            for _ in range(steps):
                rows = torch.randint(len(pixels), (32,))
                states = model(pixel_values=pixels[rows]).last_hidden_state
                logits = head(8 * functional.normalize(states[:, 0], dim=-1))
                optimizer.zero_grad()
                functional.cross_entropy(logits, wanted[rows]).backward()
                optimizer.step()
                hits.append(float((logits.argmax(1) == wanted[rows]).float().mean()))
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return float(np.mean(hits[-20:]))
