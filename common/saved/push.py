"""A result for others: copied to a folder, or uploaded to a repository of a Hugging Face hub.

What goes is a list of names that is written here, whatever else lies in the folder: figures of a
site, logs, checkpoints and keys stay. Paths of this machine, which its files name, are cut to their
last part. A folder whose model was trained without privacy, or with a simulation's seeded noise,
goes nowhere unless that is said to be meant: it may hold its records by heart.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorica.common.display.text import printable
from lorica.common.errors import Code, LoricaError
from lorica.common.saved.exported.written import ABOUT, new_folder, require_new
from lorica.common.saved.folder import SEEDED

WEIGHTS = frozenset(
    {
        "adapter_model.safetensors",
        "biases.safetensors",
        "head.safetensors",
        "model.onnx",
        "model.onnx.data",
        "model.safetensors",
        "projection.safetensors",
    }
)
SETTINGS = frozenset(
    {
        ABOUT,
        "README.md",
        "added_tokens.json",
        "adapter_config.json",
        "config.json",
        "config_sentence_transformers.json",
        "lorica.json",
        "merges.txt",
        "model.safetensors.index.json",
        "modules.json",
        "preprocessor_config.json",
        "sentence_bert_config.json",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
_PATHS = ("train", "test", "judge", "table")


@dataclass(frozen=True)
class Pushed:
    """What went where."""

    target: str
    """A folder, or the repository's address."""
    files: list[str]
    left: list[str]
    """Files of the folder that stayed."""


def push_to_folder(result: Path, target: Path, *, without_privacy: bool = False) -> Pushed:
    """Copy an adapter or an export to a folder that does not exist, whole or not at all.

    Raises:
        LoricaError: LOR-206 it is none, LOR-211 it was trained without privacy, LOR-603 the folder
            exists, LOR-601, LOR-602.
    """
    files, left = _chosen(result, without_privacy)
    require_new(target)
    with new_folder(target) as new:
        _copy(result, files, new)
    return Pushed(str(target), files, left)


def push_to_hub(
    result: Path, repository: str, *, public: bool = False, without_privacy: bool = False
) -> Pushed:
    """Upload an adapter or an export to a repository, in one commit; the hub and the token are
    huggingface_hub's own (``HF_ENDPOINT``, ``HF_TOKEN``, ``hf auth login``).

    Args:
        result: the folder.
        repository: "owner/name"; made, private, if it is not there.
        public: make it for everybody; one that is there stays what it is, and is refused if it is
            for everybody and this is not said.
        without_privacy: as of :func:`push_to_folder`.

    Raises:
        LoricaError: LOR-206, LOR-211 as above, or the hub does not take it, or all could read it.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    files, left = _chosen(result, without_privacy)
    with tempfile.TemporaryDirectory(prefix="lorica-push-") as name:
        folder = Path(name) / "new"
        folder.mkdir()
        _copy(result, files, folder)
        api = HfApi(library_name="lorica")
        try:
            made = api.create_repo(repository, private=not public, exist_ok=True)
            if not public and api.repo_info(made.repo_id).private is False:
                raise LoricaError(
                    Code.PUSH_REFUSED,
                    f"{made.repo_id} is there already, for everybody to read.",
                    mend="Give --public if that is meant, or name another repository.",
                )
            api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                commit_message="An adapter of Lorica",
                allow_patterns=files,
            )
        except (
            HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError, httpx.HTTPError
        ) as error:  # fmt: skip
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise LoricaError(
                Code.PUSH_REFUSED, f"The hub did not take {result} as {repository}: {reason}"
            ) from error
    return Pushed(str(made), files, left)


def _chosen(result: Path, without_privacy: bool) -> tuple[list[str], list[str]]:
    """Names that go, and those that stay. Raises LOR-206, LOR-211."""
    found = sorted(
        str(path.relative_to(result)) for path in result.rglob("*") if path.is_file()
    )  # links to folders are not followed
    allowed = WEIGHTS | SETTINGS
    own = [name for name in found if not (result / name).is_symlink()]
    files = [name for name in own if name in allowed or _pooling(name)]
    if "README.md" not in files or not WEIGHTS.intersection(files):
        raise LoricaError(
            Code.ADAPTER_UNREADABLE,
            f"{result} holds no adapter and no export with its README.md.",
            mend="Name the adapter/ folder of a finished run, or what `lorica export` wrote.",
        )
    if not without_privacy and not _private(result, files):
        raise LoricaError(
            Code.PUSH_REFUSED,
            f"{result} was trained without privacy (a simulation's seeded noise gives none), "
            "or does not say with which: whoever has it may learn its records.",
        )
    return files, [name for name in found if name not in files]


def _pooling(name: str) -> bool:
    """Modules of sentence-transformers: "1_Pooling/config.json" and their weights."""
    folder, _, file = name.partition("/")
    return folder[:1].isdigit() and "_" in folder and file in ("config.json", "model.safetensors")


def _private(result: Path, files: list[str]) -> bool:
    """Whether what was trained has an ε, and noise that nobody can make again."""
    try:
        if "lorica.json" in files:
            text = (result / "lorica.json").read_text(encoding="utf-8")
            about = json.loads(text)
            spent = "inf" if about.get("noise") == SEEDED else about["plan"]["privacy"]["epsilon"]
        else:
            spent = json.loads((result / ABOUT).read_text(encoding="utf-8"))["epsilon"]
        return math.isfinite(float(spent))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _copy(result: Path, files: list[str], folder: Path) -> None:
    own = _own_paths(result)
    for name in files:
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        if name in ("README.md", "adapter_config.json", "lorica.json"):
            text = (result / name).read_text(encoding="utf-8")
            for path in own:
                text = text.replace(path, Path(path).name)
            target.write_text(text, encoding="utf-8")
        else:
            shutil.copyfile(result / name, target)


def _own_paths(result: Path) -> list[str]:
    """Paths of this machine that the adapter's plan names, the longest first, as its files have
    them."""
    try:
        about = json.loads((result / "lorica.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    found: set[str] = set()
    for path in _paths(about):
        # As text, in JSON with and without other letters than ASCII's, and in Python's code.
        found |= {path, json.dumps(path)[1:-1], json.dumps(path, ensure_ascii=False)[1:-1]}
        found |= {repr(path)[1:-1], printable(path)}
    return sorted(found, key=len, reverse=True)


def _paths(about: Any) -> Iterator[str]:
    plan, folder = about.get("plan", {}), about.get("backbone", {}).get("folder", "")
    texts = [plan.get("data", {}).get(key, "") for key in _PATHS]
    if folder:  # else "org/name" is one of the hub's
        texts += [folder, plan.get("backbone", {}).get("source", "")]
    for text in texts:
        if "/" in text and Path(text).name and not text.startswith(("hub:", "embedded:")):
            yield text
