"""A backbone with an adapter: an encoder with LoRA or none, and a head that reads its states."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from lorica.common.adapter.biases import OwnBiases
from lorica.common.adapter.lora import attach_lora, layer_indices, lora_parameters, structural_copy
from lorica.common.adapter.residuals import ResidualWeights
from lorica.common.adapter.state import State, read_state, write_state
from lorica.common.backbone.batch_norm import replace_batch_norms
from lorica.common.backbone.checkpointing import checkpoint_layers
from lorica.common.backbone.loading import Backbone, made_up_inputs
from lorica.common.backbone.precision import computing_in, number_format
from lorica.common.backbone.prefix import FrozenPrefix
from lorica.common.backbone.trial import require_single_use
from lorica.common.plan import RunPlan
from lorica.common.plan.methods import METHODS
from lorica.common.plan.tensors import Part, part_of
from lorica.common.tasks.inputs import Inputs

_PEFT_PREFIX = "base_model.model."
_SINGLE_USE: set[tuple[str, str]] = set()
"""Backbones and adapters that this process has tried."""


class AdaptedModel(nn.Module):
    """Encoder with LoRA (kind "lora"), biases of its own ("bitfit") or neither ("head"), and a
    head.

    What the encoder makes of a batch is *pooled* (once per backbone, if the encoder is idle),
    made into *features*, and read by the head:
    ``outputs = head(features(pooled))``.
    """

    vector: ClassVar[bool] = True
    """Whether what is pooled is one vector per record, which may be kept beside it; states of all
    tokens otherwise."""

    def __init__(self, backbone: Backbone, plan: RunPlan, head: nn.Module) -> None:
        """Shares the backbone's weights; only LoRA factors or biases and the head are its own, and
        with residuals the weights that residuals are added to.

        ``frozen`` says that what is pooled never changes (kind "head"); ``numbers`` is what the
        encoder computes in (:mod:`lorica.common.backbone.precision`); what it gives is float32;
        ``norms`` says what stands in the place of the backbone's batch norms, "" where it has none.

        Raises:
            LoricaError: LOR-204 the backbone does not fit the plan, LOR-208 no bfloat16 units.
        """
        super().__init__()
        encoder = structural_copy(backbone.model)
        replaced = replace_batch_norms(encoder, plan.adapter.batch_norm)
        self.norms = plan.adapter.batch_norm if replaced else ""
        depth = backbone.layers
        self._lora: dict[str, nn.Parameter] = {}
        self._residuals: ResidualWeights | None = None
        self._biases: OwnBiases | None = None
        if plan.adapter.kind == "lora":
            depth = min(layer_indices(plan.adapter, backbone.layers), default=0)
            peft_model = attach_lora(encoder, plan.filled_adapter)
            self._lora = lora_parameters(peft_model)
            if METHODS[plan.aggregation.method].residual:
                self._residuals = ResidualWeights(peft_model, list(self._lora))
        elif plan.adapter.kind == "bitfit":
            chosen = layer_indices(plan.adapter, backbone.layers)
            depth = min(chosen, default=0)
            self._biases = OwnBiases(encoder, chosen)
        self.encoder = encoder
        self._require_single_use(backbone, plan)
        self.prefix = FrozenPrefix(
            encoder,
            depth,
            limit=min(plan.training.max_length, backbone.max_length),
            known_as=f"{backbone.identity} {self.norms}",
        )
        if plan.training.gradient_checkpointing == "layers" and plan.adapter.kind != "head":
            checkpoint_layers(encoder, depth)
        self.frozen = plan.adapter.kind == "head"
        self.numbers = number_format(plan.training.precision)
        self.width = self.pooled_width = backbone.hidden_size
        self.head = head

    def _require_single_use(self, backbone: Backbone, plan: RunPlan) -> None:
        """Refuse a backbone in which an adapted module runs twice in a pass, by a trial that is
        made once per backbone and adapter. Raises LOR-404."""
        adapted = [name.removeprefix(_PEFT_PREFIX).partition(".lora_")[0] for name in self._lora]
        if self._biases:
            adapted = [name.rpartition(".")[0] for name in self._biases.parameters]
        key = backbone.identity, plan.filled_adapter.model_dump_json()
        if not adapted or key in _SINGLE_USE:
            return
        inputs = made_up_inputs(backbone)
        require_single_use(
            self.encoder,
            sorted(set(adapted)),
            inputs,
            named=plan.filled_adapter.target_modules if self._lora else (),
        )
        _SINGLE_USE.add(key)

    @property
    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of the adapter state by name: LoRA factors (and residuals) or biases,
        the head."""
        head = {f"head.{name}": parameter for name, parameter in self.head.named_parameters()}
        residuals = self._residuals.parameters if self._residuals else {}
        biases = self._biases.parameters if self._biases else {}
        return {**self._lora, **residuals, **biases, **head}

    @property
    def idle(self) -> bool:
        """Whether the encoder is the backbone as it came: every B is 0, every residual too, and
        every bias is the backbone's."""
        if self._biases and self._biases.any():
            return False
        if self._residuals and self._residuals.any():
            return False
        return not any(bool(p.any()) for name, p in self._lora.items() if ".lora_B." in name)

    @property
    def still(self) -> bool:
        """Whether no gradient is asked for of anything below the head."""
        biases = self._biases.parameters if self._biases else {}
        below = (*self._lora.values(), *biases.values())
        return not any(parameter.requires_grad for parameter in below)

    @torch.no_grad()
    def make_idle(self) -> None:
        """Set every B to 0, and every residual; every bias to the backbone's."""
        if self._biases:
            self._biases.clear()
        if self._residuals:
            self._residuals.clear()
        for name, parameter in self._lora.items():
            if ".lora_B." in name:
                parameter.zero_()

    def load_state(self, state: State) -> None:
        """Take over an adapter state. Raises LoricaError LOR-205 when it does not fit."""
        write_state(self.adapter_parameters, state)
        if self._residuals:
            self._residuals.fold()

    def load_head(self, state: State) -> None:
        """Take over a head (and its center) on the backbone as it came; LOR-205 as above."""
        own = {name: p for name, p in self.adapter_parameters.items() if name.startswith("head.")}
        write_state(own, state)
        self.make_idle()

    def adapter_state(self) -> State:
        """A copy of the adapter state."""
        return read_state(self.adapter_parameters)

    def pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What is pooled from token states that enter the lowest adapted layer."""
        with computing_in(self.numbers):
            states = self.prefix.finish(hidden, mask)
        return self.pool(states.float(), mask)

    def hidden_of_ids(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token states (n, T, H) that enter the lowest adapted layer; needs a split encoder."""
        with computing_in(self.numbers):
            return self.prefix.hidden(ids, mask).float()

    def pooled_of_ids(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What is pooled through the whole encoder; ids and mask are (n, T)."""
        with computing_in(self.numbers):
            states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.pool(states.float(), mask)

    def pool(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token states (n, T, H) to what features are made of; here as they are."""
        return states

    def features(self, pooled: torch.Tensor) -> torch.Tensor:
        """What the head reads, of what is pooled; here as it is."""
        return pooled

    def outputs(self, features: torch.Tensor, inputs: Inputs, rows: np.ndarray) -> torch.Tensor:
        """The head's outputs for ``rows`` of the inputs, whose features these are."""
        found: torch.Tensor = self.head(features)
        return found


class PooledModel(AdaptedModel):
    """One unit vector per record and a linear head on it.

    A record's feature is its pooled token states scaled to unit length, less a center c, scaled
    to unit length again, f (H,); its outputs are W f + b.
    """

    head: nn.Linear

    def __init__(self, backbone: Backbone, plan: RunPlan, outputs: int) -> None:
        """``outputs``: rows of W."""
        super().__init__(backbone, plan, nn.Linear(backbone.feature_size, outputs))
        self.center = nn.Parameter(torch.zeros(backbone.feature_size), requires_grad=False)
        self.pooled_width = backbone.feature_size
        self._pooling = backbone.pooling

    @property
    def adapter_parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of the adapter state by name: LoRA factors (and residuals), the head,
        its center."""
        return {**super().adapter_parameters, "head.center": self.center}

    def features_of_ids(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Unit-norm features (n, H) through the whole encoder; ids and mask are (n, T)."""
        return self.features(self.pooled_of_ids(ids, mask))

    def features(self, pooled: torch.Tensor) -> torch.Tensor:
        """Unit-norm features (n, H): what the head reads."""
        return functional.normalize(pooled - self.center, dim=-1)

    def pool(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Unit-norm pooled states (n, H), or as long as the backbone's own modules make them."""
        return functional.normalize(self._pooling(states, mask), dim=-1)


def starting_factors(model: AdaptedModel, generator: torch.Generator) -> State:
    """LoRA: A has orthonormal rows (orthonormal columns where r > in), B is 0, so the adapted
    encoder equals the backbone. Biases are the backbone's. Everything else is 0."""
    state: State = {}
    for name, parameter in model.adapter_parameters.items():
        if ".lora_A." in name:
            rows, width = parameter.shape
            gaussian = torch.randn(max(rows, width), min(rows, width), generator=generator)
            basis = torch.linalg.qr(gaussian)[0]
            state[name] = (basis if rows > width else basis.T).contiguous()
        elif part_of(name) is Part.BIAS:
            state[name] = parameter.detach().clone()
        else:
            state[name] = torch.zeros(parameter.shape)
    return state
