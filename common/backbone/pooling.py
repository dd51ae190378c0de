"""How token states become one vector per text: as the model's sentence-transformers files say.

Such a folder lists its modules in ``modules.json``: the transformer, how its states are pooled,
and what follows (dense layers, layer norms, scaling to length 1). What Lorica computes of a text
is then what the model was trained to give. A module that is not known here is refused by name:
left out, it would change every feature without a word. A folder without such files has the mean
over tokens.

Source: sentence-transformers 6, ``Pooling``, ``Dense``, ``LayerNorm``, ``Normalize``; its older
boolean keys are read in its own order.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch.nn import functional

from lorica.common.errors import Code, LoricaError

Mode = Literal["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
"""One way to pool, by sentence-transformers' names; several are written one after the other."""

_OLD_KEYS: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_IDLE = ("Transformer", "Dropout")  # the encoder itself; nothing, in use

ACTIVATIONS = {
    "Identity": "{}",
    "Tanh": "torch.tanh({})",
    "ReLU": "torch.relu({})",
    "Sigmoid": "torch.sigmoid({})",
    "GELU": "torch.nn.functional.gelu({})",
    "SiLU": "torch.nn.functional.silu({})",
}
"""Activation of a dense module, by its class in torch -> the expression of it."""

_COMPUTED = {
    "Identity": lambda x: x,
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "Sigmoid": torch.sigmoid,
    "GELU": functional.gelu,
    "SiLU": functional.silu,
}

_LINES: dict[Mode, str] = {
    "cls": "states[:, 0]",
    "max": 'states.masked_fill(weights == 0, float("-inf")).max(1).values',
    "mean": "(states * weights).sum(1) / weights.sum(1)",
    "mean_sqrt_len_tokens": "(states * weights).sum(1) / weights.sum(1).sqrt()",
    "weightedmean": "(states * places).sum(1) / places.sum(1)",
    "lasttoken": "states[torch.arange(len(states)), weights[..., 0].sum(1).long() - 1]",
}
"""README expressions of ``states`` (n, T, H), ``weights`` (n, T, 1), 0 at padding, and ``places``:
the weights times 1, 2, 3 ..."""


@dataclass(frozen=True)
class Dense:
    """A linear map of the pooled vector and an activation."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    activation: str

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = _COMPUTED[self.activation](
            functional.linear(x, self.weight, self.bias)
        )
        return found


@dataclass(frozen=True)
class LayerNorm:
    """A layer norm of the pooled vector."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias)


@dataclass(frozen=True)
class Normalize:
    """Scaling of the pooled vector to length 1."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.normalize(x, dim=-1)


Step = Dense | LayerNorm | Normalize


@dataclass(frozen=True)
class Pooling:
    """Token states to one vector."""

    modes: tuple[Mode, ...] = ("mean",)
    steps: tuple[Step, ...] = field(default=(), compare=False)
    """What follows, in order."""
    prompt: str = ""
    """What stands before every text."""

    def width(self, hidden: int) -> int:
        """Length of the vector, for token states of length ``hidden``."""
        width = len(self.modes) * hidden
        for step in self.steps:
            width = len(step.weight) if isinstance(step, Dense) else width
        return width

    def __call__(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Vectors (n, W) of token states (n, T, H) and a mask (n, T) that ends in the padding."""
        weights = mask[..., None].to(states.dtype)
        parts = [_pooled(mode, states, weights) for mode in self.modes]
        found = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        for step in self.steps:
            found = step(found)
        return found

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What the steps compute with, by names that :meth:`lines` use."""
        found = {}
        for number, step in enumerate(self.steps):
            for name in ("weight", "bias"):
                value = getattr(step, name, None)
                if value is not None:
                    found[f"{number}.{name}"] = value
        return found

    def lines(self) -> str:
        """README lines from ``states`` and ``batch`` to ``pooled``; ``projection`` holds the
        steps' tensors."""
        found = ['weights = batch["attention_mask"][..., None].to(states.dtype)']
        if "weightedmean" in self.modes:
            found.append("places = weights * torch.arange(1, weights.shape[1] + 1)[:, None]")
        parts = [_LINES[mode] for mode in self.modes]
        if len(parts) == 1:
            found.append(f"pooled = {parts[0]}")
        else:
            found += ["pooled = torch.cat([", *[f"    {part}," for part in parts], "], dim=-1)"]
        for number, step in enumerate(self.steps):
            if isinstance(step, Normalize):
                found.append("pooled = torch.nn.functional.normalize(pooled, dim=-1)")
                continue
            weight = f'projection["{number}.weight"]'
            bias = f'projection.get("{number}.bias")'
            if isinstance(step, LayerNorm):
                call = f"layer_norm(pooled, pooled.shape[1:], {weight}, {bias})"
                found.append(f"pooled = torch.nn.functional.{call}")
            else:
                linear = f"torch.nn.functional.linear(pooled, {weight}, {bias})"
                found.append(f"pooled = {ACTIVATIONS[step.activation].format(linear)}")
        return "\n".join(found) + "\n"


