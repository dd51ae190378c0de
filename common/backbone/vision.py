"""Models of images: what tells them, their image processor, how their states are pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from lorica.common.errors import Code, LoricaError

Readout = Literal["cls", "mean", "pooler", "map"]
"""How one state of an image is read: the class token's, the mean over patches, what the network
itself gives for the whole image, the mean over the places of its last feature map."""

READ: dict[Readout, str] = {
    "cls": "states.last_hidden_state[:, 0]",
    "mean": "states.last_hidden_state.mean(1)",
    "pooler": "states.pooler_output.flatten(1)",
    "map": "states.last_hidden_state.mean((2, 3))",
}
"""README expression of it, of the network's output ``states``."""


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


def readout_of(model: Any, output: Any) -> Readout | None:
    """How the state of a whole image is to be read from a network's output; None: it has none."""
    last = getattr(output, "last_hidden_state", None)
    whole = getattr(output, "pooler_output", None)
    if last is not None and last.dim() == 3:
        return "cls" if _has_class_token(model) else "mean"
    if whole is not None:
        return "pooler"
    if last is not None and last.dim() == 4 and last.shape[1] == _channels(model.config):
        return "map"
    return None


def image_states(output: Any, readout: Readout) -> torch.Tensor:
    """States (n, H) of images, float32, from a network's output."""
    if readout == "pooler":
        found = output.pooler_output.flatten(1)
    elif readout == "map":
        found = output.last_hidden_state.mean((2, 3))
    elif readout == "cls":
        found = output.last_hidden_state[:, 0]
    else:
        found = output.last_hidden_state.mean(1)
    states: torch.Tensor = found.float()
    return states


def _has_class_token(model: Any) -> bool:
    embeddings = getattr(model, "embeddings", None)
    names = ("cls_token", "class_embedding")
    return any(getattr(embeddings, name, None) is not None for name in names)


def _channels(config: Any) -> int:
    sizes = getattr(config, "hidden_sizes", None)
    return int(sizes[-1] if sizes else getattr(config, "hidden_size", 0) or 0)
