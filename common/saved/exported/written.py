"""What every exported folder has: it appears whole or not at all, with settings and a task.json."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lorica.common.backbone.files import settings_files
from lorica.common.backbone.loading import Backbone
from lorica.common.errors import Code, LoricaError
from lorica.common.machine.files import storage_errors
from lorica.common.saved.folder import SavedAdapter
from lorica.common.tasks import task_of

ABOUT = "task.json"
"""What the outputs of an exported model are."""


def require_new(out: Path) -> None:
    """Return if nothing has this name. Raises LOR-603."""
    if out.exists():
        raise LoricaError(
            Code.RUN_FOLDER_EXISTS, f"{out} exists already.", mend="Name a new folder."
        )


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name ``out`` when the block ends without an error.

    Raises:
        LoricaError: LOR-601 disk full, LOR-602 refused by the system.
    """
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            new = temporary / "new"
            new.mkdir()
            yield new
            new.replace(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def copy_settings(backbone: Backbone, folder: Path) -> None:
    """Config and tokenizer files, or those of the image processor."""
    for file in settings_files(backbone.folder):
        target = folder / file.relative_to(backbone.folder)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)


def write_about(folder: Path, saved: SavedAdapter, backbone: Backbone) -> None:
    """:data:`ABOUT`: the task, and what its README's lines read."""
    plan = saved.plan
    about = {
        "task": plan.task.kind,
        **task_of(plan).about(backbone),
        "plan_fingerprint": plan.fingerprint,
        "epsilon": plan.privacy.epsilon if has_privacy(saved) else None,
    }
    content = json.dumps(about, indent=2, ensure_ascii=False)
    (folder / ABOUT).write_text(content, encoding="utf-8")


def privacy_sentence(saved: SavedAdapter) -> str:
    """The guarantee that the adapter, and so whatever is made of it alone, has."""
    plan = saved.plan
    if saved.seeded:
        return "none (a simulation's noise, which follows from its seed)"
    if not has_privacy(saved):
        return "none (ε = ∞)"
    return (
        f"(ε = {plan.privacy.epsilon:g}, δ = {plan.privacy.delta:g}) per {plan.privacy.unit}, "
        "enforced by every site"
    )


def source_shown(saved: SavedAdapter) -> str:
    """What the backbone is called for others: of a folder of this machine its last part."""
    return Path(saved.backbone_folder).name or saved.plan.backbone.source


def has_privacy(saved: SavedAdapter) -> bool:
    """Whether the adapter has an ε, and noise that nobody can make again."""
    return saved.plan.privacy.private and not saved.seeded
