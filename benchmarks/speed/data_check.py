"""``lorica site data check`` on many rows: rows/s and the most memory it held.

    python benchmarks/speed/data_check.py [rows] [parquet|csv]

Writes synthetic notes (text, label, patient, date, hospital) to a temporary file, runs the real
command on it in a process of its own, and prints the check's time and that process's peak RSS.
The numbers of labels, units and planted duplicates that it reports are compared with what was
written.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

LABELS = [f"department_{i}" for i in range(20)]
CHUNK = 200_000
COPIES = 100  # every so many rows, one repeats the row before


def main() -> None:
    """Measure and print."""
    rows = int(float(sys.argv[1])) if len(sys.argv) > 1 else 1_000_000
    kind = sys.argv[2] if len(sys.argv) > 2 else "parquet"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"notes.{kind}"
        started = time.perf_counter()
        planted = write(path, rows)
        print(
            f"{rows:,} rows written: {path.stat().st_size / 1e6:,.0f} MB of {kind}, "
            f"{time.perf_counter() - started:.0f} s"
        )
        site = Path(folder) / "site.toml"
        site.write_text(
            f'[site]\nname = "bench"\n[data]\nsource = "{path.name}"\nunit = "patient"\n'
        )
        started = time.perf_counter()
        command = ["site", "data", "check", "--json", "--config", str(site)]
        done = subprocess.run(
            [sys.executable, "-c", "from lorica.common.cli import main; main()", *command],
            check=True,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - started
    found = json.loads(done.stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert found["records"] == rows
    assert len(found["labels"]) == len(LABELS)
    assert found["duplicates_in_units"]["repeated"] == planted, found["duplicates_in_units"]
    print(f"data check: {seconds:.0f} s, {rows / seconds:,.0f} rows/s")
    print(f"peak RSS: {peak / 2**30:.2f} GiB (limit 2 GiB: {peak / 2**31:.0%})")
    print(
        f"found {found['units']['keys']:,} units and {planted:,} planted copies, "
        f"{'exactly' if found['duplicates']['exact'] else 'by estimate'}"
    )
    sys.exit(peak >= 2**31)


def write(path: Path, rows: int) -> int:
    """Write the notes; returns how many repeat the row before them."""
    schema = pa.schema([(n, pa.string()) for n in ("text", "label", "patient", "seen", "hospital")])
    draw = np.random.default_rng(0)
    words, labels = pa.array([f"word{i}" for i in range(2000)]), pa.array(LABELS)
    planted, writer = 0, None
    for start in range(0, rows, CHUNK):
        count = min(CHUNK, rows - start)
        number = np.arange(start, start + count)
        copied = (number % COPIES == COPIES - 1) & (number > start)
        source = np.where(copied, number - 1, number)
        planted += int(copied.sum())
        at = pa.array(source - start)
        drawn = [words.take(pa.array(draw.integers(0, len(words), count))) for _ in range(6)]
        day = np.datetime64("2020-01-01") + source % 2000
        columns = [
            joined([text_of(source), *(column.take(at) for column in drawn)], " "),
            labels.take(pa.array(draw.integers(0, len(LABELS), count))).take(at),
            joined([pa.array(["p"] * count), text_of(source // 3)], ""),
            pa.array(day).cast(pa.string()),
            joined([pa.array(["h"] * count), text_of(source % 7)], ""),
        ]
        table = pa.record_batch(columns, schema)
        if writer is None:
            writer = (
                pq.ParquetWriter(path, schema)
                if path.suffix == ".parquet"
                else pa_csv.CSVWriter(path, schema)
            )
        writer.write_batch(table)
    assert writer is not None
    writer.close()
    return planted


def text_of(numbers: np.ndarray) -> pa.Array:
    """Numbers as text."""
    return pa.array(numbers).cast(pa.string())


def joined(parts: list[pa.Array], between: str) -> pa.Array:
    """Columns of words to one."""
    return pc.binary_join_element_wise(*parts, between)


if __name__ == "__main__":
    main()
