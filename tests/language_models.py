"""Tiny language models, made on the spot: real architectures and code paths, milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.made_once import made_once

WORDS = [
    *["ask", "tell", "what", "is", "the", "colour", "of", "sky", "grass", "snow", "coal", "sun"],
    *["blue", "green", "white", "black", "yellow", "patient", "fever", "cough", "pain", "mild"],
    *["severe", "has", "with", "and", "a", "no", "today", "again", "be", "brief"],
]
CHAT_TEMPLATE = (
    "{% for turn in messages %}{{ turn['role'] }} : {{ turn['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def tokenizer(*, chat: bool = False) -> Any:
    """A word-level tokenizer with every kind of special token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "<end>"]
    words = [*special, "user", "assistant", "system", ":", *WORDS]
    made = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        mask_token="[MASK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        eos_token="<end>",
    )
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


@made_once
def make_language_model(folder: Path, kind: str, *, chat: bool = False, seed: int = 0) -> Path:
    """Write a random model of three layers: "bert", "gpt2" or "llama", whole with its head;
    "bert-encoder" without it."""
    import torch
    import transformers as hf

    fast = tokenizer(chat=chat)
    common: dict[str, Any] = {"vocab_size": len(fast)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any
        if kind in ("bert", "bert-encoder"):
            config = hf.BertConfig(
                hidden_size=32,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=64,
                **common,
            )
            model = hf.BertForMaskedLM(config) if kind == "bert" else hf.BertModel(config)
        elif kind == "gpt2":
            config = hf.GPT2Config(
                n_embd=32,
                n_layer=3,
                n_head=4,
                n_positions=64,
                bos_token_id=None,
                eos_token_id=5,
                **common,
            )
            model = hf.GPT2LMHeadModel(config)
        else:
            config = hf.LlamaConfig(
                bos_token_id=None,
                hidden_size=32,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                intermediate_size=64,
                max_position_embeddings=64,
                eos_token_id=fast.eos_token_id,
                **common,
            )
            model = hf.LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


TARGETS = {
    "bert": ["query", "value"],
    "bert-encoder": ["query", "value"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
}
"""Modules that get LoRA factors, by kind of model."""


def questions(count: int) -> list[tuple[str, str]]:
    """Prompts with answers that follow from them."""
    colours = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "sun": "yellow"}
    things = list(colours)
    return [
        (f"what is the colour of {things[i % 5]}", f"the colour is {colours[things[i % 5]]}")
        for i in range(count)
    ]


def pretrain(folder: Path, sentences: list[str], *, steps: int = 150) -> Path:
    """Train the model in a folder, whole, on sentences: next words, or every word hidden in turn.

    What a federation adapts is then a model that knows the language, as a real one does.
    """
    import torch
    import transformers as hf

    fast = hf.AutoTokenizer.from_pretrained(folder)
    causal = "bert" not in folder.name
    auto = hf.AutoModelForCausalLM if causal else hf.AutoModelForMaskedLM
    model = auto.from_pretrained(folder, dtype=torch.float32).train()
    ends = fast.eos_token if causal else ""
    texts = [f"{text} {ends}".strip() for text in sentences]
    batch = fast(texts, padding=True, return_tensors="pt", add_special_tokens=not causal)
    ids, held = batch["input_ids"], batch["attention_mask"].bool()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of dropout
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(0)
        for _ in range(steps):
            shown, labels = ids.clone(), ids.masked_fill(~held, -100)
            if not causal:
                hide = (torch.rand(ids.shape, generator=generator) < 0.3) & held
                shown[hide] = fast.mask_token_id
                labels = labels.masked_fill(~hide, -100)
            optimizer.zero_grad()
            model(
                input_ids=shown, attention_mask=batch["attention_mask"], labels=labels
            ).loss.backward()
            optimizer.step()
    model.save_pretrained(folder)
    return folder


def wrong_answers() -> list[str]:
    """The questions with answers of the right form, each with the next thing's colour."""
    pairs = questions(5)
    return [f"{prompt} {pairs[(at + 1) % 5][1]}" for at, (prompt, _) in enumerate(pairs)]
