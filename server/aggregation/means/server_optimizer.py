"""Server optimisers for local steps: the mean update as the gradient of the coordinator's step."""

from __future__ import annotations

import torch

from lorica.common.adapter.state import State
from lorica.common.plan.course import ServerPlan


class ServerOptimizer:
    """Turns the mean update Δ of a round into the global adapter's move, value by value.

    - "fedavgm": m ← β₁ m + Δ; the move is η m (no dampening, as Hsu et al.; in the long run a
      constant Δ moves by η Δ / (1 − β₁));
    - "fedadam": m ← β₁ m + (1 − β₁) Δ, v ← β₂ v + (1 − β₂) Δ²; the move is η m / (√v + τ);
    - "fedyogi": the same with v ← v − (1 − β₂) Δ² sign(v − Δ²).

    m starts at 0, v at τ², without bias correction, as in algorithm 2 of the source. η, β₁, β₂
    and τ are ``server.local_rate``, ``local_momentum``, ``second_moment`` and ``local_tau``. A
    tensor that a round does not train ("rolora") keeps its moments as they are.

    Δ holds the sites' noise: adaptive moves divide by it, too, so noise alone moves every value
    by about η a round, whatever its size.

    Exactness: the rule's product is that of the moved factors, so no longer the mean of the
    sites' products; "fedex", "flora" and "flexlora", which average products, refuse it. Under
    "fedsvd" the moments of B are turned with its axes.

    Bytes: none. The coordinator keeps one or two float64 values for each trained one, also in
    its checkpoint. Epsilon: none; Δ is post-processing of what the sites have noised.

    Source: Reddi et al., "Adaptive Federated Optimization" (arXiv 2003.00295); fedavgm from Hsu,
    Qi, Brown (arXiv 1909.06335).
    """

    def __init__(self, plan: ServerPlan, memory: State) -> None:
        """
        Args:
            plan: names the optimiser and its constants.
            memory: its tensors after the last round; empty at first. Not changed.
        """
        self._plan, self._memory = plan, memory

    def move(self, mean: State) -> tuple[State, State]:
        """The move of every tensor of the mean update, and the memory after it; float64."""
        plan = self._plan
        moves, memory = {}, dict(self._memory)
        beta, second, tau = plan.local_momentum, plan.second_moment, plan.local_tau
        for name, delta in mean.items():
            m = memory.get(f"m.{name}", torch.zeros_like(delta))
            if plan.local_optimizer == "fedavgm":
                m = beta * m + delta
                moves[name] = plan.local_rate * m
            else:
                m = beta * m + (1 - beta) * delta
                square = delta.square()
                v = memory.get(f"v.{name}", torch.full_like(delta, tau**2))
                if plan.local_optimizer == "fedadam":
                    v = second * v + (1 - second) * square
                else:
                    v = v - (1 - second) * square * torch.sign(v - square)
                memory[f"v.{name}"] = v
                moves[name] = plan.local_rate * m / (v.sqrt() + tau)
            memory[f"m.{name}"] = m
        return moves, memory
