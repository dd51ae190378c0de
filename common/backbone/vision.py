"""Models of images: what tells them, their image processor, how their states are pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lorica.common.errors import Code, LoricaError


def reads_images(model: Any) -> bool:
    """Whether a transformers model reads pixels and nothing else."""
    return bool(getattr(model, "main_input_name", "") == "pixel_values")


def load_processor(folder: Path) -> Any:
    """The image processor that the model was pre-trained with.

    Raises:
        LoricaError: LOR-204 the folder has none, LOR-207 without pillow.
    """
    if not (folder / "preprocessor_config.json").is_file():
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"The model in {folder} reads images, but has no preprocessor_config.json.",
            mend="Save its image processor into the folder with save_pretrained(folder).",
        )
    import transformers

    try:
        return transformers.AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except ImportError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            "Models of images need the package pillow.",
            mend="pip install 'lorica[images]'",
        ) from error


def pooling_of(model: Any) -> Literal["mean", "cls"]:
    """ "cls" for a model with a class token: its state; "mean" otherwise."""
    embeddings = getattr(model, "embeddings", None)
    return "cls" if getattr(embeddings, "cls_token", None) is not None else "mean"
