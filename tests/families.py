"""Tiny random models of many families of transformers, made on the spot: real architectures and
code paths, milliseconds. Windows are a few tokens long, and kinds of layers alternate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

WINDOW = 6
"""Tokens of every window."""

LONGEST = 48
"""Tokens of the longest text, where a family has a limit."""

_WIDE = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}
_MLP = {**_WIDE, "intermediate_size": 24}
_GROUPED = {**_MLP, "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64}
_SLIDING = ["full_attention", "sliding_attention", "sliding_attention"]
_ENDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
_POSITIONS = {"max_position_embeddings": LONGEST}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}
_BART = {
    "d_model": 16,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    **_POSITIONS,
}

TEXT: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "bert": ("Bert", {**_MLP, **_POSITIONS}, ["query", "value"]),
    "roberta": ("Roberta", {**_MLP, **_POSITIONS}, ["query", "value"]),
    "xlm-roberta": ("XLMRoberta", {**_MLP, **_POSITIONS}, ["query", "value"]),
    "electra": ("Electra", {**_MLP, **_POSITIONS, "embedding_size": 8}, ["query", "value"]),
    "mpnet": ("MPNet", {**_MLP, **_POSITIONS}, ["q", "v"]),
    "distilbert": (
        "DistilBert",
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24, **_POSITIONS},
        ["q_lin", "v_lin"],
    ),
    "modernbert": (
        "ModernBert",
        {
            **_MLP,
            **_ENDS,
            "cls_token_id": 2,
            "sep_token_id": 3,
            "local_attention": WINDOW,
            "global_attn_every_n_layers": 2,
            "max_position_embeddings": 64,
        },
        ["Wqkv"],
    ),
    "deberta": (
        "Deberta",
        {**_MLP, **_POSITIONS, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        ["in_proj"],
    ),
    "deberta-v2": (
        "DebertaV2",
        {
            **_MLP,
            **_POSITIONS,
            "relative_attention": True,
            "pos_att_type": ["c2p", "p2c"],
            "position_buckets": 8,
        },
        ["value_proj"],
    ),
    "roformer": ("RoFormer", {**_MLP, **_POSITIONS}, ["query", "value"]),
    "mobilebert": (
        "MobileBert",
        {
            **_MLP,
            **_POSITIONS,
            "embedding_size": 8,
            "intra_bottleneck_size": 16,
            "true_hidden_size": 16,
        },
        ["query", "value"],
    ),
    "t5": ("T5", _T5, ["q", "v"]),
    "mt5": ("MT5", _T5, ["q", "v"]),
    "bart": ("Bart", _BART, ["q_proj", "v_proj"]),
    "marian": ("Marian", {**_BART, "decoder_start_token_id": 0}, ["q_proj", "v_proj"]),
    "gpt2": (
        "GPT2",
        {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": LONGEST},
        ["c_attn"],
    ),
    "gpt-neo": (
        "GPTNeo",
        {
            "hidden_size": 16,
            "num_layers": 3,
            "num_heads": 2,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": WINDOW,
            **_POSITIONS,
        },
        ["q_proj", "v_proj"],
    ),
    "gpt-neox": ("GPTNeoX", {**_MLP, **_POSITIONS}, ["query_key_value"]),
    "opt": ("OPT", {**_WIDE, "ffn_dim": 24, "word_embed_proj_dim": 16, **_POSITIONS}, ["v_proj"]),
    "bloom": ("Bloom", {"hidden_size": 16, "n_layer": 3, "n_head": 2}, ["query_key_value"]),
    "llama": ("Llama", _GROUPED, ["q_proj", "v_proj"]),
    "mistral": ("Mistral", {**_GROUPED, "sliding_window": WINDOW}, ["q_proj", "v_proj"]),
    "qwen2": (
        "Qwen2",
        {**_GROUPED, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
        ["q_proj", "v_proj"],
    ),
    "qwen3": (
        "Qwen3",
        {**_GROUPED, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
        ["q_proj", "v_proj"],
    ),
    "gemma2": (
        "Gemma2",
        {**_GROUPED, "sliding_window": WINDOW, "layer_types": _SLIDING},
        ["q_proj", "v_proj"],
    ),
    "gemma3": (
        "Gemma3Text",
        {**_GROUPED, "sliding_window": WINDOW, "layer_types": _SLIDING},
        ["q_proj", "v_proj"],
    ),
    "cohere2": (
        "Cohere2",
        {**_GROUPED, "sliding_window": WINDOW, "layer_types": _SLIDING},
        ["q_proj", "v_proj"],
    ),
    "olmo3": (
        "Olmo3",
        {**_GROUPED, "sliding_window": WINDOW, "layer_types": _SLIDING},
        ["q_proj", "v_proj"],
    ),
    "phi3": ("Phi3", {**_GROUPED, "sliding_window": WINDOW}, ["qkv_proj"]),
    "gpt-oss": (
        "GptOss",
        {
            **_GROUPED,
            "sliding_window": WINDOW,
            "layer_types": _SLIDING,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
        ["q_proj", "v_proj"],
    ),
    "xlnet": ("XLNet", {"d_model": 16, "n_layer": 3, "n_head": 2, "d_inner": 24}, ["layer_1"]),
    "longformer": (
        "Longformer",
        {**_MLP, "attention_window": [4, 8, 8], **_POSITIONS},
        ["query", "value"],
    ),
    "funnel": (
        "Funnel",
        {"d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24, "block_sizes": [1, 1, 1]},
        ["v_head"],
    ),
    "albert": ("Albert", {**_MLP, **_POSITIONS, "embedding_size": 8}, ["query", "value"]),
    "fnet": ("FNet", {**_MLP, **_POSITIONS}, ["dense"]),
}
"""Family -> its classes in transformers, sizes, the modules that get LoRA factors."""


def make_family(folder: Path, name: str, *, pad: bool = True, **changes: Any) -> Path:
    """Write a random model of a family of texts, and a word-level tokenizer, into a folder.

    Args:
        folder: made.
        name: of :data:`TEXT`.
        pad: whether the tokenizer has a token for padding.
        **changes: of the config.
    """
    import torch
    import transformers as t

    from tests.language_models import tokenizer

    fast = tokenizer()
    if not pad:
        fast.pad_token = None
    kind, sizes, _ = TEXT[name]
    special = {} if "pad_token_id" in sizes else {"pad_token_id": 0, "eos_token_id": 5}
    settings = {"vocab_size": len(fast), **special, **sizes, **changes}
    config = getattr(t, f"{kind}Config")(**settings)
    model_class: Callable[[Any], Any] = getattr(t, f"{kind}Model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(8)  # else a random network hardly tells one text from another
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


SIDE = 32
"""Pixels of the images' sides."""

