"""site.toml: who the site is, where its data and its ledger are, what it allows.

It belongs to the institution. :mod:`lorica.client.admission.policy` holds plans against it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from lorica.client.config.data import SiteData
from lorica.client.config.federation import SiteFederation
from lorica.common.config import Section, documented_sections, read_toml, sentences
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.subject import EMBEDDED_SHA256
from lorica.common.plan.traits import SiteMetric, TaskKind


def _positive(value: float) -> float:
    if math.isnan(value) or value <= 0:
        raise ValueError("must be above 0 (inf sets no limit)")
    return value


Limit = Annotated[float, AfterValidator(_positive)]
PublicKey = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class SiteIdentity(Section):
    """Who the site is."""

    name: str = Field(min_length=1, max_length=100)
    """The site's public name; it is sent to the coordinator and shown to its operators."""


class SiteLedger(Section):
    """Where the privacy ledger is and at which δ it adds up."""

    path: str = "ledger.sqlite"
    """Path of the ledger, from the folder that site.toml is in; one per data set."""
    witness: str = ""
    """Path of a file that holds the ledger's newest head, from the folder that site.toml is in: on
    another disk or machine, so that an older copy of the ledger that is put back is seen. Empty:
    the coordinator and what people print (`lorica site ledger verify --head`) are the witnesses."""
    delta: float = Field(1e-5, ge=1e-9, lt=1)
    """δ at which the ledger states the total ε, a probability below 1 / number of units."""
    lifetime_epsilon: Limit = 20.0
    """Budget of the data set's lifetime, all runs together, ε at ``delta``."""
    run_epsilon: Limit = 8.0
    """Budget of one run, ε at ``delta``; a plan's own, smaller ε also holds."""
    period: Literal["month", "quarter", "year"] = "year"
    """Calendar period (UTC) of ``period_epsilon``."""
    period_epsilon: Limit = 10.0
    """Budget of one calendar period, all runs together, ε at ``delta``."""


class SiteTrainer(Section):
    """The process that holds the records, and who may speak to it."""

    socket: str = Field("trainer.sock", min_length=1)
    """Path of its Unix socket, from the folder that site.toml is in; at most 100 bytes in all."""
    users: list[int] = []
    """Numbers of further users of this machine whose processes may connect to it, such as the one
    that the node runs as. Empty: the trainer's own user alone (and root)."""
    isolation: Literal["require", "auto", "off"] = "require"
    """Whether the trainer leaves the network before it opens the records: "require" does not start
    where the system does not let it; "auto" then goes on with the network; "off" keeps it."""
    message_bytes: int = Field(256 << 20, ge=1 << 16, le=(1 << 31) - 1)
    """Largest request that it takes, bytes; the global adapter must fit."""


