"""The comparison's files: data sets, methods, and every run that they call for, in order.

``datasets/NAME.toml`` holds a title, plan settings of all runs on that data set, and in ``[local]``
those of methods of kind "local". ``configs/METHOD.toml`` holds a title, the method's plan settings
and its trials: settings among which a run's are chosen.

Choosing: every trial is run on one data set with seed 0 and scored on a part of its training data
that is set aside (:func:`lorica.common.tasks.run_data.validation_data`), at ε = 8 and at ε = ∞. The
best at ε = 8 is used for every finite ε, that at ∞ for ∞, on all data sets. Test data never choose
anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lorica.common.plan import RunPlan
from lorica.common.plan.io import load_plan

HERE = Path(__file__).resolve().parent
EPSILONS = (8.0, math.inf, 3.0, 1.0)
"""In the order of the comparison's passes: after each, something whole exists."""
SEEDS = (0, 1, 2)
FILES = "data.train", "data.test"
"""Settings that are paths, from the data set's file on."""
TRIAL_SEED = 0
TUNED_ON = "medical-abstracts"
"""The data set that trials are run on: the one whose runs take least."""
TUNED_AT = 8.0
"""The finite ε at which trials are run."""

Score = Literal["test", "validation"]


@dataclass(frozen=True)
class DataSet:
    """A data set of the comparison."""

    name: str
    title: str
    what: str
    metric: str
    """What methods are compared by: the task's headline metric."""
    tests: int
    """Records that it is measured on."""
    settings: dict[str, Any]
    local: dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A method of the comparison."""

    name: str
    title: str
    what: str
    kind: Literal["synchronised", "local", "reference"]
    settings: dict[str, Any]
    trials: list[dict[str, Any]]
    finite: bool = False
    """Whether it is the default without privacy, and is left out there."""


@dataclass(frozen=True)
class Run:
    """One run that the comparison calls for."""

    method: Method
    epsilon: float
    seed: int
    trial: int
    """Index of the settings it is run with; -1 for a method without trials."""
    score: Score


def datasets() -> dict[str, DataSet]:
    """All data sets by name."""
    found = {}
    for path in sorted((HERE / "datasets").glob("*.toml")):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        settings = {
            key: str((path.parent / value).resolve()) if key in FILES else value
            for key, value in content["settings"].items()
        }
        found[path.stem] = DataSet(path.stem, **{**content, "settings": settings})
    return found


def methods() -> list[Method]:
    """All methods, the quick ones first."""
    found = []
    for path in sorted((HERE / "configs").glob("*.toml")):
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        found.append(Method(path.stem, **{"settings": {}, **content}))
    order = ["synchronised", "reference", "local"]
    first = ["default", "head-alone", "class-sums", "sealed-sums", "fedavg", "ffa", "fedsvd"]
    first += ["flora", "fedex", "fedadam"]
    return sorted(
        found,
        key=lambda m: (
            order.index(m.kind),
            first.index(m.name) if m.name in first else len(first),
            m.name,
        ),
    )


def anchor(epsilon: float) -> float:
    """The ε whose trials choose the settings for this one."""
    return TUNED_AT if math.isfinite(epsilon) else math.inf


def trials_of(method: Method, epsilon: float) -> list[Run]:
    """The trials that choose a method's settings at an anchor ε."""
    numbers = range(len(method.trials))
    return [Run(method, epsilon, TRIAL_SEED, number, "validation") for number in numbers]


def tests_of(
    method: Method, epsilon: float, chosen: int, seeds: Iterable[int] = SEEDS
) -> Iterator[Run]:
    """The runs that count, with the chosen trial's settings."""
    for seed in seeds if math.isfinite(epsilon) or not method.finite else ():
        yield Run(method, epsilon, seed, chosen, "test")


def settings_of(dataset: DataSet, run: Run) -> dict[str, Any]:
    """The plan settings of a run."""
    method = run.method
    settings = dataset.settings | (dataset.local if method.kind == "local" else {})
    settings |= method.settings | (method.trials[run.trial] if run.trial >= 0 else {})
    if settings.get("privacy.honest_sites") == "all":
        settings["privacy.honest_sites"] = settings["simulation.sites"]
    settings |= {"privacy.epsilon": run.epsilon, "simulation.seed": run.seed}
    settings |= {"rounds.seed": run.seed}
    return settings


def plan_of(dataset: DataSet, run: Run) -> RunPlan:
    """The plan of a run."""
    return _plan(settings_of(dataset, run))


def key_of(dataset: DataSet, run: Run) -> str:
    """What tells runs apart: settings and score. Two runs with one key are one run.

    Not the plan's fingerprint: that holds the path of the data, and changes with every key that
    plans gain.
    """
    settings = settings_of(dataset, run)
    kept = {key: value for key, value in settings.items() if key not in FILES}
    text = json.dumps([dataset.name, run.score, {k: str(v) for k, v in sorted(kept.items())}])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plan(settings: dict[str, Any]) -> RunPlan:
    written = [
        f"{key}={json.dumps(value) if isinstance(value, list) else value}"
        for key, value in settings.items()
    ]
    return load_plan(None, written)
