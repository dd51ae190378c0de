"""FHIR resources: texts of one kind of resource, labels of the same or of another.

Reads newline-delimited JSON (one resource a line, as bulk export gives it), Bundles and single
resources as JSON, and folders of these. Only the elements that ``data.fhir`` names are looked at.
Labels are gathered first, then texts come a batch at a time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorica.client.data.attachments import text_of_attachment, text_of_html
from lorica.common.data.batches import CELL_CHARACTERS, Batch
from lorica.common.data.image_folder import files_below
from lorica.common.data.request import DataRequest
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from lorica.client.config.data import FhirMapping

Resource = dict[str, Any]

_ROWS = 1000
_ENDINGS = frozenset({".ndjson", ".json"})
_BUNDLE_BYTES = 1_000_000_000
_ENCOUNTERS = ("encounter.reference", "context.encounter.reference", "context.reference")
"""Where resources of FHIR R4 and R5 name their encounter."""


def batches(request: DataRequest) -> Iterator[Batch]:
    """Batches of text, label and unit; several labels of one text become a JSON list.

    Raises:
        LoricaError: LOR-301, LOR-303, LOR-304 no FHIR, no text, or several labels where one is
            expected; LOR-328.
    """
    mapping: FhirMapping = request.options["fhir"]
    unit = str(request.options["unit"]) or "unit"
    labels = {} if mapping.link == "same" else _labels(request, mapping)
    kind, path = _split(mapping.text)
    rows: list[tuple[str, str, str]] = []
    for where, resource in _resources(request.path):
        if resource.get("resourceType") != kind:
            continue
        if mapping.link == "same":
            found = _codes(resource, _split(mapping.label)[1], mapping.system)
        else:
            found = set().union(*(labels.get(key, ()) for key in _keys(resource, mapping.link)))
        owners = list(dict.fromkeys(_strings(resource, mapping.unit)))
        if len(owners) > 1:
            raise LoricaError(
                Code.DATA_UNIT, f"{where}: {mapping.unit} names {len(owners)} units; one is meant."
            )
        label = _label(found, where, plain=request.label in request.plain)
        rows.append((_text(resource, path, where), label, owners[0] if owners else ""))
        if len(rows) == _ROWS:
            yield _batch(rows, request, unit)
            rows = []
    if rows:
        yield _batch(rows, request, unit)


def _batch(rows: list[tuple[str, str, str]], request: DataRequest, unit: str) -> Batch:
    names = (request.text, request.label, unit)
    return {name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)}


def _labels(request: DataRequest, mapping: FhirMapping) -> dict[str, set[str]]:
    """Encounter or subject -> codes."""
    kind, path = _split(mapping.label)
    found: dict[str, set[str]] = {}
    for _, resource in _resources(request.path):
        if resource.get("resourceType") == kind:
            codes = _codes(resource, path, mapping.system)
            for key in _keys(resource, mapping.link):
                found.setdefault(key, set()).update(codes)
    return found


def _label(found: set[str], where: str, *, plain: bool) -> str:
    if len(found) > 1 and plain:
        raise LoricaError(
            Code.DATA_MALFORMED,
            f"{where} has {len(found)} labels where one is expected.",
            mend="Choose a coding system in data.fhir.system, link labels by encounter, or train "
            "a task with several labels a text.",
        )
    if len(found) > 1:
        return json.dumps(sorted(found), ensure_ascii=False)
    return next(iter(found), "")


def _keys(resource: Resource, link: str) -> list[str]:
    paths = ("subject.reference",) if link == "subject" else _ENCOUNTERS
    return list(dict.fromkeys(key for path in paths for key in _strings(resource, path)))


def _codes(resource: Resource, path: str, system: str) -> set[str]:
    return {code.strip() for code in _strings(resource, path, system) if code.strip()}


def _text(resource: Resource, path: str, where: str) -> str:
    parts = []
    for value in _walk(resource, path.split(".")):
        if isinstance(value, str):
            parts.append(text_of_html(value) if value.lstrip().startswith("<div") else value)
        elif isinstance(value, dict) and isinstance(value.get("data"), str):
            parts.append(text_of_attachment(value, where))
        elif isinstance(value, dict) and "url" in value:
            raise LoricaError(
                Code.DATA_MALFORMED,
                f"{where}: the text is behind a URL; Lorica fetches nothing. Export it in line.",
            )
    text = "\n".join(parts)
    if len(text) > CELL_CHARACTERS:
        raise LoricaError(
            Code.DATA_TOO_LARGE,
            f"{where} holds {len(text):,} characters; the limit is {CELL_CHARACTERS:,}.",
        )
    return text


def _strings(resource: Resource, path: str, system: str = "") -> list[str]:
    return [v for v in _walk(resource, path.split("."), system) if isinstance(v, str)]


def _walk(value: Any, path: list[str], system: str = "") -> Iterator[Any]:
    """Values at a path, through lists; codings of other systems than ``system`` are left out."""
    if isinstance(value, list):
        for item in value:
            yield from _walk(item, path, system)
    elif not path:
        yield value
    elif isinstance(value, dict) and not (system and value.get("system", system) != system):
        yield from _walk(value.get(path[0], []), path[1:], system)


def _split(path: str) -> tuple[str, str]:
    kind, _, rest = path.partition(".")
    if not rest or not kind[0].isupper():
        raise LoricaError(
            Code.SITE_CONFIG,
            f"data.fhir: '{path}' must begin with a kind of resource, as in "
            '"DocumentReference.content.attachment".',
        )
    return kind, rest


def _resources(path: Path) -> Iterator[tuple[str, Resource]]:
    """(place, resource) of a file, or of all files of a folder."""
    files = [path / name for name in files_below(path, _ENDINGS)] if path.is_dir() else [path]
    for file in files:
        try:
            if file.suffix.lower() == ".json":
                yield from _of_bundle(file)
            else:
                yield from _of_lines(file)
        except UnicodeDecodeError:
            raise LoricaError(Code.DATA_ENCODING, f"{file} is not UTF-8.") from None
        except OSError as error:
            raise LoricaError(
                Code.DATA_NOT_FOUND, f"{file} cannot be read: {error.strerror}."
            ) from None


def _of_lines(file: Path) -> Iterator[tuple[str, Resource]]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                place = f"{file}, line {number}"
                yield place, _resource(_parsed(line, place), place)


def _of_bundle(file: Path) -> Iterator[tuple[str, Resource]]:
    size = file.stat().st_size
    if size > _BUNDLE_BYTES:
        raise LoricaError(
            Code.DATA_TOO_LARGE,
            f"{file} has {size:,} bytes; a Bundle is read whole, at most {_BUNDLE_BYTES:,}.",
            mend="Export newline-delimited JSON (.ndjson), which is read line by line.",
        )
    content = _resource(_parsed(file.read_text(encoding="utf-8-sig"), str(file)), str(file))
    if content.get("resourceType") != "Bundle":
        yield str(file), content
        return
    entries = content.get("entry", [])
    for number, entry in enumerate(entries if isinstance(entries, list) else [], 1):
        place = f"{file}, entry {number}"
        yield place, _resource(entry.get("resource") if isinstance(entry, dict) else None, place)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LoricaError(Code.DATA_MALFORMED, f"{place} is not JSON: {error}.") from None


def _resource(value: Any, place: str) -> Resource:
    if not isinstance(value, dict) or not isinstance(value.get("resourceType"), str):
        raise LoricaError(Code.DATA_MALFORMED, f"{place} is no FHIR resource.")
    return value
