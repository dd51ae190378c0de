"""The part of a language model above its encoder: token states to scores of the vocabulary."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from lorica.common.adapter.lora import structural_copy
from lorica.common.backbone.files import read_weights
from lorica.common.backbone.loading import Backbone
from lorica.common.errors import Code, LoricaError

HeadKind = Literal["causal", "masked"]

TIED_SCALE = 16.0
"""Inverse temperature of :class:`TiedHead`: its scores are cosines times this."""

_PROBE_TOLERANCE = 1e-3


class _Given(nn.Module):
    """An encoder whose states are given instead of computed."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


class LanguageHead(nn.Module):
    """A model's own frozen head, whatever its architecture: the model without its encoder.

    It is *checked* on a probe when it is made that head and encoder together are the model.
    """

    def __init__(self, whole: Any) -> None:
        """``whole``: a transformers model for causal or masked language modelling."""
        super().__init__()
        self._rest = structural_copy(whole)
        setattr(self._rest, whole.base_model_prefix, _Given())
        self.requires_grad_(False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Scores (n, P, V) of token states (n, P, H)."""
        found: torch.Tensor = self._rest(inputs_embeds=states).logits
        return found


class TiedHead(nn.Module):
    """For encoders that come without a head: TIED_SCALE times the cosines of states and input
    embeddings."""

    def __init__(self, embeddings: torch.Tensor) -> None:
        """``embeddings``: shape (V, H)."""
        super().__init__()
        self.register_buffer("_unit", functional.normalize(embeddings.detach(), dim=-1))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Scores (n, P, V) of token states (n, P, H)."""
        unit: Any = self._unit
        return TIED_SCALE * (functional.normalize(states, dim=-1) @ unit.T)


@functools.lru_cache(maxsize=4)
def language_head(backbone: Backbone, kind: HeadKind) -> LanguageHead | None:
    """The backbone's own head, frozen and shared; None when its weights hold none.

    Raises:
        LoricaError: LOR-204 when the architecture has no such head, or one that works otherwise.
    """
    import transformers

    auto = {
        "causal": transformers.AutoModelForCausalLM,
        "masked": transformers.AutoModelForMaskedLM,
    }[kind]
    config = backbone.model.config
    try:
        with torch.device("meta"):
            architecture = type(auto.from_config(config, trust_remote_code=False))
        whole, info = architecture.from_pretrained(
            None,
            config=config,
            state_dict=read_weights(backbone.folder),
            dtype="float32",
            output_loading_info=True,
        )
    except (ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"{backbone.folder.name} ({type(backbone.model).__name__}) has no head for {kind} "
            f"language modelling: {str(error).splitlines()[0] if str(error) else error!r}",
            mend="Use a backbone that was made for it: GPT-2, Llama, Qwen ... for causal-lm; "
            "BERT, RoBERTa, DistilBERT ... for masked-lm.",
        ) from error
    if info["missing_keys"]:
        return None
    whole.eval().requires_grad_(False)
    if whole.config.tie_word_embeddings and whole.get_output_embeddings() is not None:
        whole.get_output_embeddings().weight = backbone.model.get_input_embeddings().weight
    head = LanguageHead(whole)
    _check(whole, head, backbone)
    return head


def _check(whole: Any, head: LanguageHead, backbone: Backbone) -> None:
    vocabulary = int(whole.config.vocab_size)
    ids = torch.arange(4)[None] % vocabulary
    mask = torch.ones_like(ids)
    with torch.no_grad():
        wanted = whole(input_ids=ids, attention_mask=mask).logits
        # Of a backbone in fewer bits the states are rounded; the head is not.
        encoder = backbone.model if backbone.quantize == "none" else whole.base_model
        found = head(encoder(input_ids=ids, attention_mask=mask).last_hidden_state)
    if found.shape != wanted.shape or not bool((found - wanted).abs().max() <= _PROBE_TOLERANCE):
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"{type(whole).__name__} is not an encoder and a head on its last states.",
        )
