"""The agreement: every section of a plan, its rules, its stages, what methods and tasks ask of it; imports no torch."""

from __future__ import annotations

from lorica.common.plan.run import RunPlan

__all__ = ["RunPlan"]
