"""Instruction tuning of a causal language model: the column of texts asks, that of labels answers.

Prompts are given, answers are learnt: only an answer's tokens, and the one that ends it, are
asked for. Where the backbone's tokenizer has a chat template, prompt and answer are put into it
as a user's and an assistant's turn; elsewhere a line break divides them.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch

from lorica.common.backbone.loading import Backbone
from lorica.common.data.records import Records
from lorica.common.errors import Code, LoricaError
from lorica.common.tasks.inputs import Inputs
from lorica.common.tasks.language.heads import language_head
from lorica.common.tasks.language.inputs import AskedTokens, TokenTargets
from lorica.common.tasks.language.predictions import TextPrediction
from lorica.common.tasks.language.task import LanguageModel, LanguageModelling
from lorica.common.tasks.model import AdaptedModel

_PLAIN_BREAK = "\n"


class CausalLM(LanguageModelling):
    """Answers to prompts, token by token.

    ``exact_match`` is what greedy decoding gives: it repeats an answer, its end included, if and
    only if every token of the answer is the likeliest one after those before it.
    """

    kind: ClassVar[str] = "causal-lm"
    pipeline_tag: ClassVar[str] = "text-generation"
    generates: ClassVar[bool] = True

    def check(self, records: Records, *, where: str) -> None:
        for number, answer in enumerate(records.labels, 1):
            if not answer.strip():
                raise LoricaError(
                    Code.DATA_EMPTY_TEXT,
                    f"{where}: record {number} has an empty answer in the column "
                    f"'{self.plan.data.label}'.",
                )

    def encode(self, backbone: Backbone, records: Records) -> AskedTokens:
        """Prompt, answer and end. What is too long loses the beginning of its prompt, but never
        the whole of it, and then the end of its answer."""
        limit = min(self.plan.training.max_length, backbone.max_length)
        tokens, positions, cut = [], [], 0
        for prompt, answer in zip(records.texts, records.labels, strict=True):
            asking, told = self._turns(backbone, prompt, answer)
            cut += len(asking) + len(told) > limit
            room = max(1, limit - len(told))
            asking = asking[-min(len(asking), room) :]
            whole = np.array((asking + told)[:limit], dtype=np.int64)
            tokens.append(whole)
            positions.append(np.arange(len(asking) - 1, len(whole) - 1, dtype=np.int64))
        return AskedTokens(tokens, positions, cut=cut, limit=limit)

    def targets(self, records: Records, inputs: Inputs) -> TokenTargets:
        assert isinstance(inputs, AskedTokens)
        return TokenTargets(
            [ids[places + 1] for ids, places in zip(inputs.tokens, inputs.positions, strict=True)]
        )

    def model(self, backbone: Backbone) -> LanguageModel:
        tell = language_head(backbone, "causal")
        if tell is None:
            raise LoricaError(
                Code.BACKBONE_UNSUPPORTED,
                f"The weights in {backbone.folder.name} lack the head of a causal language model.",
                mend="Save the whole model (AutoModelForCausalLM), not its encoder alone.",
            )
        return LanguageModel(backbone, self.plan, tell)

    def predictions(
        self, outputs: torch.Tensor, inputs: Inputs, rows: np.ndarray
    ) -> list[TextPrediction]:
        raise TypeError("answers are generated, not read off one pass: use generate()")

    @torch.no_grad()
    def generate(
        self, backbone: Backbone, model: AdaptedModel, texts: Sequence[str]
    ) -> list[TextPrediction]:
        """Greedy answers to prompts, each at most task.answer_tokens tokens long."""
        assert isinstance(model, LanguageModel)
        return [self._answer(backbone, model, text) for text in texts]

    def _answer(self, backbone: Backbone, model: LanguageModel, prompt: str) -> TextPrediction:
        most = self.plan.task.answer_tokens
        asking, told = self._turns(backbone, prompt, "")
        ends = set(told) | {backbone.tokenizer.eos_token_id}
        limit = min(self.plan.training.max_length, backbone.max_length)
        asking = asking[-max(1, limit - most) :]
        ids, past, answer = torch.tensor([asking]), None, []
        for _ in range(min(most, max(0, backbone.max_length - len(asking)))):
            found = model.encoder(input_ids=ids, past_key_values=past, use_cache=True)
            past = found.past_key_values
            token = int(model.tell(found.last_hidden_state[:, -1:])[0, -1].argmax())
            if token in ends:
                break
            answer.append(token)
            ids = torch.tensor([[token]])
        return TextPrediction(backbone.tokenizer.decode(answer, skip_special_tokens=True).strip())

    def _turns(self, backbone: Backbone, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Token ids of the prompt's part and of the answer's, the end included."""
        tokenizer = backbone.tokenizer
        if tokenizer.chat_template is None:
            if tokenizer.eos_token_id is None:
                raise LoricaError(
                    Code.BACKBONE_UNSUPPORTED,
                    f"The tokenizer in {backbone.folder.name} has no token that ends a text.",
                )
            start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
            asking = tokenizer(self._instructed(prompt) + _PLAIN_BREAK, add_special_tokens=False)
            told = tokenizer(answer, add_special_tokens=False)["input_ids"] if answer else []
            return [*start, *asking["input_ids"]], [*told, tokenizer.eos_token_id]
        turns = [{"role": "user", "content": prompt}]
        if self.plan.task.system:
            turns.insert(0, {"role": "system", "content": self.plan.task.system})
        asking_text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        whole_text = tokenizer.apply_chat_template(
            [*turns, {"role": "assistant", "content": answer}], tokenize=False
        )
        if not whole_text.startswith(asking_text):
            raise LoricaError(
                Code.BACKBONE_UNSUPPORTED,
                "The chat template writes a prompt otherwise once it is answered: an answer's "
                "beginning cannot be told.",
                mend="Use a backbone whose template only appends turns.",
            )
        told_text = whole_text[len(asking_text) :]
        ids = functools.partial(tokenizer, add_special_tokens=False)
        return list(ids(asking_text)["input_ids"]), list(ids(told_text)["input_ids"])

    def _instructed(self, prompt: str) -> str:
        system = self.plan.task.system
        return f"{system}{_PLAIN_BREAK}{prompt}" if system else prompt

    def about(self, backbone: Backbone) -> dict[str, Any]:
        return {
            "system": self.plan.task.system,
            "max_length": min(self.plan.training.max_length, backbone.max_length),
            "answer_tokens": self.plan.task.answer_tokens,
        }

    def usage(self, backbone: Backbone) -> str:
        if backbone.tokenizer.chat_template is None:
            ask = (
                'system = about["system"] + "\\n" if about["system"] else ""\n'
                "bos = tokenizer.bos_token_id\n"
                "start = [] if bos is None else [bos]\n"
                'text = system + "some prompt\\n"\n'
                'ids = tokenizer(text, add_special_tokens=False)["input_ids"]\n'
                "ids = torch.tensor([start + ids])"
            )
        else:
            ask = (
                'turns = [{"role": "system", "content": about["system"]}] if about["system"] '
                "else []\n"
                'turns += [{"role": "user", "content": "some prompt"}]\n'
                "ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True,\n"
                '    return_tensors="pt", return_dict=True)["input_ids"]'
            )
        return f"""from transformers import AutoModelForCausalLM

whole = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=torch.float32)
setattr(whole, whole.base_model_prefix, model.merge_and_unload())
{ask}
answer = whole.eval().generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
    max_new_tokens=about["answer_tokens"], pad_token_id=tokenizer.pad_token_id)
print(tokenizer.decode(answer[0, ids.shape[1]:], skip_special_tokens=True).strip())
"""

    @property
    def subject(self) -> str:
        return "answers to prompts"