class Policy(Section):
    """What plans the site takes part in."""

    coordinators: list[PublicKey] = []
    """Public keys of the coordinators that are answered, 64 hex digits each, as `lorica
    coordinator key` prints them. Required: empty, and the site does not start."""
    request_hours: Limit = 24.0
    """How old a signed request may be, hours (inf: any age); it is good for one answer, and so
    long it is kept which were answered. Clocks of coordinator and site may differ by as much."""
    consent: Literal["none", "per-run"] = "none"
    """"per-run": a run waits until a person of the site has approved it (`lorica site pending`,
    `approve-run`, `deny-run`); "none": what the policy admits is answered at once."""
    questions: int = Field(8, ge=1)
    """How many plans that differ in task, labels, bounds, table, backbone or text length may ask
    whether the records fit them, ever: each answer tells one fact of the records, without noise.
    With consent "per-run" people decide instead."""
    maximum_epsilon: Limit = 8.0
    """Largest ε a plan may ask for."""
    maximum_epsilon_alone: Limit = 100.0
    """Largest ε of a plan with privacy.trust "sum" against an observer with whom all other sites
    collude, in nats: this site's own share of the noise, alone. maximum_epsilon holds for as many
    colluders as the plan says, and so for fewer."""
    maximum_epsilon_sums: Limit = 8.0
    """The same if no site colludes: against the coordinator, and all who see what comes of the
    sums."""
    peers: dict[str, str] = {}
    """Sites that are known here, for sealed sums: name -> fingerprint of its key, as `lorica site
    peers show` prints it there. `lorica site peers confirm` adds to them."""
    fewest_peers: int = Field(2, ge=1)
    """A sealed sum needs so many other sites that are known here, at least: a coordinator can
    invent the rest."""
    maximum_delta: float = Field(1e-5, gt=0, lt=1)
    """Largest δ a plan may ask for. With ``sampling_units`` fixed, 1 / (100 · sampling_units) is
    the limit where that is less; below 1e-9 no δ is taken."""
    minimum_noise: float = Field(0.3, ge=0)
    """Least noise multiplier σ of any step: whom a step draws is hidden by no more than that."""
    minimum_sample_rate: float = Field(1e-6, ge=0, le=1)
    """Least sample rate q of any step."""
    unit: str = "record"
    """The unit of privacy that plans must protect: "record", or the column data.unit. It is also
    the ledger's unit: what is spent per record and per patient does not add up."""
    tasks: list[TaskKind] = ["text-classification"]
    """Allowed tasks."""
    backbones: list[str] = [EMBEDDED_SHA256]
    """Allowed backbones, by the SHA-256 of weights, config and tokenizer that `lorica site backbone
    FOLDER` prints; the packaged one by that of its weights, as its other files are pinned. The
    hash alone allows a model as it is; "HASH:int8" and "HASH:int4" allow it with its weights
    rounded (plan key backbone.quantize)."""
    backbone_folders: list[str] = []
    """Folders of further pretrained models on this machine, from the folder that site.toml is in.
    A plan chooses among them by hash (backbone.sha256); no other folder is opened for a plan, and
    nothing is downloaded."""
    maximum_rank: int = Field(64, ge=1)
    """Largest LoRA rank; under the methods "flexlora" and "flora" the rank that the site trains
    at if a plan has a larger one."""
    adapter_entry: Limit = 100.0
    """Largest number (absolute) in a LoRA factor, bias or residual of a global adapter. This bound
    and the next three are far above what training makes; adapters that are built to amplify a
    record's influence exceed them, and are refused before anything is charged."""
    adapter_product: Limit = 1000.0
    """Largest Frobenius norm of a module's change B·A, before the plan's scaling alpha / rank."""
    adapter_center: Limit = 10.0
    """Largest norm of the head's center; features have length 1."""
    adapter_head: Limit = 10_000.0
    """Largest norm of a tensor of the head."""
    maximum_labels: int = Field(1000, ge=2)
    """Largest number of labels."""
    maximum_rounds: int = Field(1000, ge=1)
    """Largest number of rounds in a run."""
    maximum_steps: int = Field(100_000, ge=1)
    """Largest number of DP-SGD steps in a run."""
    minimum_units: int = Field(100, ge=1)
    """Fewest units the data must have: with fewer the site does not start; and the least figure
    (sampling_units) that it takes part with."""
    metrics: list[SiteMetric] = ["accuracy", "loss"]
    """Metrics that may leave, noised and charged; empty: none."""
    benefit_epsilon: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Largest ε of the one bit, by randomised response, that a plan may ask for about the site's
    guard: whether it keeps a model without the others' records. 0: plans that ask are refused."""
    sampling_units: int = Field(0, ge=0)
    """The site's figure for its number of units, rounded down and fixed here when its ledger is
    made. Sample rates, noise, and whether a plan is for so few units are computed from it, never
    from the true count, which stays private. Required: 0, and the site does not start."""
    declared_units: int = Field(0, ge=0)
    """The rounded number of units that may be told the coordinator as the site's weight. 0:
    nothing is told, and the site counts like any other that tells nothing."""
    budget: Literal["private", "declared"] = "private"
    """Whether the coordinator is told, when it asks whether the site takes part, the lifetime
    budget of the data and what is left of it: figures of the ledger, which follow from plans and
    from the site's figure for its number of units; fix sampling_units, too, or they tell of it."""
    noise: Literal["secure", "seeded"] = "secure"
    """"secure" in every real deployment; "seeded" is for tests alone and protects nothing."""


class SiteConfig(Section):
    """site.toml, whole."""

    site: SiteIdentity
    """Who the site is."""
    data: SiteData
    """The private records."""
    ledger: SiteLedger = SiteLedger()
    """The ledger and its budgets."""
    trainer: SiteTrainer = SiteTrainer()
    """The trainer's process."""
    policy: Policy = Policy()
    """What the site allows."""
    federation: SiteFederation = SiteFederation()
    """The federation that the site is part of."""

    @model_validator(mode="after")
    def _consistent(self) -> SiteConfig:
        if self.policy.unit not in ("record", self.data.unit):
            raise ValueError(
                f'policy.unit is "{self.policy.unit}"; it must be "record" or the column that '
                f'data.unit names ("{self.data.unit}")'
            )
        return self


def load_site(path: Path) -> SiteConfig:
    """Read site.toml.

    Raises:
        LoricaError: LOR-409 when it is missing, malformed, or says what cannot be.
    """
    content = read_toml(path, "site's configuration", Code.SITE_CONFIG)
    try:
        return SiteConfig.model_validate(content)
    except ValidationError as error:
        raise LoricaError(Code.SITE_CONFIG, f"In {path}: {sentences(error, SiteConfig)}") from None


def documented_site(
    name: str,
    source: str,
    *,
    coordinator: str = "",
    address: str = "",
    units: int = 0,
    **data: str,
) -> str:
    """A site.toml with every field and its meaning above it.

    Args:
        name: the site's public name.
        source: where the records are.
        coordinator: public key of the only coordinator that is answered; empty: any is.
        address: where the coordinator is, host:port.
        units: the figure for the number of units (policy.sampling_units); 0: none yet.
        data: further fields of [data], such as the columns' names.
    """
    config = SiteConfig(
        site=SiteIdentity(name=name),
        data=SiteData(source=source, **data),
        policy=Policy(coordinators=[coordinator] if coordinator else [], sampling_units=units),
        federation=SiteFederation(address=address),
    )
    return documented_sections(config)
