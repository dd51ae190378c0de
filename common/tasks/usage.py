"""The lines of an adapter's README that use it with plain transformers and peft."""

from __future__ import annotations

from lorica.common.backbone.loading import Backbone

_TOKENS = """batch = tokenizer(["some text"], padding=True, truncation=True,
                  max_length=about["max_length"], return_tensors="pt")
with torch.no_grad():
    states = model(**batch).last_hidden_state
"""


def usage_of_pooled(backbone: Backbone, answer: str) -> str:
    """For :class:`~lorica.common.tasks.model.PooledModel`.

    Args:
        backbone: says how token states are pooled.
        answer: a line that goes on from ``outputs`` (n, C).
    """
    cls = backbone.pooling == "cls"
    pooled = "states[:, 0]" if cls else "(states * weights).sum(1) / weights.sum(1)"
    return f"""{_TOKENS}weights = batch["attention_mask"][..., None].to(states.dtype)
features = torch.nn.functional.normalize({pooled}, dim=-1)
features = torch.nn.functional.normalize(features - head["head.center"], dim=-1)
outputs = features @ head["head.weight"].T + head["head.bias"]
{answer}
"""


def usage_of_tokens(answer: str) -> str:
    """For a linear head on unit token states; ``answer`` goes on from ``outputs`` (n, T, C)."""
    return f"""{_TOKENS}features = torch.nn.functional.normalize(states, dim=-1)
outputs = features @ head["head.weight"].T + head["head.bias"]
{answer}
"""
