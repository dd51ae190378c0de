"""Which pretrained models a site has, and which of them a plan may use.

A plan names a model by ``backbone.source``, a path or a hub id that means something on the
coordinator's machine, and perhaps by its hash. A site opens neither that path nor the network:
it looks among the folders that its own policy lists, and takes the one whose hash the plan names.
What is allowed is told by a hash of everything that decides what the model computes: weights,
config and tokenizer (:func:`lorica.common.backbone.files.backbone_sha256`).
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from lorica.client.config.site import Policy
from lorica.common.backbone.files import (
    backbone_sha256,
    embedded_folder,
    settings_sha256,
    weights_sha256,
)
from lorica.common.backbone.loading import EMBEDDED_SETTINGS_SHA256
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.subject import EMBEDDED_SHA256, BackbonePlan, NumberFormat


def site_backbone(plan: BackbonePlan, policy: Policy, root: Path) -> tuple[BackbonePlan, str]:
    """The model on this machine that a plan asks for.

    Args:
        plan: what the coordinator asks for; its source is compared as text, never opened.
        policy: lists the site's folders.
        root: the folder that site.toml is in.

    Returns:
        A plan whose source is the site's own folder (or "embedded"), and what
        ``policy.backbones`` must list (:func:`entry_of`).

    Raises:
        LoricaError: LOR-408 the site has no such model; LOR-201, LOR-202 a listed one is not
            what it should be.
    """
    if plan.source == "embedded":
        return _embedded(plan)
    asked = _absolute(Path(), plan.source)
    for entry in policy.backbone_folders:
        whole = model_hash(entry, root)
        folder = _absolute(root, entry)
        weights = _hashes(folder)[0]
        named = plan.sha256 in (weights, whole) if plan.sha256 else folder == asked
        if named:
            found = BackbonePlan(source=str(folder), sha256=weights, quantize=plan.quantize)
            return found, entry_of(whole, plan.quantize)
    by = f"the SHA-256 {plan.sha256}" if plan.sha256 else "no SHA-256 (backbone.sha256)"
    raise LoricaError(
        Code.POLICY_REFUSED,
        f"The plan asks for the model {plan.source!r:.100} with {by}; none of the "
        f"{len(policy.backbone_folders)} folders of policy.backbone_folders holds it, and a site "
        "opens no other folder and downloads nothing.",
        mend="Put the model's folder on this machine, list it in policy.backbone_folders and its "
        "hash (`lorica site backbone FOLDER`) in policy.backbones, and name its SHA-256 in the "
        "plan.",
    )


def model_hash(entry: str, root: Path) -> str:
    """The hash by which ``policy.backbones`` allows the model in a folder of
    ``policy.backbone_folders``.

    Raises:
        LoricaError: LOR-201 there is no folder, or no model in it.
    """
    folder = _absolute(root, entry)
    if not folder.is_dir():
        raise LoricaError(
            Code.BACKBONE_NOT_FOUND,
            f"policy.backbone_folders lists {entry}, but there is no folder {folder}.",
            mend="Correct the path in site.toml (it starts from site.toml's folder), or take it "
            "off the list.",
        )
    return _hashes(folder)[2]


def _embedded(plan: BackbonePlan) -> tuple[BackbonePlan, str]:
    whole = backbone_sha256(embedded_folder(), EMBEDDED_SHA256, EMBEDDED_SETTINGS_SHA256)
    if plan.sha256 not in ("", EMBEDDED_SHA256, whole):
        raise LoricaError(
            Code.BACKBONE_HASH,
            f"The plan expects the embedded model with SHA-256 {plan.sha256}; it has "
            f"{EMBEDDED_SHA256}.",
        )
    # Config and tokenizer are pinned where it is loaded.
    return BackbonePlan(quantize=plan.quantize), entry_of(EMBEDDED_SHA256, plan.quantize)


def entry_of(sha256: str, number: NumberFormat) -> str:
    """How ``policy.backbones`` names a model by its hash: with the number format, ``HASH:int8``,
    where its weights are rounded, since it then computes something else."""
    return sha256 if number == "none" else f"{sha256}:{number}"


def _hashes(folder: Path) -> tuple[str, str, str]:
    """Hashes of weights, settings and both; computed anew when a file changed."""
    stamps = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else []:
        found = path.stat()
        stamps.append((str(path), found.st_size, found.st_mtime_ns, found.st_ino))
    return _computed(folder, tuple(stamps))


@functools.lru_cache(maxsize=32)
def _computed(folder: Path, stamps: tuple[object, ...]) -> tuple[str, str, str]:
    weights, settings = weights_sha256(folder), settings_sha256(folder)
    return weights, settings, backbone_sha256(folder, weights, settings)


def _absolute(root: Path, entry: str) -> Path:
    """The path without a look at the disk."""
    return Path(os.path.normpath(Path.cwd() / root / os.path.expanduser(entry)))  # noqa: PTH111
