"""Reading and writing plans: TOML, ``--set``, Flower's flat run config, canonical JSON.

Every reader ends in :func:`_validated`, so that all forms of a plan meet the same checks and
the same sentences.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, get_origin

import tomli_w
from pydantic import ValidationError

from lorica.common.config import Section, documented_sections, in_line, read_toml, sentences
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.run import RunPlan

FlatValue = bool | int | float | str


def plan_fields() -> dict[str, Any]:
    """Every valid key, ``"section.key"`` -> pydantic field info, in the plan's order."""
    found: dict[str, Any] = {}
    for name, info in RunPlan.model_fields.items():
        section = info.annotation
        assert isinstance(section, type) and issubclass(section, Section)
        for key, field in section.model_fields.items():
            found[f"{name}.{key}"] = field
    return found


def load_plan(
    path: Path | None = None, settings: Iterable[str] = (), *, base: RunPlan | None = None
) -> RunPlan:
    """A plan from a TOML file (or ``base``, or the defaults) with ``settings`` laid over it.

    Args:
        path: TOML file; None starts from ``base`` or the defaults.
        settings: strings ``section.key=value``; the value is TOML, or plain text for text
            fields, or a comma-separated list for list fields.

    Raises:
        LoricaError: LOR-101 unreadable, LOR-102 unknown key, LOR-103 impossible value.
    """
    content = (base or RunPlan()).model_dump() if path is None else _read(path)
    for setting in settings:
        key, value = _parse_setting(setting)
        section, _, name = key.partition(".")
        table = content.setdefault(section, {})
        if not isinstance(table, dict):
            raise LoricaError(Code.PLAN_BAD_VALUE, f"'{section}' must be a table of keys.")
        table[name] = value
    return _validated(content)


def to_run_config(plan: RunPlan) -> dict[str, FlatValue]:
    """Flower's flat run config: ``"section.key"`` -> scalar; lists become JSON text."""
    flat: dict[str, FlatValue] = {}
    for section, values in plan.model_dump().items():
        for key, value in values.items():
            flat[f"{section}.{key}"] = in_line(value) if isinstance(value, list) else value
    return flat


def from_run_config(flat: Mapping[str, object]) -> RunPlan:
    """The plan of a Flower run config, the inverse of :func:`to_run_config`.

    Keys that are absent take their defaults. Run config is hostile input: everything is
    validated.
    """
    content: dict[str, Any] = {}
    for dotted, value in flat.items():
        section, _, name = dotted.partition(".")
        content.setdefault(section, {})[name] = _from_text(dotted, value)
    return _validated(content)


def to_toml(plan: RunPlan) -> str:
    """The whole plan as TOML; :func:`load_plan` reads it back to an equal plan."""
    return tomli_w.dumps(plan.model_dump())


def documented_toml(plan: RunPlan | None = None) -> str:
    """The plan as TOML with every field's docstring as a comment above it."""
    return documented_sections(plan or RunPlan())


@lru_cache(maxsize=8)
def from_canonical(text: str) -> RunPlan:
    """The plan of a canonical JSON text, as it travels in messages; the last few are kept, since
    every message of a run has the same."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoricaError(Code.PLAN_UNREADABLE, f"The plan is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise LoricaError(Code.PLAN_UNREADABLE, "The plan's JSON must be an object of sections.")
    return _validated(content)


def _read(path: Path) -> dict[str, Any]:
    mend = "Check the path; `lorica plan defaults > my-plan.toml` writes one to start from."
    return read_toml(path, "plan", Code.PLAN_UNREADABLE, mend=mend)


def _parse_setting(setting: str) -> tuple[str, Any]:
    key, equals, text = setting.partition("=")
    key = key.strip()
    if not equals or "." not in key:
        raise LoricaError(
            Code.PLAN_UNREADABLE,
            f"--set takes section.key=value, got '{setting}'.",
            mend="For example: --set privacy.epsilon=3",
        )
    value = text.strip()
    field = plan_fields().get(key)
    if field is not None and field.annotation is str:
        quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
        return key, value[1:-1] if quoted else value
    return key, _from_text(key, value)


def _from_text(dotted: str, value: object) -> object:
    """Text -> a list for list fields; all else is left as it is."""
    field = plan_fields().get(dotted)
    if not isinstance(value, str) or field is None:
        return value
    if get_origin(field.annotation) is list:
        try:
            parsed = tomllib.loads(f"v={value}")["v"]
        except (tomllib.TOMLDecodeError, RecursionError):
            parsed = None
        if isinstance(parsed, list):
            return parsed
        if value.startswith("["):
            return value  # a damaged list (the shell took its quotes): refused as no list
        return [part.strip() for part in value.split(",") if part.strip()]
    return value  # pydantic turns "8", "inf", "1e-5" into numbers


def _validated(content: dict[str, Any]) -> RunPlan:
    _refuse_unknown(content)
    try:
        return RunPlan.model_validate(content)
    except ValidationError as error:
        raise LoricaError(Code.PLAN_BAD_VALUE, sentences(error, RunPlan)) from None


def _refuse_unknown(content: dict[str, Any]) -> None:
    known = plan_fields()
    for section, values in content.items():
        if section not in RunPlan.model_fields:
            _refuse_key(section, list(RunPlan.model_fields), "section")
        if isinstance(values, dict):
            for key in values:
                if f"{section}.{key}" not in known:
                    _refuse_key(f"{section}.{key}", list(known), "key")


def _refuse_key(name: str, valid: list[str], what: str) -> None:
    last = name.rpartition(".")[2]
    namesakes = [key for key in valid if key.rpartition(".")[2] == last]  # of other sections
    close = difflib.get_close_matches(
        name, namesakes or valid, n=1, cutoff=0.0 if namesakes else 0.6
    )
    hint = f" Did you mean '{close[0]}'?" if close else f" Valid are: {', '.join(valid)}."
    raise LoricaError(Code.PLAN_UNKNOWN_KEY, f"The plan has no {what} '{name}'.{hint}")
