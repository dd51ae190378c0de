"""Aggregating 10, 1,000 and 10,000 sites: sites per second, and peak memory.

    python benchmarks/speed/aggregation.py [method ...]

Every update takes the coordinator's whole path: its blob is decoded, screened, added, and measured
for the round's record, which keeps a sketch of every site's update to tell who agrees. Updates are
those of Banking77's head and LoRA on the last layer (about 54,000 values), made one at a time,
as they arrive. Each number of sites runs in a process of its own, in turn, so that each has its
own peak. The last line is the largest peak at 10,000 sites over that at 10; the target is at most
1.2. The methods are by default the rule of the default recipe ("gradient"), fedavg and fedsvd.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import torch
from rich.table import Table

from lorica.common.adapter.state import State, pack_state, unpack_state
from lorica.common.display.console import Console
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import trained
from lorica.server.aggregation.choose import rule_of_round
from lorica.server.rounds.expected import ExpectedUpdates
from lorica.server.rounds.measures import RoundMeasures

SITES = (10, 1_000, 10_000)
LAYER = "base_model.model.encoder.layer.5.attention.self"
DISTINCT = 16
"""Different updates, sent again and again."""


def plan_of(method: str) -> RunPlan:
    """A plan whose round 2 aggregates head and LoRA by ``method``."""
    mode = {"mode": "gradient", "lora": "always", "lora_rounds": 2}
    if method != "gradient":
        mode = {"mode": "local"}
    return RunPlan().replace(
        task={"labels": [f"label {number}" for number in range(77)]},
        training=mode,
        aggregation={"method": "fedsvd" if method == "gradient" else method},
        rounds={"count": 3, "warm_start": 0.0},
    )


def start() -> State:
    """A global state: head, center and the factors of two modules."""
    state = {
        "head.weight": torch.randn(77, 384),
        "head.bias": torch.zeros(77),
        "head.center": torch.zeros(384),
    }
    for module in ("query", "value"):
        state[f"{LAYER}.{module}.lora_A.weight"] = torch.randn(8, 384)
        state[f"{LAYER}.{module}.lora_B.weight"] = torch.randn(384, 8)
    return state


def aggregate(method: str, sites: int) -> dict[str, float]:
    """One round of so many sites in this process: seconds and peak bytes."""
    torch.set_num_threads(1)
    plan, state = plan_of(method), start()
    names = trained(plan, 2, state)
    blobs = [
        pack_state({name: 0.01 * torch.randn(state[name].shape) for name in names})
        for _ in range(DISTINCT)
    ]
    memory = rule_memory(plan, state, blobs)
    begun = time.perf_counter()
    rule, measures = rule_of_round(plan, 2, state, memory), RoundMeasures(plan, 2, sites)
    expected = ExpectedUpdates(plan, 2, state)
    for number in range(sites):
        update = expected.read(blobs[number % DISTINCT], 1000)
        rule.add(update, 1.0 + number % 7)
        measures.add(f"site-{number}", update, 1.0 + number % 7)
    rule.finish()
    assert len(measures.finish().agreement or {}) == sites
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak": peak * (1 if sys.platform == "darwin" else 1024)}


def rule_memory(plan: RunPlan, state: State, blobs: list[bytes]) -> State:
    """What the rule remembers of round 1."""
    rule = rule_of_round(plan, 1, state, {})
    names = trained(plan, 1, state)
    update = unpack_state(blobs[0])
    rule.add({name: update[name] for name in names}, 1.0)
    rule.finish()
    return rule.memory


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(aggregate(sys.argv[2], int(sys.argv[3]))))
        return
    methods = sys.argv[1:] or ["gradient", "fedavg", "fedsvd"]
    table = Table(box=None, title="Aggregation of one round, one core")
    for head in ("rule", "sites", "sites per second", "peak memory", "÷ that of 10 sites"):
        table.add_column(head, justify="right")
    worst = 0.0
    for method in methods:
        first = 0.0
        for sites in SITES:
            command = [sys.executable, __file__, "--one", method, str(sites)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(out.splitlines()[-1])
            first = first or found["peak"]
            ratio = found["peak"] / first
            worst = max(worst, ratio)
            rate, peak = f"{sites / found['seconds']:,.0f}", f"{found['peak'] / 1e6:.0f} MB"
            table.add_row(method, f"{sites:,}", rate, peak, f"{ratio:.3f}")
    Console().print(table)
    print(f"aggregation ratio: {worst:.3f}")


if __name__ == "__main__":
    main()
