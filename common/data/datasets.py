"""Hugging Face ``datasets``: a folder as ``save_to_disk`` leaves it, or a hub id.

No code of a data set is run: ``datasets`` dropped loading scripts, and older versions are told
not to trust any.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorica.common.data.batches import Batch
from lorica.common.data.columnar import as_batch, batch_rows, require_columns
from lorica.common.data.kinds import HUB
from lorica.common.errors import Code, LoricaError

if TYPE_CHECKING:
    from lorica.common.data.request import DataRequest


def batches(request: DataRequest) -> Iterator[Batch]:
    """Batches of one part of a data set; class numbers become their names.

    Raises:
        LoricaError: LOR-207 without datasets, LOR-301 not found or no such part, LOR-302,
            LOR-304 damaged, LOR-320 the hub cannot be reached.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            "Data sets of the Hugging Face kind need the package datasets.",
            mend="pip install 'lorica[datasets]'",
        ) from error
    datasets.disable_progress_bars()
    loaded = _from_hub(request) if request.kind == "hub" else _from_disk(request)
    part = _part(loaded, request)
    require_columns(request, list(part.column_names))
    numbered = {
        name: feature.names
        for name, feature in part.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    images = [name for name, f in part.features.items() if isinstance(f, datasets.Image)]
    for name in images:
        part = part.cast_column(name, datasets.Image(decode=False))
    before, homes = 0, _homes(request)
    for table in part.with_format("arrow").iter(batch_rows(request)):
        for record_batch in table.combine_chunks().to_batches():
            batch = as_batch(record_batch, request, request.location, before=before, homes=homes)
            before += record_batch.num_rows
            yield {
                name: _names(record_batch.column(name), numbered[name], name, request)
                if name in numbered
                else column
                for name, column in batch.items()
            }


def _homes(request: DataRequest) -> list[Path]:
    """Folders that images may lie in which the data set names without holding them."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    if request.kind != "hub":
        return [request.path]
    return [Path(datasets.config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]


def _from_disk(request: DataRequest) -> Any:
    import datasets

    path = request.path
    try:
        return datasets.load_from_disk(str(path))
    except FileNotFoundError:
        raise LoricaError(
            Code.DATA_NOT_FOUND, f"{path} is no data set as `datasets` saves it."
        ) from None
    except Exception as error:  # whatever a damaged folder makes the library raise
        raise LoricaError(
            Code.DATA_MALFORMED, f"The data set {path} cannot be read: {_said(error)}."
        ) from error


def _from_hub(request: DataRequest) -> Any:
    """A data set by "hub:ID", "hub:ID@REVISION" or "hub:ID:CONFIG"."""
    import datasets

    name, _, revision = request.location.removeprefix(HUB).partition("@")
    name, _, config = name.partition(":")
    try:
        return datasets.load_dataset(name, config or None, revision=revision or None)
    except (ConnectionError, TimeoutError) as error:
        raise LoricaError(
            Code.DATA_UNREACHABLE,
            f"The hub could not be asked for the data set '{name}': {_said(error)}.",
            mend="Save it where there is a network (`save_to_disk`), copy the folder here, and "
            "name the folder.",
        ) from error
    except FileNotFoundError as error:
        raise LoricaError(
            Code.DATA_NOT_FOUND, f"There is no data set '{name}' at the hub: {_said(error)}."
        ) from error
    except Exception as error:
        raise LoricaError(
            Code.DATA_MALFORMED, f"The data set '{name}' cannot be read: {_said(error)}."
        ) from error


def _part(loaded: Any, request: DataRequest) -> Any:
    if not isinstance(loaded, dict):
        return loaded
    name = request.split or ("test" if request.test else "train")
    if name not in loaded:
        raise LoricaError(
            Code.DATA_NOT_FOUND,
            f"{request.location} has no part '{name}'; its parts are: {', '.join(loaded)}.",
        )
    return loaded[name]


def _names(column: Any, names: list[str], column_name: str, request: DataRequest) -> list[str]:
    found = []
    for number in column.to_pylist():
        if number is None or number == -1:  # "no label", as in the test parts of benchmarks
            found.append("")
        elif 0 <= number < len(names):
            found.append(names[number])
        else:
            raise LoricaError(
                Code.DATA_MALFORMED,
                f"{request.location}: the class number {number} in column '{column_name}' has "
                f"no name; there are {len(names)}.",
            )
    return found


def _said(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
