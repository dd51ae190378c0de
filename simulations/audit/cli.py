"""``lorica audit``."""

from __future__ import annotations

import os
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from lorica.common.cli.options import PlanArgument, SetOption
from lorica.common.display.console import Console
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.plan.io import load_plan


class Method(StrEnum):
    """Which attacks an audit makes."""

    RELEASE = "release"
    GRADIENT = "gradient"
    UPDATE = "update"
    MEMBERSHIP = "membership"
    ADAPTER = "adapter"
    SUM = "sum"
    ALL = "all"


def audit(
    plan: PlanArgument = None,
    settings: SetOption = None,
    method: Annotated[Method, typer.Option(help="What to attack.")] = Method.ALL,
    site: Annotated[str, typer.Option(help="Site to audit; default: the largest.")] = "",
    canaries: Annotated[
        int | None, typer.Option(min=2, help="Canaries; default: as many as fit, up to 2250.")
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="Confidence that all bounds hold together.")
    ] = 0.95,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the audit and of seeded noise.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for audit.json and audit.html.")] = Path(
        "runs/audit"
    ),
) -> None:
    """Attack a site's real training and measure how much it leaks: a lower bound on ε.

    Without a plan, one hospital of the packaged synthetic data set is audited at ε = 8, in two to
    five minutes. Ends with an error when more leakage is found than claimed. Plans of tasks other
    than text-classification are refused: sampling, clipping, noise and ledger are the same for all.

    Method "release" audits what a site sends under the default recipe: noised label sums and
    gradient sums on frozen features. "gradient" and "update" audit local DP-SGD steps: they set
    training.mode to "local" and rounds.warm_start to 0. The membership attack is on the adapter
    of the plan as it is. "adapter" sends adapters and heads that are built to amplify one record's
    influence, and fails when one record changes a sum by more than the clip norm. "sum" audits
    the releases as a coordinator with colluding sites sees them under privacy.trust "sum", and
    lies to the sites about who survived: they must refuse.
    """
    if not 0.5 <= confidence < 1:
        raise typer.BadParameter(f"--confidence must lie in [0.5, 1), got {confidence}.")
    default = Path(str(files("lorica.simulations.audit") / "plan.toml"))
    chosen = list(settings or [])
    if seed is not None:
        chosen.append(f"simulation.seed={seed}")
    _audit(load_plan(plan or default, chosen), method, site, canaries, confidence, out)


audit.help_panel = "Simulations"  # type: ignore[attr-defined]


def _audit(
    plan: RunPlan,
    method: Method,
    site: str,
    canaries: int | None,
    confidence: float,
    out: Path,
) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    console = Console()
    try:
        from lorica.simulations.audit.audit import METHODS, run_audit
        from lorica.simulations.audit.report import print_audit, write_audit
    except ModuleNotFoundError as error:
        raise LoricaError(
            Code.PACKAGE_MISSING,
            f"An audit needs the package {error.name}.",
            mend="pip install 'lorica[simulation,embedded]'",
        ) from error
    with console.status("loading the model and the data") as status:
        found = run_audit(
            plan,
            METHODS if method is Method.ALL else (method.value,),
            site=site,
            canaries=canaries,
            confidence=confidence,
            tell=status.update,
        )
    write_audit(found, out)
    print_audit(found, console)
    console.print(f"Written to {out}.", highlight=False, soft_wrap=True)
    found.refuse()
