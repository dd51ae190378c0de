"""The forms of a plan: TOML, settings, Flower's run config and canonical JSON agree."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.errors import Code
from lorica.common.plan import RunPlan
from lorica.common.plan.io import (
    documented_toml,
    from_canonical,
    from_run_config,
    load_plan,
    plan_fields,
    to_run_config,
    to_toml,
)

Refuses = Callable[[Code, Callable[[], object]], str]

HARD_LABELS = [
    ['quote"', "apostrophe'"],
    ["comma, comma", ",", "a"],
    ["[bracket]", "{brace}", "]"],
    ["line\nbreak", "tab\tbed", "carriage\r\nreturn"],
    ["naïve", "日本語", "Ωμέγα"],
    ["smile 😀", "other"],
    ["delete\x7f", "bell\x07"],
    ["back\\slash", "#comment", "a = b"],
    ["two  blanks", "a\u00a0b"],
    ["inf", "true", "1"],
]


def plans(text: st.SearchStrategy[str]) -> st.SearchStrategy[RunPlan]:
    """Valid plans; ``text`` fills names of columns, labels and modules."""
    named = text.filter(lambda value: bool(value.strip()))
    label = named.map(str.strip)
    positive = st.floats(1e-6, 1e6)
    column = st.fixed_dictionaries({"partition": st.just("by-column"), "column": named})
    partition = st.fixed_dictionaries({"partition": st.sampled_from(["iid", "dirichlet"])})
    sections: dict[str, dict[str, st.SearchStrategy[Any]]] = {
        "backbone": {"source": named, "sha256": st.sampled_from(["", "0" * 63 + "a"])},
        "adapter": {
            "kind": st.sampled_from(["lora", "head"]),
            "rank": st.integers(1, 512),
            "alpha": positive,
            "target_modules": st.lists(named, min_size=1, max_size=3, unique=True),
            "layers": st.lists(st.integers(-12, 11), max_size=3, unique=True),
        },
        "task": {
            "labels": st.just([]) | st.lists(label, min_size=2, max_size=4, unique=True),
        },
        "data": {"train": named, "test": text, "text": named, "label": named, "unit": text},
        "privacy": {
            "epsilon": st.just(math.inf) | positive,
            "delta": st.floats(1e-300, 1 - 1e-12),
            "clip_norm": positive,
        },
        "training": {
            "mode": st.sampled_from(["gradient", "local"]),
            "lora": st.sampled_from(["auto", "always", "never"]),
            "lora_rounds": st.integers(1, 12),
            "local_steps": st.integers(1, 100_000),
            "expected_batch_size": st.integers(1, 10**9),
            "learning_rate": positive,
            "final_rate": st.floats(1e-12, 1),
        },
        "aggregation": {"method": st.sampled_from(["fedavg", "ffa", "fedsvd"])},
        "server": {
            "optimizer": st.sampled_from(["adam", "momentum"]),
            "momentum": st.floats(0, 0.99),
        },
        "rounds": {
            "count": st.integers(13, 1_000_000),  # room for a warm start and LoRA
            "warm_start": st.floats(0, 0.99),
            "timeout_seconds": positive,
        },
        "simulation": {"sites": st.integers(1, 100_000), "seed": st.integers(0, 2**63 - 1)},
    }
    drawn = st.fixed_dictionaries(
        {name: st.fixed_dictionaries({}, optional=keys) for name, keys in sections.items()}
    )

    def combine(content: dict[str, Any], split: dict[str, str]) -> RunPlan:
        content = {**content, "simulation": content["simulation"] | split}
        return RunPlan.model_validate(content)

    return st.builds(combine, drawn, partition | column)


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
plain_text = st.text("abcXYZ019_-./ é", max_size=8).map(str.strip)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans") / "plan.toml"


def through_file(file: Path, content: str) -> RunPlan:
    file.write_text(content, encoding="utf-8", newline="")
    return load_plan(file)


@settings(max_examples=60, deadline=None)
@given(plan=plans(any_text))
def test_every_form_of_a_plan_gives_it_back(file: Path, plan: RunPlan) -> None:
    for form in (
        from_canonical(plan.canonical()),
        from_run_config(to_run_config(plan)),
        through_file(file, to_toml(plan)),
        through_file(file, documented_toml(plan)),
    ):
        assert form == plan
        assert form.fingerprint == plan.fingerprint


@settings(max_examples=40, deadline=None)
@given(plan=plans(plain_text))
def test_settings_give_the_plan_that_a_file_gives(plan: RunPlan) -> None:
    given_settings = [f"{key}={value}" for key, value in to_run_config(plan).items()]
    assert load_plan(None, given_settings) == plan


def test_a_run_config_survives_being_text_only() -> None:
    plan = RunPlan().replace(privacy={"epsilon": math.inf}, task={"labels": ["a", "b"]})
    as_text = {key: str(value) for key, value in to_run_config(plan).items()}
    assert from_run_config(as_text) == plan


def test_a_run_config_holds_scalars_alone() -> None:
    flat = to_run_config(RunPlan())
    assert set(flat) == set(plan_fields())
    assert {type(value) for value in flat.values()} <= {bool, int, float, str}


@pytest.mark.parametrize("labels", HARD_LABELS, ids=repr)
def test_hard_labels_survive_every_form(file: Path, labels: list[str]) -> None:
    plan = RunPlan().replace(task={"labels": labels})
    assert from_canonical(plan.canonical()).task.labels == labels
    assert from_run_config(to_run_config(plan)).task.labels == labels
    assert through_file(file, to_toml(plan)).task.labels == labels
    assert through_file(file, documented_toml(plan)).task.labels == labels


def test_a_quoted_column_name_keeps_its_quotes_in_a_run_config() -> None:
    plan = RunPlan().replace(data={"text": '"text"', "label": "'label'"})
    assert from_run_config(to_run_config(plan)) == plan


def test_nothing_given_is_the_default_plan_in_every_form(file: Path) -> None:
    default = RunPlan()
    for form in (load_plan(), from_run_config({}), from_canonical("{}"), through_file(file, "")):
        assert form == default
        assert form.fingerprint == default.fingerprint
    assert load_plan(base=default.replace(adapter={"rank": 3})).adapter.rank == 3


def test_settings_win_over_the_file_and_the_last_setting_wins(file: Path) -> None:
    file.write_text("[privacy]\nepsilon = 1\ndelta = 1e-6\n")
    plan = load_plan(file, ["privacy.epsilon=2", "privacy.epsilon = 3"])
    assert (plan.privacy.epsilon, plan.privacy.delta) == (3.0, 1e-6)


@pytest.mark.parametrize("text", ["inf", "+inf"])
def test_infinite_epsilon_round_trips_through_every_form(file: Path, text: str) -> None:
    plan = load_plan(None, [f"privacy.epsilon={text}"])
    assert math.isinf(plan.privacy.epsilon)
    assert through_file(file, f"[privacy]\nepsilon = {text}\n") == plan
    assert through_file(file, to_toml(plan)) == plan
    assert from_run_config(to_run_config(plan)) == plan
    assert json.loads(plan.canonical())["privacy"]["epsilon"] == "inf"
    assert from_canonical(plan.canonical()).fingerprint == plan.fingerprint


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ('task.labels=["a", "b"]', ["a", "b"]),
        ("task.labels=['a', 'b']", ["a", "b"]),
        ('task.labels=["a, b", "c"]', ["a, b", "c"]),
        ("task.labels=a,b", ["a", "b"]),
        ("task.labels= a , b , ", ["a", "b"]),
        ("task.labels=1,2", ["1", "2"]),
        ("task.labels=", []),
        ("task.labels=[]", []),
        ("adapter.target_modules=query", ["query"]),
        ('adapter.target_modules=["query"]', ["query"]),
        ("adapter.layers=-1", [-1]),
        ("adapter.layers=[-1]", [-1]),
        ("adapter.layers=0,-1", [0, -1]),
        ("adapter.layers=[]", []),
    ],
)
def test_list_settings_take_toml_and_commas(setting: str, expected: list[object]) -> None:
    section, key = setting.partition("=")[0].split(".")
    assert getattr(getattr(load_plan(None, [setting]), section), key) == expected


def test_a_list_that_lost_its_quotes_to_the_shell_is_read_or_refused(refuses: Refuses) -> None:
    """``--set task.labels=["a","b"]`` reaches the program as ``[a,b]``."""
    try:
        labels = load_plan(None, ["task.labels=[a,b]"]).task.labels
    except Exception:  # noqa: BLE001 - which refusal is the point of the other branch
        assert "[a,b]" in refuses(
            Code.PLAN_BAD_VALUE, lambda: load_plan(None, ["task.labels=[a,b]"])
        )
    else:
        assert labels == ["a", "b"]


@pytest.mark.parametrize("setting", ["data.text=note", 'data.text="note"', "data.text='note'"])
def test_text_settings_may_be_quoted(setting: str) -> None:
    assert load_plan(None, [setting]).data.text == "note"


def test_the_documented_defaults_hold_every_field_with_its_meaning() -> None:
    text = documented_toml()
    assert {f"{s}.{k}" for s, keys in tomllib.loads(text).items() for k in keys} == set(
        plan_fields()
    )
    comments = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    for dotted, field in plan_fields().items():
        assert " ".join(field.description.split()) in comments, dotted


def test_the_package_ships_the_default_plan_to_flower(request: pytest.FixtureRequest) -> None:
    project = tomllib.loads((request.config.rootpath / "pyproject.toml").read_text())
    shipped = project["tool"]["flwr"]["app"]["config"]
    flat = {f"{name}.{key}": value for name, keys in shipped.items() for key, value in keys.items()}
    assert flat == to_run_config(RunPlan())