_PATCHES = {**_MLP, "image_size": SIDE, "patch_size": 8}
_STAGES = {"depths": [1, 1], "hidden_sizes": [8, 16]}

IMAGES: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "vit": ("ViT", _PATCHES, ["q_proj", "v_proj"]),
    "deit": ("DeiT", _PATCHES, ["q_proj", "v_proj"]),
    "beit": ("Beit", _PATCHES, ["q_proj", "v_proj"]),
    "dinov2": ("Dinov2", {**_PATCHES, "mlp_ratio": 2}, ["q_proj", "v_proj"]),
    "data2vec-vision": ("Data2VecVision", _PATCHES, ["query", "value"]),
    "swin": (
        "Swin",
        {
            "image_size": SIDE,
            "patch_size": 4,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
        ["q_proj", "v_proj"],
    ),
    "segformer": (
        "Segformer",
        {
            "num_encoder_blocks": 2,
            "depths": [1, 1],
            "sr_ratios": [2, 1],
            "hidden_sizes": [8, 16],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [1, 2],
            "mlp_ratios": [2, 2],
        },
        ["q_proj", "v_proj"],
    ),
    "convnext": ("ConvNext", {"patch_size": 4, "num_stages": 2, **_STAGES}, []),
    "convnextv2": ("ConvNextV2", {"patch_size": 4, "num_stages": 2, **_STAGES}, []),
    "resnet": ("ResNet", {"embedding_size": 8, **_STAGES}, []),
    "regnet": ("RegNet", {"embedding_size": 8, "groups_width": 4, **_STAGES}, []),
    "mobilenet-v1": ("MobileNetV1", {"image_size": SIDE, "depth_multiplier": 0.25}, []),
    "mobilenet-v2": ("MobileNetV2", {"image_size": SIDE, "depth_multiplier": 0.25}, []),
    "poolformer": (
        "PoolFormer",
        {
            **_STAGES,
            "num_encoder_blocks": 2,
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "padding": [2, 1],
        },
        [],
    ),
    "efficientnet": (
        "EfficientNet",
        {
            "image_size": SIDE,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.2,
            "hidden_dim": 320,
        },
        [],
    ),
}
"""Family -> its classes in transformers, sizes, the modules that get LoRA factors (if any)."""


def make_image_family(folder: Path, name: str) -> Path:
    """Write a random model of a family of images, and an image processor, into a folder."""
    import torch
    import transformers as t

    kind, sizes, _ = IMAGES[name]
    config = getattr(t, f"{kind}Config")(**sizes)
    model_class: Callable[[Any], Any] = getattr(t, f"{kind}Model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):  # as if it were pre-trained
                    assert module.running_mean is not None and module.running_var is not None
                    module.running_mean.normal_(std=0.1)
                    module.running_var.uniform_(0.5, 2.0)
                elif isinstance(module, torch.nn.Linear):
                    module.weight.mul_(8)
    write_processor(folder)
    model.save_pretrained(folder)
    return folder


def write_processor(folder: Path) -> None:
    """Write an image processor for images of SIDE pixels."""
    import transformers as t

    folder.mkdir(parents=True, exist_ok=True)
    t.ViTImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.25],
    ).save_pretrained(folder)


def make_two_towers(folder: Path, kind: str = "CLIP") -> Path:
    """Write a model that reads texts with one part and images with another."""
    import torch
    import transformers as t

    from tests.language_models import tokenizer

    fast = tokenizer()
    words = {**_MLP, **_POSITIONS, "vocab_size": len(fast), "eos_token_id": 3, "pad_token_id": 0}
    config = getattr(t, f"{kind}Config")(text_config=words, vision_config=_PATCHES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(t, f"{kind}Model")(config)
    write_processor(folder)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder
