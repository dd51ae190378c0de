"""Settings for all tests: no telemetry, no hub, one thread per process, the shared data,
a home of their own, a PostgreSQL server."""

from __future__ import annotations

import os
import tempfile

os.environ.update(
    {
        "LORICA_HOME": tempfile.mkdtemp(prefix="lorica-home-"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "LORICA_SEEDED_NOISE": "protects nothing",
    }
)

import contextlib
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.made_once import made_once
from tests.postgresql_server import PostgresqlServer, running_server

pytest_plugins = ["tests.groups"]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_sessionfinish() -> None:
    """Remove this session's home."""
    shutil.rmtree(os.environ["LORICA_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real data sets; skips, saying so, where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the real data sets are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A PostgreSQL server of this session's own; skips where none is installed."""
    with running_server() as server:
        yield server


@pytest.fixture
def postgresql_url(postgresql_server: PostgresqlServer) -> str:
    """The URL (postgresql+psycopg://…) of an empty database of this test's own."""
    return postgresql_server.new_database()


@pytest.fixture
def small_backbone(tmp_path: Path) -> Path:
    """A folder with a tiny random BERT and its tokenizer: 3 layers, hidden size 32."""
    return make_small_backbone(tmp_path / "backbone")


@made_once
def make_small_backbone(folder: Path, *, layers: int = 3, seed: int = 0) -> Path:
    """Write a tiny random BERT with a word-level tokenizer; real code paths, milliseconds."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words += sorted({*"abcdefghijklmnopqrstuvwxyz", *SMALL_WORDS})
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    )
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


SMALL_WORDS = [
    *["card", "cash", "loan", "bank", "fever", "pain", "heart", "skin", "bone", "cough", "tired"],
    *["red", "lost", "new", "old", "money", "doctor", "street", "today", "again", "very", "my"],
    *["the", "is", "was", "has", "broken", "rash", "pulse", "lungs"],
]
"""Words that the small backbone's tokenizer knows."""


@pytest.fixture(autouse=True)
def _rows_of_batches() -> Iterator[None]:
    """What a trial of shapes decides for its process is undone: in which shapes a test computes,
    and so its last bits, follows from no test before it."""
    yield
    batching = sys.modules.get("lorica.common.cache.batching")
    if batching is not None and batching.least_rows() != batching.LEAST_ROWS:
        batching.use_least_rows(batching.LEAST_ROWS)


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to make a file larger than ``size`` bytes, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
