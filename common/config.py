"""What is set in files: the base model of their sections, kinds of numbers and names, and the one
way from TOML to a model, from what cannot be to a sentence, and back to documented TOML."""

from __future__ import annotations

import difflib
import json
import math
import tomllib
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, field_validator

from lorica.common.errors import Code, LoricaError


def _above_zero(value: float) -> float:
    if math.isnan(value) or value <= 0:
        raise ValueError("must be above 0")
    return value


def _finite(value: float) -> float:
    if math.isinf(value):
        raise ValueError("must be finite")
    return value


def distinct(names: list[str]) -> list[str]:
    if not all(name.strip() for name in names):
        raise ValueError("a label name is empty")
    if any(name != name.strip() for name in names):
        raise ValueError("a label name begins or ends with a blank")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        more = ", ..." if len(twice) > 5 else ""
        raise ValueError(f"label names occur twice: {', '.join(twice[:5])}{more}")
    return names


def _window(values: list[float]) -> list[float]:
    if values and (len(values) != 2 or not all(map(math.isfinite, values)) or values[1] <= 0):
        raise ValueError("must be empty, or centre and width, the width above 0")
    return values


PositiveOrInf = Annotated[float, AfterValidator(_above_zero)]
Positive = Annotated[PositiveOrInf, AfterValidator(_finite)]
Window = Annotated[list[float], AfterValidator(_window)]


class Section(BaseModel):
    """A section of the plan: immutable, strict about unknown keys, documented per field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """No field is a truth value (pydantic would read true as 1), and text is Unicode."""
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool):
                raise ValueError("must not be true or false")
            if isinstance(item, str) and any("\ud800" <= letter <= "\udfff" for letter in item):
                raise ValueError("must be Unicode text, without lone surrogates")
        return value


def read_toml(
    path: Path, what: str, code: Code, *, missing: Code | None = None, mend: str | None = None
) -> dict[str, Any]:
    """The content of a TOML file.

    Args:
        path: the file.
        what: it is, for the sentences: "plan".
        code: of the refusal.
        missing: of the refusal when there is no such file or it cannot be read; ``code`` when
            omitted.
        mend: what to do when there is no such file.

    Raises:
        LoricaError: ``missing`` or ``code``.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoricaError(missing or code, f"There is no {what} at {path}.", mend=mend) from None
    except OSError as error:
        problem = f"The {what} {path} cannot be read: {error.strerror}."
        raise LoricaError(missing or code, problem) from None
    except UnicodeDecodeError:
        problem = f"The {what} {path} is not UTF-8 text."
    except tomllib.TOMLDecodeError as error:
        problem = f"The {what} {path} is not valid TOML: {error}."
    except RecursionError:
        problem = f"The {what} {path} is nested too deeply."
    raise LoricaError(code, problem)


def sentences(error: ValidationError, model: type[BaseModel]) -> str:
    """What cannot be, in sentences: where, why, what was given, and what may have been meant.

    Args:
        error: of ``model``'s validation.
        model: names the keys that there are.
    """
    return " ".join(_sentence(problem, model) for problem in error.errors())


def documented(section: BaseModel) -> list[str]:
    """Lines of TOML: every field with its docstring as a comment above it."""
    lines = []
    for key, field in type(section).model_fields.items():
        lines += [f"# {line}" for line in (field.description or "").splitlines()]
        lines.append(f"{_key(key)} = {in_line(getattr(section, key))}")
    return lines


def documented_sections(model: BaseModel) -> str:
    """TOML of a model of sections, each with what it is, and :func:`documented` below it."""
    lines: list[str] = []
    for name in type(model).model_fields:
        section = getattr(model, name)
        about = (type(section).__doc__ or "").strip().splitlines()[0]
        lines += [f"# {about}", f"[{name}]", *documented(section), ""]
    return "\n".join(lines)


def _sentence(problem: Any, model: type[BaseModel]) -> str:
    where = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(problem["loc"][-1]), _keys(problem["loc"], model), 1)
        return f"{where} is unknown." + (f" Did you mean '{close[0]}'?" if close else "")
    message = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if not where:
        return f"{message}."
    given = problem.get("input")
    shown = "" if isinstance(given, dict) else f", got {_shown(given)}"
    hint = ""
    if problem["type"] == "literal_error" and isinstance(given, str):
        expected = problem["ctx"]["expected"].replace(" or ", ",").split(",")
        valid = [part.strip(" '") for part in expected]
        close = difflib.get_close_matches(given, valid, n=1, cutoff=0.5)
        hint = f" Did you mean '{close[0]}'?" if close else ""
    return f"{where}: {message}{shown}.{hint}"


def _keys(where: tuple[Any, ...], model: type[BaseModel]) -> list[str]:
    """Names of the keys beside the one at ``where``."""
    table: Any = model
    for part in where[:-1]:
        field = getattr(table, "model_fields", {}).get(part)
        table = field.annotation if field is not None else None
    return list(getattr(table, "model_fields", {}))


def _shown(value: object) -> str:
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def in_line(value: object) -> str:
    """A value in one line of TOML; tables are written in line."""
    if isinstance(value, BaseModel):
        value = value.model_dump()
    if isinstance(value, dict):
        inner = ", ".join(f"{_key(key)} = {in_line(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(in_line, value))}]"
    if isinstance(value, str):  # text that is both JSON and TOML, which has no raw DEL
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return tomli_w.dumps({"v": value}).strip().removeprefix("v = ")


def _key(key: str) -> str:
    return tomli_w.dumps({key: 0}).strip().removesuffix(" = 0")
