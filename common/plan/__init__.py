"""The agreement: a plan's sections, its rules, what its method and task ask; imports no torch."""

from __future__ import annotations

from lorica.common.plan.run import RunPlan

__all__ = ["RunPlan"]
