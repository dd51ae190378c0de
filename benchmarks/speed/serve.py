"""How many short texts a second `lorica serve` answers, and how long each waits.

An adapter of random factors on the packaged backbone is served by a process of its own; texts of
the demo's notes come one in a request, at a steady rate, whether or not earlier ones were answered.

    make bench NAME=serve        about half a minute
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import torch

from lorica.common.backbone.loading import backbone_of
from lorica.common.plan import RunPlan
from lorica.common.saved.folder import save_adapter
from lorica.common.tasks import task_of
from lorica.simulations.examples.clinic_notes import train_test

RATES, SECONDS = (50, 100, 200), 8.0


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


async def load(url: str, texts: list[str], rate: int) -> np.ndarray:
    """Seconds that each of ``rate`` texts a second waited."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=512)
    async with httpx.AsyncClient(limits=limits, timeout=60) as client:

        async def ask(text: str) -> float:
            start = time.perf_counter()
            answer = await client.post(f"{url}/v1/predict", json={"texts": [text]})
            answer.raise_for_status()
            return time.perf_counter() - start

        begin, asked = time.perf_counter(), []
        for number in range(int(rate * SECONDS)):
            wait = begin + number / rate - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            asked.append(asyncio.create_task(ask(texts[number % len(texts)])))
        return np.array(await asyncio.gather(*asked))


def main() -> None:
    """Serve, ask at every rate, print."""
    texts = [row["text"] for row in train_test()[0]][:1000]
    with tempfile.TemporaryDirectory() as name:
        folder = adapter(Path(name) / "adapter")
        code = "from lorica.common.cli import main; main()"
        process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", str(folder), "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            asyncio.run(load(url, texts, 20))  # warm
            for rate in RATES:
                start = time.perf_counter()
                waited = asyncio.run(load(url, texts, rate))
                done = len(waited) / (time.perf_counter() - start)
                middle, late = np.quantile(waited, [0.5, 0.99]) * 1000
                print(
                    f"{rate} asked a second: {done:.0f} answered, median {middle:.0f} ms, ", end=""
                )
                print(f"p99 {late:.0f} ms")
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
