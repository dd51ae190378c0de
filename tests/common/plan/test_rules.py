"""Plans that are refused: unknown keys, impossible values, unreadable and hostile input."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import from_canonical, from_run_config, load_plan

Refuses = Callable[[Code, Callable[[], object]], str]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("privacy.epsilonn", "privacy.epsilon"),
        ("privacy.epslion", "privacy.epsilon"),
        ("training.learningrate", "training.learning_rate"),
        ("training.rank", "adapter.rank"),
        ("privcy.epsilon", "privacy"),
        ("Privacy.epsilon", "privacy"),
        ("simulations.sites", "simulation"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_valid_one_in_every_form(
    key: str, nearest: str, tmp_path: Path, refuses: Refuses
) -> None:
    section, name = key.split(".")
    file = tmp_path / "plan.toml"
    file.write_text(f"[{section}]\n{name} = 1\n")
    for form in (
        lambda: load_plan(None, [f"{key}=1"]),
        lambda: load_plan(file),
        lambda: from_run_config({key: 1}),
        lambda: from_canonical(json.dumps({section: {name: 1}})),
    ):
        detail = refuses(Code.PLAN_UNKNOWN_KEY, form)
        assert section in detail
        assert f"Did you mean '{nearest}'?" in detail


def test_a_name_near_to_nothing_is_refused_with_all_valid_ones(refuses: Refuses) -> None:
    detail = refuses(Code.PLAN_UNKNOWN_KEY, lambda: load_plan(None, ["zzz.qqq=1"]))
    assert all(name in detail for name in RunPlan.model_fields)


IMPOSSIBLE = [
    ("privacy.epsilon", "0"),
    ("privacy.epsilon", "-1.5"),
    ("privacy.epsilon", "nan"),
    ("privacy.epsilon", "-inf"),
    ("privacy.epsilon", "eight"),
    ("privacy.delta", "0"),
    ("privacy.delta", "1"),
    ("privacy.delta", "1.5"),
    ("privacy.delta", "nan"),
    ("privacy.clip_norm", "0"),
    ("privacy.clip_norm", "nan"),
    ("privacy.clip_norm", "inf"),  # no bound, no guarantee
    ("privacy.unit", ""),
    ("privacy.evaluation_metrics", "f2"),
    ("privacy.evaluation_share", "1"),
    ("data.validation", "0"),
    ("data.missing_unit", "guess"),
    ("rounds.evaluate_every", "-1"),
    ("adapter.rank", "0"),
    ("adapter.rank", "513"),
    ("adapter.rank", "2.5"),
    ("adapter.rank", "true"),
    ("adapter.alpha", "-1"),
    ("adapter.alpha", "inf"),
    ("adapter.kind", "qlora"),
    ("adapter.layers", "1.5"),
    ("adapter.layers", "last"),
    ("backbone.sha256", "abc"),
    ("backbone.sha256", "A" * 64),
    ("backbone.source", ""),
    ("data.text", ""),
    ("training.learning_rate", "0"),
    ("training.learning_rate", "inf"),
    ("training.head_learning_rate", "inf"),
    ("training.final_rate", "0"),
    ("training.final_rate", "1.1"),
    ("training.local_steps", "0"),
    ("training.expected_batch_size", "-3"),
    ("training.max_length", "1"),
    ("aggregation.method", "fedprox"),
    ("rounds.count", "0"),
    ("rounds.count", "1e3"),
    ("rounds.minimum_sites", "0"),
    ("rounds.timeout_seconds", "-1"),
    ("simulation.sites", "0"),
    ("simulation.partition", "by_column"),
    ("simulation.seed", "-1"),
    ("simulation.seed", "9223372036854775808"),
]


@pytest.mark.parametrize(("key", "value"), IMPOSSIBLE, ids=map("=".join, IMPOSSIBLE))
def test_an_impossible_value_is_refused_naming_key_and_value(
    key: str, value: str, refuses: Refuses
) -> None:
    for form in (
        lambda: load_plan(None, [f"{key}={value}"]),
        lambda: from_run_config({key: value}),
    ):
        detail = refuses(Code.PLAN_BAD_VALUE, form)
        assert key in detail
        assert value[:50] in detail


def test_a_truth_value_is_not_a_number(tmp_path: Path, refuses: Refuses) -> None:
    file = tmp_path / "plan.toml"
    for section, key in (("adapter", "rank"), ("privacy", "epsilon"), ("rounds", "count")):
        file.write_text(f"[{section}]\n{key} = true\n")
        assert f"{section}.{key}" in refuses(Code.PLAN_BAD_VALUE, lambda: load_plan(file))


def test_a_choice_nearly_right_is_refused_with_the_right_one(refuses: Refuses) -> None:
    detail = refuses(Code.PLAN_BAD_VALUE, lambda: load_plan(None, ["simulation.engine=rai"]))
    assert "Did you mean 'ray'?" in detail


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["only"], "at least two labels"),
        ([" leading", "b"], "begins or ends with a blank"),
        (["a", "trailing\t"], "begins or ends with a blank"),
        (["a", "b", "a"], "twice: a"),
        (["a", ""], "empty"),
        (["a", " \t"], "empty"),
        (["a", 3], "task.labels.1"),
        ("ab", "ab"),
    ],
)
def test_labels_that_cannot_be_are_refused(labels: Any, said: str, refuses: Refuses) -> None:
    text = json.dumps({"task": {"labels": labels}})
    detail = refuses(Code.PLAN_BAD_VALUE, lambda: from_canonical(text))
    assert "task.labels" in detail
    assert said in detail


def test_labels_that_are_no_unicode_text_are_refused(refuses: Refuses) -> None:
    text = json.dumps({"task": {"labels": ["\ud800", "b"]}})  # half a surrogate pair
    refuses(Code.PLAN_BAD_VALUE, lambda: from_canonical(text))


def test_dividing_by_a_column_needs_the_column(refuses: Refuses) -> None:
    detail = refuses(
        Code.PLAN_BAD_VALUE, lambda: load_plan(None, ["simulation.partition=by-column"])
    )
    assert "by-column" in detail and "simulation.column" in detail
    load_plan(None, ["simulation.partition=by-column", "simulation.column=hospital"])


def test_two_columns_cannot_both_be_the_unit(refuses: Refuses) -> None:
    both = ["privacy.unit=patient_id", "data.unit=customer_id"]
    detail = refuses(Code.PLAN_BAD_VALUE, lambda: load_plan(None, both))
    assert "patient_id" in detail and "customer_id" in detail


@pytest.mark.parametrize("setting", ["privacy.epsilon", "epsilon=3", "", "=", "=3", "privacy"])
def test_a_setting_that_is_no_assignment_is_refused(setting: str, refuses: Refuses) -> None:
    assert repr(setting) in refuses(Code.PLAN_UNREADABLE, lambda: load_plan(None, [setting]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[privacy\nepsilon = 3", "not valid TOML"),
        (b"[privacy]\nepsilon = 3\nepsilon = 4\n", "not valid TOML"),
        (b"epsilon 3", "not valid TOML"),
        ("[data]\ntext = 'Prüfung'\n".encode("latin-1"), "not UTF-8"),
        (b"\xff\xfe[\x00d\x00]\x00", "not UTF-8"),
        (b"x = " + b"[" * 50_000, "nested"),
    ],
    ids=["unclosed", "twice", "no equals sign", "latin-1", "utf-16", "deeply nested"],
)
def test_a_file_that_is_no_toml_is_refused_by_name(
    content: bytes, said: str, tmp_path: Path, refuses: Refuses
) -> None:
    file = tmp_path / "plan.toml"
    file.write_bytes(content)
    detail = refuses(Code.PLAN_UNREADABLE, lambda: load_plan(file))
    assert str(file) in detail
    assert said in detail


def test_a_missing_file_and_a_folder_are_refused_by_name(tmp_path: Path, refuses: Refuses) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        assert str(path) in refuses(Code.PLAN_UNREADABLE, lambda path=path: load_plan(path))


def test_a_section_that_is_no_table_is_refused(tmp_path: Path, refuses: Refuses) -> None:
    file = tmp_path / "plan.toml"
    file.write_text("task = 3\n")
    assert "task" in refuses(Code.PLAN_BAD_VALUE, lambda: load_plan(file))
    assert "task" in refuses(Code.PLAN_BAD_VALUE, lambda: load_plan(file, ["task.labels=a,b"]))


HOSTILE = {
    "nothing": "",
    "an array": "[]",
    "a number": "3",
    "null": "null",
    "cut off": '{"privacy":',
    "nested arrays": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "nested value": '{"privacy":{"epsilon":' + "[" * 500 + "]" * 500 + "}}",
    "a huge number": '{"rounds":{"count":' + "9" * 4000 + "}}",
    "an endless number": "9" * 100_000,
    "overflow to infinity": '{"privacy":{"clip_norm":1e400}}',
    "not a number": '{"privacy":{"epsilon":NaN}}',
    "a huge key": json.dumps({"a" * 1_000_000: 1}),
    "a huge choice": json.dumps({"adapter": {"kind": "lora" * 100_000}}),
    "a section that is a list": '{"privacy":[]}',
    "a section that is null": '{"privacy":null}',
    "a choice that is an object": '{"adapter":{"kind":{}}}',
    "labels that are an object": '{"task":{"labels":{"a":1}}}',
    "one label a hundred thousand times": json.dumps({"task": {"labels": ["a"] * 100_000}}),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_json_is_refused_with_a_code_and_quickly(text: str) -> None:
    start = time.process_time()
    with pytest.raises(LoricaError) as caught:
        from_canonical(text)
    assert caught.value.code in (Code.PLAN_UNREADABLE, Code.PLAN_UNKNOWN_KEY, Code.PLAN_BAD_VALUE)
    assert time.process_time() - start < 1.5  # seconds; labels compared in pairs take 3


@pytest.mark.parametrize(
    "flat",
    [
        {"privacy": 3},
        {"privacy.epsilon.more": 3},
        {"": 1},
        {".": 1},
        {"task.labels": "[" * 50_000},
        {"task.labels": 5},
        {"privacy.epsilon": b"\xff"},
        {"privacy.epsilon": [8.0]},
        {"data.text": 3},
    ],
    ids=str,
)
def test_a_hostile_run_config_is_refused_with_a_code(flat: dict[str, object]) -> None:
    with pytest.raises(LoricaError) as caught:
        from_run_config(flat)
    assert caught.value.code in (Code.PLAN_UNREADABLE, Code.PLAN_UNKNOWN_KEY, Code.PLAN_BAD_VALUE)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(
    content=st.dictionaries(
        st.sampled_from(sorted(RunPlan.model_fields)),
        st.dictionaries(st.sampled_from(["epsilon", "labels", "rank", "kind", "text"]), json_values)
        | json_values,
    )
)
def test_any_json_object_is_a_plan_or_a_coded_error(content: dict[str, Any]) -> None:
    text = json.dumps(content)
    try:
        plan = from_canonical(text)
    except LoricaError as error:
        assert error.code in (Code.PLAN_UNKNOWN_KEY, Code.PLAN_BAD_VALUE)
    else:
        assert from_canonical(plan.canonical()) == plan


@pytest.mark.parametrize(
    ("kind", "metrics", "named"),
    [
        ("multi-label-classification", "per_label", '"f1" or "accuracy" or "loss"'),
        ("text-regression", "mae", '"r2" or "loss"'),
        ("text-classification", "", '"accuracy" or "per_label" or "loss"'),
    ],
)
def test_lora_is_not_tried_by_metrics_that_cannot_tell(
    kind: str, metrics: str, named: str, refuses: Refuses
) -> None:
    trial = [
        f"task.kind={kind}",
        f"privacy.evaluation_metrics={metrics}",
        "rounds.evaluate_every=5",
    ]
    detail = refuses(Code.PLAN_BAD_VALUE, lambda: load_plan(None, trial))
    assert f"add {named} to privacy.evaluation_metrics" in detail
    for no_trial in ("training.lora=never", "training.lora=always", "data.judge=judge.csv"):
        load_plan(None, [*trial, no_trial])
    load_plan(None, [*trial, "training.mode=local"])
    load_plan(None, [*trial[:2], "rounds.evaluate_every=0"])
    load_plan(None, [trial[0], "privacy.evaluation_metrics=loss", trial[2]])


def test_lora_is_tried_by_classes_counted_label_by_label() -> None:
    settings = ["privacy.evaluation_metrics=per_label", "rounds.evaluate_every=5"]
    assert load_plan(None, settings).lora_on_trial


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"descriptions": ["no sign between"]}, "label = text"),
        ({"descriptions": ["a = "]}, "label = text"),
        ({"labels": ["a", "b"], "descriptions": ["c = of the third"]}, "'c' is none"),
        ({"kind": "image-classification", "descriptions": ["a = b"]}, "task.descriptions are for"),
    ],
)
def test_descriptions_that_describe_nothing_are_refused(
    task: dict[str, Any], said: str, refuses: Refuses
) -> None:
    text = json.dumps({"task": task})
    assert said in refuses(Code.PLAN_BAD_VALUE, lambda: from_canonical(text))


def test_descriptions_are_of_their_labels() -> None:
    told = ["a = first", "b = x = y", "a = second"]
    plan = RunPlan().replace(task={"labels": ["a", "b"], "descriptions": told})
    assert plan.task.meanings == {"a": ["first", "second"], "b": ["x = y"]}
