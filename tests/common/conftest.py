"""What the tests of the common package share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorica.common.errors import Code, LoricaError

Refuses = Callable[[Code, Callable[[], object]], str]


@pytest.fixture(scope="session")
def refuses() -> Refuses:
    """``refuses(code, call)``: the detail of the coded error that ``call`` must end with."""

    def check(code: Code, call: Callable[[], object]) -> str:
        with pytest.raises(LoricaError) as caught:
            call()
        assert caught.value.code is code, str(caught.value)
        assert caught.value.mend
        return caught.value.detail

    return check


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """``edit_json(path, key=value)``: change keys of a JSON object in a file; None removes."""

    def edit(path: Path, **changes: Any) -> None:
        content = json.loads(path.read_text(encoding="utf-8")) | changes
        kept = {key: value for key, value in content.items() if value is not None}
        path.write_text(json.dumps(kept), encoding="utf-8")

    return edit


@pytest.fixture
def other_family(tmp_path: Path, small_backbone: Path) -> Callable[..., Path]:
    """``other_family("roberta")``: a tiny random model of another family, same tokenizer."""

    def make(family: str, **config: Any) -> Path:
        import torch
        from transformers import AutoConfig, AutoModel

        folder = tmp_path / family
        shutil.copytree(small_backbone, folder)
        vocabulary = json.loads((small_backbone / "config.json").read_text())["vocab_size"]
        sizes = {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        }
        if family == "distilbert":
            sizes = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64}
        settings = {"vocab_size": vocabulary, "max_position_embeddings": 64, **sizes, **config}
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = AutoModel.from_config(AutoConfig.for_model(family, **settings))
        model.save_pretrained(folder)
        return folder

    return make
