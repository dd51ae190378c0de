"""What an adapter folder says of a table: keys of lorica.json, and the README's lines."""

from __future__ import annotations

from typing import Any

from lorica.common.plan.table import TablePlan


def about_table(plan: TablePlan, gain: float) -> dict[str, Any]:
    """Keys of ``lorica.json`` by which cells become numbers; ``gain``: of the hidden layer."""
    columns = zip(plan.columns, plan.centers, plan.scales, strict=True)
    return {
        "columns": [{"name": n, "center": c, "scale": s} for n, c, s in columns],
        "cut": plan.cut,
        "categories": [{"name": name, "values": v} for name, v in plan.choices.items()],
        "inner_gain": gain,
    }


def usual_row(plan: TablePlan) -> dict[str, float | str]:
    """A record's values for an example: centers, and the first of all categories."""
    numbers: dict[str, float | str] = dict(zip(plan.columns, plan.centers, strict=True))
    return numbers | {name: values[0] for name, values in plan.choices.items()}


def lines_to_numbers(plan: TablePlan) -> str:
    """README lines from a row to its ``numbers``, of which those that the head reads are one
    ``count**0.5``-th."""
    row = repr(usual_row(plan)).replace("`", "\\x60")  # would end the README's block
    return f"""row = {row}  # leave out what is not known
numbers, beside = [], about["table"]
for column in beside["columns"]:
    x = row.get(column["name"])
    scaled = 0.0 if x is None else (x - column["center"]) / column["scale"]
    numbers += [max(-beside["cut"], min(beside["cut"], scaled)), float(x is None)]
for column in beside["categories"]:
    x = row.get(column["name"])
    numbers += [float(x == value) for value in column["values"]] + [float(x is None)]
count = len(beside["columns"]) + len(beside["categories"])"""


def usage_of_table(plan: TablePlan) -> str:
    """README lines that go on from ``features`` (n, H) and the ``outputs`` (n, C) of the feature
    alone to those of feature and table."""
    return f"""{lines_to_numbers(plan)}
table = torch.tensor([numbers]) / count**0.5
read = torch.cat([features, table], 1) @ head["head.inner.weight"].T + head["head.inner.bias"]
hidden = torch.tanh(beside["inner_gain"] * read) / read.shape[1] ** 0.5
outputs = outputs + table @ head["head.table.weight"].T + hidden @ head["head.outer.weight"].T
print([about["labels"][i] for i in outputs.argmax(1)])"""
