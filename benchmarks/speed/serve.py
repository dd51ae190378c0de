"""How many short texts a second `lorica serve` answers, and how long each waits.

An adapter of random factors on the packaged backbone is served by a process of its own; short
texts (the first words of the demo's notes, 16 tokens in the mean) come one in a request, at a
steady rate, whether or not earlier ones were answered. Beside the waits stand the processor's
milliseconds for a text, of server and of asking: on 2 cores that nobody else wants, 200 texts a
second have 10.

    make bench NAME=serve        about half a minute
    python benchmarks/speed/serve.py --precision bf16 …        options of `lorica serve`
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lorica.common.backbone.loading import backbone_of
from lorica.common.plan import RunPlan
from lorica.common.saved.folder import save_adapter
from lorica.common.tasks import task_of
from lorica.simulations.examples.clinic_notes import train_test

RATES, SECONDS = (50, 100, 200), 8.0
KEPT = 3.0
"""Seconds that a connection waits for its next text: the server closes it after five."""


def adapter(folder: Path) -> Path:
    """Eight labels, all layers adapted."""
    plan = RunPlan().replace(task={"labels": [f"label {number}" for number in range(8)]})
    backbone = backbone_of(plan)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in task_of(plan).start(backbone).items()
    }
    save_adapter(folder, state, plan, backbone)
    return folder


class Client:
    """Requests over connections that are kept: a client that costs next to nothing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, text: str) -> float:
        """Seconds until the answer is there."""
        start = time.perf_counter()
        reader, writer = await self._connection()
        body = json.dumps({"texts": [text]}).encode()
        head = f"POST /v1/predict HTTP/1.1\r\nHost: local\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert answer.startswith(b"http/1.1 200"), answer
        await reader.readexactly(int(answer.partition(b"content-length:")[2].split()[0]))
        self._free.append((time.perf_counter(), reader, writer))
        return time.perf_counter() - start

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self._free:
            since, reader, writer = self._free.pop()
            if time.perf_counter() - since < KEPT:
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self._port)


async def load(port: int, texts: list[str], rate: int) -> np.ndarray:
    """Seconds that each of ``rate`` texts a second waited."""
    client, begin, asked = Client(port), time.perf_counter(), []
    for number in range(int(rate * SECONDS)):
        wait = begin + number / rate - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        asked.append(asyncio.create_task(client.ask(texts[number % len(texts)])))
    return np.array(await asyncio.gather(*asked))


def used(process: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Serve, ask at every rate, print."""
    notes = [row["text"] for row in train_test()[0]][:1000]
    texts = [" ".join(note.split()[: 4 + number % 12]) for number, note in enumerate(notes)]
    with tempfile.TemporaryDirectory() as name:
        folder = adapter(Path(name) / "adapter")
        code = "from lorica.common.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", str(folder), "--port", "0", *sys.argv[1:]],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().split()[-1].rpartition(":")[2])
            asyncio.run(load(port, texts, 20))  # warm
            for rate in RATES:
                start, before, own = time.perf_counter(), used(process.pid), time.process_time()
                waited = asyncio.run(load(port, texts, rate))
                done = len(waited) / (time.perf_counter() - start)
                middle, late = np.quantile(waited, [0.5, 0.99]) * 1000
                server = (used(process.pid) - before) / len(waited) * 1000
                client = (time.process_time() - own) / len(waited) * 1000
                print(
                    f"{rate} asked a second: {done:.0f} answered, median {middle:.0f} ms, p99 "
                    f"{late:.0f} ms; {server:.2f} + {client:.2f} ms of processor a text"
                )
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
