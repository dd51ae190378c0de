"""Masked language modelling: a backbone learns the language of unlabelled texts.

Some of a text's tokens are hidden and told from the rest. Which ones is decided once, by the text
alone, so nothing of a record depends on another record or on the order of steps, and what is
frozen can be computed once. The adapter, merged into its backbone (``lorica export``), is where a
run on labelled records can start from.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from lorica.common.backbone.loading import Backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.tasks.inputs import Encoded, Inputs, encode
from lorica.common.tasks.language.heads import TIED_SCALE, TiedHead, language_head
from lorica.common.tasks.language.inputs import AskedTokens, TokenTargets
from lorica.common.tasks.language.predictions import FillPrediction
from lorica.common.tasks.language.task import LanguageModel, LanguageModelling

_HIDDEN_SHARE, _SWAPPED_SHARE = 0.8, 0.1  # of the asked tokens (Devlin et al. 2019, 3.1)
_SHOWN = 5


class MaskedLM(LanguageModelling):
    """Hidden tokens from the text around them.

    The backbone's own head tells tokens, frozen, where its weights have one. Where they have
    none (sentence encoders), cosines to the input embeddings do, behind a linear map of the
    states that is trained and travels as the adapter's head and starts as the identity.
    """

    kind: ClassVar[str] = "masked-lm"
    pipeline_tag: ClassVar[str] = "fill-mask"

    def check(self, records: Records, *, where: str) -> None:
        """Every text will do."""

    def encode(self, backbone: Backbone, records: Records) -> MaskedTokens:
        """task.mask_share of a text's tokens, at least one, are asked for: 80 % of them hidden,
        10 % swapped for random ones, 10 % left as they are.

        A text of nothing but special tokens is asked for one of those: it teaches nothing, and
        refusing it would tell that it is there.
        """
        mask = _mask_id(backbone)
        special = set(backbone.tokenizer.all_special_ids)
        tokens, positions, originals = [], [], []
        encoded = self._encoded(backbone, records)
        for ids in encoded.tokens:
            free = np.array([at for at, token in enumerate(ids) if int(token) not in special])
            free = free if len(free) else np.arange(len(ids))
            seed = hashlib.sha256(ids.tobytes()).digest()
            chance = np.random.default_rng(list(seed))
            count = max(1, round(self.plan.task.mask_share * len(free)))
            asked = np.sort(chance.choice(free, size=count, replace=False))
            fate = chance.random(count)
            swapped = chance.integers(0, backbone.model.config.vocab_size, size=count)
            shown = np.where(fate < _HIDDEN_SHARE, mask, ids[asked])
            shown = np.where(fate >= 1 - _SWAPPED_SHARE, swapped, shown)
            hidden = ids.copy()
            hidden[asked] = shown
            tokens.append(hidden)
            positions.append(asked)
            originals.append(ids[asked])
        return MaskedTokens(tokens, positions, originals, cut=encoded.cut, limit=encoded.limit)

    def encode_for_use(self, backbone: Backbone, records: Records) -> MaskedTokens:
        """Texts in which the tokenizer's own mask stands for what is to be told."""
        mask, word = _mask_id(backbone), backbone.tokenizer.mask_token
        encoded = self._encoded(backbone, records)
        positions = [np.flatnonzero(ids == mask) for ids in encoded.tokens]
        for number, places in enumerate(positions, 1):
            if not len(places):
                raise LoricaError(
                    Code.DATA_EMPTY_TEXT,
                    f"Text {number} has no {word}: nothing is asked for.",
                    mend=f'Write {word} for what is to be filled in: "the {word} was normal".',
                )
        return MaskedTokens(encoded.tokens, positions, [], backbone.tokenizer, limit=encoded.limit)

    def targets(self, records: Records, inputs: Inputs) -> TokenTargets:
        assert isinstance(inputs, MaskedTokens)
        return TokenTargets(inputs.originals)

    def model(self, backbone: Backbone) -> LanguageModel:
        own = language_head(backbone, "masked")
        if own is not None:
            return LanguageModel(backbone, self.plan, own)
        tied = TiedHead(backbone.model.get_input_embeddings().weight)
        return LanguageModel(backbone, self.plan, tied, bridge=True)

    def predictions(
        self, outputs: torch.Tensor, inputs: Inputs, rows: np.ndarray
    ) -> list[FillPrediction]:
        assert isinstance(inputs, MaskedTokens)
        found = []
        for scores, row in zip(outputs, rows, strict=True):
            chances = torch.softmax(scores[: len(inputs.positions[row])], dim=-1)
            best = chances.topk(min(_SHOWN, chances.shape[-1]), dim=-1)
            found.append(
                FillPrediction(
                    [
                        [
                            (inputs.tokenizer.decode([token]).strip(), chance)
                            for token, chance in zip(ids, values, strict=True)
                        ]
                        for ids, values in zip(
                            best.indices.tolist(), best.values.tolist(), strict=True
                        )
                    ]
                )
            )
        return found

    def about(self, backbone: Backbone) -> dict[str, Any]:
        return {
            "max_length": min(self.plan.training.max_length, backbone.max_length),
            "own_head": language_head(backbone, "masked") is not None,
        }

    def usage(self, backbone: Backbone) -> str:
        asked = """batch = tokenizer(["the " + tokenizer.mask_token], truncation=True,
                  max_length=about["max_length"], return_tensors="pt")
"""
        if language_head(backbone, "masked") is not None:
            scores = """from transformers import AutoModelForMaskedLM

whole = AutoModelForMaskedLM.from_pretrained(source, revision=revision, dtype=torch.float32)
setattr(whole, whole.base_model_prefix, model.merge_and_unload())
with torch.no_grad():
    scores = whole.eval()(**batch).logits
"""
        else:
            scores = f"""with torch.no_grad():
    states = model(**batch).last_hidden_state
    mapped = states @ head["head.weight"].T + head["head.bias"]
    words = torch.nn.functional.normalize(model.get_input_embeddings().weight, dim=-1)
    scores = {TIED_SCALE} * (torch.nn.functional.normalize(mapped, dim=-1) @ words.T)
"""
        answer = """told = scores[batch["input_ids"] == tokenizer.mask_token_id].argmax(-1)
print(tokenizer.convert_ids_to_tokens(told.tolist()))
"""
        return asked + scores + answer

    @property
    def subject(self) -> str:
        return "the language of a domain"

    def _encoded(self, backbone: Backbone, records: Records) -> Encoded:
        training = self.plan.training
        return encode(backbone, records.texts, training.max_length, keep=training.keep)


@dataclass(frozen=True)
class MaskedTokens(AskedTokens):
    """Texts with hidden tokens."""

    originals: list[np.ndarray]
    """The tokens that were asked for, one array per text; empty where nobody knows them."""
    tokenizer: Any = None
    """Needed where tokens are to be written out."""


def _mask_id(backbone: Backbone) -> int:
    mask = backbone.tokenizer.mask_token_id
    if mask is None:
        raise LoricaError(
            Code.BACKBONE_UNSUPPORTED,
            f"The tokenizer in {backbone.folder.name} has no mask token.",
            mend="Use a backbone that was trained with one: BERT, RoBERTa, DistilBERT ...",
        )
    return int(mask)
