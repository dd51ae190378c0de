"""The lines of an adapter's README that use it with plain transformers and peft."""

from __future__ import annotations

from lorica.common.backbone.loading import Backbone
from lorica.common.plan import RunPlan
from lorica.common.plan.course import KeptPart
from lorica.common.tasks.inputs import special_ends

_CUT = """ids, limit = tokenizer({given})["input_ids"], about["max_length"]
first = (limit - {ends} + 1) // 2  # of a text that is too long, half of each end is kept
last = limit - {ends} - first
ids = [x if len(x) <= limit else
       x[:{before} + first] + x[len(x) - {after} - last:len(x) - {after}] + x[len(x) - {after}:]
       for x in ids]
batch = tokenizer.pad({{"input_ids": ids}}, return_tensors="pt")
"""
_WHOLE = """tokenizer.truncation_side = {side!r}
batch = tokenizer({given}, padding=True, truncation=True, max_length=about["max_length"],
                  return_tensors="pt")
"""
_STATES = """inputs = dict(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
with torch.no_grad():
    states = {encoder}(**inputs).last_hidden_state
"""


def lines_to_batch(backbone: Backbone, keep: KeptPart, *, prompt: str = "") -> str:
    """From a text to ``batch``, as :func:`lorica.common.tasks.inputs.encode` makes it."""
    given = f"[{prompt!r} + text for text in texts]" if prompt else "texts"
    begin = 'texts = ["some text"]\n'
    if keep != "both":
        return begin + _WHOLE.format(given=given, side="right" if keep == "head" else "left")
    before, after = special_ends(backbone.tokenizer)
    return begin + _CUT.format(given=given, before=before, after=after, ends=before + after)


def lines_to_states(plan: RunPlan, backbone: Backbone, *, prompt: str = "") -> str:
    """From a text to ``batch`` and ``states`` (n, T, H)."""
    # peft hands arguments on that not every model takes (CLIP).
    encoder = "model.get_base_model()" if plan.adapter.kind == "lora" else "model"
    batch = lines_to_batch(backbone, plan.training.keep, prompt=prompt)
    return batch + _STATES.format(encoder=encoder)


def usage_of_pooled(plan: RunPlan, backbone: Backbone, answer: str) -> str:
    """For :class:`~lorica.common.tasks.model.PooledModel`.

    Args:
        plan: says what is kept of long texts.
        backbone: says how token states are pooled.
        answer: a line that goes on from ``outputs`` (n, C).
    """
    pooling = backbone.pooling
    steps = 'projection = load_file("projection.safetensors")\n' if pooling.tensors else ""
    states = lines_to_states(plan, backbone, prompt=pooling.prompt)
    return f"""{states}{steps}{pooling.lines()}\
features = torch.nn.functional.normalize(pooled, dim=-1)
features = torch.nn.functional.normalize(features - head["head.center"], dim=-1)
outputs = features @ head["head.weight"].T + head["head.bias"]
{answer}
"""


def usage_of_tokens(plan: RunPlan, backbone: Backbone, answer: str) -> str:
    """For a linear head on unit token states; ``answer`` goes on from ``outputs`` (n, T, C)."""
    return f"""{lines_to_states(plan, backbone)}\
features = torch.nn.functional.normalize(states, dim=-1)
outputs = features @ head["head.weight"].T + head["head.bias"]
{answer}
"""
