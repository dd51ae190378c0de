"""The share of the secure noise in a DP training step of the default plan's local mode.

    python benchmarks/speed/noise.py [rounds]

One site of the default plan trains with noise and batches from the operating system's generator,
as a real site does. Both times are taken in the same steps: that of the noise source's calls, and
that from the first call of a round to its last, which is the round's steps but for the last update
of the weights. The first round, which fills caches, is left out. The last line is the ratio; the
target is at most 0.05.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

import torch

from lorica.client.mechanism.noise import NoiseSource, SecureNoise
from lorica.client.training.trainer import LocalTrainer
from lorica.common.adapter.state import pack_state
from lorica.common.backbone.loading import load_backbone
from lorica.common.plan import RunPlan
from lorica.common.tasks.run_data import label_sources, load_data, with_labels
from lorica.common.tasks.text_classification import TextClassifier, starting_state
from lorica.common.wire.messages import Request
from lorica.simulations.run.partition import partition


class Timed:
    """A noise source that knows how long its calls took, and over what time they were spread."""

    kind = "secure"

    def __init__(self, source: NoiseSource) -> None:
        self._source = source
        self.calls: list[tuple[float, float]] = []
        """Begin and end of every call, seconds."""

    def poisson_mask(self, count: int, rate: float) -> torch.Tensor:
        """As :meth:`NoiseSource.poisson_mask`."""
        return self._timed(lambda: self._source.poisson_mask(count, rate))

    def add_noise(self, total: torch.Tensor, std: float) -> torch.Tensor:
        """As :meth:`NoiseSource.add_noise`."""
        return self._timed(lambda: self._source.add_noise(total, std))

    def gaussian(self, shape: Sequence[int] | torch.Size, std: float) -> torch.Tensor:
        """As :meth:`NoiseSource.gaussian`."""
        return self._timed(lambda: self._source.gaussian(shape, std))

    @property
    def noise_seconds(self) -> float:
        """In all calls."""
        return sum(end - begin for begin, end in self.calls)

    @property
    def step_seconds(self) -> float:
        """From the first call to the end of the last."""
        return self.calls[-1][1] - self.calls[0][0]

    def _timed(self, draw: Callable[[], torch.Tensor]) -> torch.Tensor:
        begin = time.perf_counter()
        drawn = draw()
        self.calls.append((begin, time.perf_counter()))
        return drawn


def main() -> None:
    """Measure and print."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    plan = RunPlan().replace(training={"mode": "local"}, rounds={"warm_start": 0, "count": 20})
    data = load_data(plan)
    plan = with_labels(plan, *label_sources(plan, data))
    site, rows = next(iter(partition(data.train, plan.simulation).items()))
    sources: list[Timed] = []

    def noise(stream: str, round: int) -> Timed:
        sources.append(Timed(SecureNoise()))
        return sources[-1]

    trainer = LocalTrainer(site, data.train.take(rows), noise=noise)
    backbone = load_backbone(plan.backbone)
    blob = pack_state(starting_state(TextClassifier(backbone, plan), backbone, plan))
    for round in range(1, rounds + 1):
        reply = trainer.train(Request(plan, "bench", round, blob))
        assert reply.status == "ok", reply.reason
    measured = sources[1:]
    steps = len(measured) * plan.training.local_steps
    noisy = sum(source.noise_seconds for source in measured)
    whole = sum(source.step_seconds for source in measured)
    print(f"{steps} steps of a site with {len(rows)} records, after {plan.training.local_steps}")
    print(f"step   {1000 * whole / steps:8.2f} ms")
    print(f"noise  {1000 * noisy / steps:8.2f} ms")
    print(f"noise ratio: {noisy / whole:.4f}")


if __name__ == "__main__":
    main()
