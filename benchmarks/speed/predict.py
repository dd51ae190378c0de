"""`lorica predict` against plain loops of transformers, on 5,000 short texts.

An adapter of random factors on the packaged backbone answers the texts of the demo's notes, cut to
their first words, by :class:`Predictor`; beside it run loops of 32 texts a batch over the backbone
alone, without adapter and head, as they come and sorted by length. Chunks of 1,000 texts are timed
in turn, in processor seconds and on the wall, so that a busy machine slows all alike.

    make bench NAME=predict      about three minutes
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from serve import adapter
from transformers import AutoModel, AutoTokenizer

from lorica.common.backbone.files import embedded_folder
from lorica.common.backbone.precision import has_bf16
from lorica.common.saved.predict import Predictor
from lorica.simulations.examples.clinic_notes import train_test

TEXTS, CHUNK, BATCH, WORDS = 5000, 1000, 32, 12


def loop(tokenizer: Any, model: Any, texts: list[str]) -> torch.Tensor:
    """Mean token states, as whoever writes ten lines computes them."""
    found = []
    with torch.inference_mode():
        for start in range(0, len(texts), BATCH):
            given = tokenizer(texts[start : start + BATCH], padding=True, return_tensors="pt")
            states = model(**given).last_hidden_state
            mask = given["attention_mask"][:, :, None]
            found.append((states * mask).sum(1) / mask.sum(1))
    return torch.cat(found)


def main() -> None:
    """Time all in turn, print ratios to `lorica predict`."""
    notes = [row["text"] for row in train_test()[0]]
    texts = [
        " ".join(notes[number % len(notes)].split()[: 4 + number % WORDS])
        for number in range(TEXTS)
    ]
    folder = embedded_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    with tempfile.TemporaryDirectory() as name:
        saved = adapter(Path(name) / "adapter")
        ways: dict[str, Callable[[list[str]], object]] = {
            "lorica predict": Predictor(saved),
            "plain loop": lambda part: loop(tokenizer, model, part),
            "loop sorted by length": lambda part: loop(tokenizer, model, sorted(part, key=len)),
        }
        if has_bf16():
            ways["lorica predict --precision bf16"] = Predictor(saved, precision="bf16")
        for way in ways.values():
            way(texts[:64])
        spent = dict.fromkeys(ways, (0.0, 0.0))
        for start in range(0, TEXTS, CHUNK):
            for label, way in ways.items():
                wall, used = time.perf_counter(), time.process_time()
                way(texts[start : start + CHUNK])
                wall, used = time.perf_counter() - wall, time.process_time() - used
                spent[label] = spent[label][0] + wall, spent[label][1] + used
    own = spent["lorica predict"]
    for label, (wall, used) in spent.items():
        print(
            f"{label}: {TEXTS / wall:.0f} texts a second, {used / TEXTS * 1000:.2f} ms of "
            f"processor a text; lorica predict is {wall / own[0]:.2f} x as fast "
            f"({used / own[1]:.2f} x by processor time)"
        )


if __name__ == "__main__":
    main()