def _pooled(mode: Mode, states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    if mode == "cls":
        return states[:, 0]
    if mode == "lasttoken":
        return states[torch.arange(len(states)), weights[..., 0].sum(1).long() - 1]
    if mode == "max":
        return states.masked_fill(weights == 0, float("-inf")).max(1).values
    if mode == "weightedmean":
        weights = weights * torch.arange(1, weights.shape[1] + 1, dtype=weights.dtype)[:, None]
    total = (states * weights).sum(1)
    count = weights.sum(1)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


def read_pooling(folder: Path, hidden: int) -> Pooling:
    """What the sentence-transformers files of a model's folder say; the mean without any.

    Args:
        folder: the model's.
        hidden: length H of its token states.

    Raises:
        LoricaError: LOR-204 a file is damaged, or a module or a mode is none of the above.
    """
    listed = _json(folder / "modules.json", list)
    places = [("Pooling", "1_Pooling")]
    if listed is not None:
        try:
            places = [(str(m["type"]).rpartition(".")[2], str(m.get("path", ""))) for m in listed]
        except (KeyError, TypeError, AttributeError):
            raise _refused(folder / "modules.json", "lists something else than modules") from None
    modes: tuple[Mode, ...] = ("mean",)
    steps: list[Step] = []
    for kind, path in places:
        if kind in _IDLE:
            continue
        home = folder / path
        if kind == "Pooling":
            modes = _modes(home / "config.json")
        elif kind == "Normalize":
            steps.append(Normalize())
        elif kind == "Dense":
            steps.append(_dense(home))
        elif kind == "LayerNorm":
            tensors = _tensors(home)
            steps.append(LayerNorm(tensors["norm.weight"], tensors["norm.bias"]))
        else:
            raise _refused(
                folder / "modules.json",
                f"names a module {kind}, which Lorica does not compute; it knows Pooling, Dense, "
                "LayerNorm, Normalize and Dropout",
            )
    found = Pooling(modes, tuple(steps), _prompt(folder))
    try:
        with torch.no_grad():
            found(torch.zeros(1, 1, hidden), torch.ones(1, 1, dtype=torch.int64))
    except RuntimeError as error:
        raise _refused(folder, f"holds modules that do not fit each other: {error}") from None
    return found


def promised_length(folder: Path) -> int:
    """Tokens of the longest text that a folder's sentence-transformers files name
    (``max_seq_length`` of sentence_bert_config.json and its like); 0 when they name none.

    It is where that library cuts texts, and about what such a model was trained with; the network
    itself may take more.

    Raises:
        LoricaError: LOR-204 the file is damaged.
    """
    for path in sorted(folder.glob("sentence_*_config.json")):
        length = (_json(path, dict) or {}).get("max_seq_length")
        if isinstance(length, int) and not isinstance(length, bool) and length > 0:
            return length
    return 0


def _modes(path: Path) -> tuple[Mode, ...]:
    config = _json(path, dict) or {}
    if config.get("include_prompt") is False:
        raise _refused(path, "leaves the prompt's tokens out of the pooling (include_prompt)")
    given = config.get("pooling_mode")
    if given is None:
        chosen = [mode for key, mode in _OLD_KEYS.items() if config.get(key)]
        return tuple(chosen) or ("mean",)
    modes = given if isinstance(given, list) else [given]
    known = get_args(Mode)
    for mode in modes:
        if mode not in known:
            raise _refused(path, f"asks for the pooling {mode!r}; Lorica knows {', '.join(known)}")
    return tuple(cast("list[Mode]", modes)) or ("mean",)


def _dense(home: Path) -> Dense:
    config = _json(home / "config.json", dict) or {}
    activation = str(config.get("activation_function", "torch.nn.Tanh")).rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise _refused(
            home / "config.json",
            f"has the activation {activation}; Lorica knows {', '.join(ACTIVATIONS)}",
        )
    names = config.get("module_input_name"), config.get("module_output_name")
    if any(name not in (None, "sentence_embedding") for name in names) or config.get(
        "use_residual"
    ):
        raise _refused(home / "config.json", "maps something else than the pooled vector")
    tensors = _tensors(home)
    return Dense(tensors["linear.weight"], tensors.get("linear.bias"), activation)


def _tensors(home: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = home / "model.safetensors"
    if not path.is_file():
        raise _refused(
            home,
            "holds no model.safetensors (pickled weights are not read)",
            mend="Load the model with sentence-transformers and save it anew.",
        )
    try:
        found = {name: tensor.float() for name, tensor in load_file(path).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _refused(path, f"cannot be read: {error}") from None
    if not any(name.endswith(".weight") for name in found):
        raise _refused(path, "holds no weights")
    return found


def _prompt(folder: Path) -> str:
    config = _json(folder / "config_sentence_transformers.json", dict) or {}
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise _refused(
            folder / "config_sentence_transformers.json",
            f"names the prompt {name!r} as the usual one, but has none of that name",
        )
    return str(prompts[name])


def _json(path: Path, kind: type) -> Any:
    """Content of a JSON file of this kind; None where there is no file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        raise _refused(path, "is no JSON that could be read") from None
    if not isinstance(content, kind):
        raise _refused(path, "is not what sentence-transformers writes")
    return content


def _refused(path: Path, what: str, *, mend: str | None = None) -> LoricaError:
    return LoricaError(
        Code.BACKBONE_UNSUPPORTED,
        f"{path} {what}.",
        mend=mend
        or "Use another backbone, or a copy of this one without its sentence-transformers files "
        "(modules.json, 1_Pooling, ...): its features are then the mean of its token states.",
    )
