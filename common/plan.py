"""RunPlan: the one model of a run that coordinator and sites share.

A plan is loaded from a TOML file, from defaults, from ``section.key=value`` settings and from
Flower's flat run config; all four give the same object (:mod:`lorica.common.plan_io`). Its
fingerprint travels with every message, so that nobody trains under another plan than agreed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from lorica.common.methods import AVERAGES_PRODUCTS, LOCAL_ONLY

EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the embedded all-MiniLM-L6-v2's ``model.safetensors`` (upstream revision
1110a243fdf4706b3f48f1d95db1a4f5529b4d41)."""

DEMO_DATA = "embedded:clinic-notes"
"""``data.train`` of the packaged synthetic data set."""


def _above_zero(value: float) -> float:
    if math.isnan(value) or value <= 0:
        raise ValueError("must be above 0")
    return value


def _finite(value: float) -> float:
    if math.isinf(value):
        raise ValueError("must be finite")
    return value


def _distinct(names: list[str]) -> list[str]:
    if not all(name.strip() for name in names):
        raise ValueError("a label name is empty")
    if any(name != name.strip() for name in names):
        raise ValueError("a label name begins or ends with a blank")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        more = ", ..." if len(twice) > 5 else ""
        raise ValueError(f"label names occur twice: {', '.join(twice[:5])}{more}")
    return names


PositiveOrInf = Annotated[float, AfterValidator(_above_zero)]
Positive = Annotated[PositiveOrInf, AfterValidator(_finite)]


class Section(BaseModel):
    """A section of the plan: immutable, strict about unknown keys, documented per field."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """No field is a truth value (pydantic would read true as 1), and text is Unicode."""
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, bool):
                raise ValueError("must not be true or false")
            if isinstance(item, str) and any("\ud800" <= letter <= "\udfff" for letter in item):
                raise ValueError("must be Unicode text, without lone surrogates")
        return value


class BackbonePlan(Section):
    """The pretrained model that every site adapts."""

    source: str = Field("embedded", min_length=1)
    """A local folder, a hub id ("org/name"), or "embedded" for the packaged all-MiniLM-L6-v2."""

    revision: str = ""
    """Hub revision (commit, tag or branch); empty means the hub's main branch."""

    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of model.safetensors, 64 lower-case hex digits; empty means unchecked, except for
    "embedded", whose hash is pinned."""


class AdapterPlan(Section):
    """What is trained on top of the frozen backbone."""

    kind: Literal["lora", "head"] = "lora"
    """"lora" trains LoRA factors and the classification head, "head" the head alone."""

    rank: int = Field(8, ge=1, le=512)
    """LoRA rank r, in columns of B; not used by kind "head"."""

    alpha: Positive = 16.0
    """LoRA scaling numerator: the adapted weight is W + (alpha / rank) · B·A. No unit."""

    target_modules: list[str] = Field(default=["query", "value"], min_length=1)
    """Names of the linear modules that get LoRA factors, as peft names them."""

    center: Literal["labels", "none"] = "labels"
    """What is taken from every feature before it is scaled to unit length again: the mean of the
    label-name embeddings, or nothing. Texts of one domain share a large common part that tells
    labels apart by nothing."""

    layers: list[int] = [-1]
    """Indices of the layers that get LoRA factors, counted from 0, negative from the end;
    empty means all. Layers below the lowest adapted one stay frozen and are computed once."""


class TaskPlan(Section):
    """What the adapted model is for."""

    kind: Literal["text-classification"] = "text-classification"
    """The task."""

    labels: Annotated[list[str], AfterValidator(_distinct)] = []
    """Label names, in the order of the head's rows. Empty: a simulation takes them from the
    training data; a site refuses a plan without them."""


class DataPlan(Section):
    """Where records come from (simulations) and which columns mean what."""

    train: str = Field(DEMO_DATA, min_length=1)
    """Training data: path of a CSV/TSV/JSONL file, or "embedded:NAME"."""

    test: str = ""
    """Test data that the coordinator holds; empty: a simulation sets a fifth of the training
    data aside (records of one unit stay together)."""

    text: str = Field("text", min_length=1)
    """Name of the column with the text."""

    label: str = Field("label", min_length=1)
    """Name of the column with the label's name."""

    unit: str = ""
    """Name of the column that says whose record it is (patient_id, customer_id); empty: the
    column privacy.unit, or every record its own unit. Splits never separate one unit's records."""

    missing_unit: Literal["refuse", "own"] = "refuse"
    """Records with an empty unit column: "refuse" the data, or each is its "own" unit. At a real
    site its own configuration decides."""

    validation: float = Field(0.1, gt=0, lt=1)
    """Share of a site's units that is set aside for evaluation at the site; used only when
    rounds.evaluate_every is above 0."""


class PrivacyPlan(Section):
    """The guarantee each site gives, at most; a site's own policy may refuse it."""

    epsilon: PositiveOrInf = 8.0
    """Differential-privacy budget ε of the whole run at each site, in nats; inf means none."""

    delta: float = Field(1e-5, gt=0, lt=1)
    """Differential-privacy δ of the whole run at each site, a probability; a site refuses
    δ >= 1 / its number of records."""

    clip_norm: Positive = 0.35
    """Bound C on the L2 norm of one unit's gradient over all trained parameters."""

    unit: str = Field("record", min_length=1)
    """Unit of privacy, what is added or removed between neighbouring data sets: "record", or the
    name of a column (patient_id), whose records then count as one together."""

    max_records_per_unit: int = Field(4, ge=1)
    """Most records that one unit brings to one step, chosen at random; not used by unit
    "record"."""

    evaluation_share: float = Field(0.05, gt=0, lt=1)
    """Share of ε and δ that evaluation at the sites gets; used only when rounds.evaluate_every
    is above 0."""

    evaluation_metrics: list[Literal["accuracy", "loss", "per_label"]] = ["accuracy", "loss"]
    """What sites count, noise and send when they evaluate."""

    @property
    def private(self) -> bool:
        """Whether any privacy is asked for (ε is finite)."""
        return math.isfinite(self.epsilon)


class TrainingPlan(Section):
    """What a site does in a round."""

    mode: Literal["gradient", "local"] = "gradient"
    """"gradient": a site returns one clipped, noised gradient sum a round and the coordinator
    takes the step (section server); "local": a site takes several DP-SGD steps of its own and
    returns how far it went."""

    sample_rate: float = Field(1.0, gt=0, le=1)
    """Mode "gradient": probability of a unit to be in a round's batch, at every site alike. The
    head's gradient on cached features is so cheap that all units take part by default."""

    lora: Literal["auto", "always", "never"] = "auto"
    """Mode "gradient", adapter kind "lora": whether the last rounds train LoRA factors. "auto":
    without privacy always; with privacy only where sites evaluate (rounds.evaluate_every), and
    the factors are kept only if the sites' noised accuracy rose by them. Noise makes LoRA lose
    more often than gain, and its rounds take budget from the head."""

    lora_rounds: int = Field(12, ge=1)
    """Mode "gradient": how many of the last rounds train LoRA factors, and the head with them,
    if any do; with "auto" at most a third of all rounds."""

    lora_sample_rate: float = Field(0.25, gt=0, le=1)
    """Mode "gradient": probability of a unit to be in the batch of a LoRA round."""

    local_steps: int = Field(4, ge=1, le=100_000)
    """Mode "local": DP-SGD steps each site takes per round."""

    expected_batch_size: int = Field(96, ge=1)
    """Mode "local": expected number of records in a Poisson batch; the sample rate is this
    divided by the site's declared number of records."""

    learning_rate: Positive = 0.01
    """Mode "local": Adam step size of the LoRA factors, in units of their weights."""

    head_learning_rate: Positive = 0.4
    """Mode "local": Adam step size of the classification head, in units of its weights."""

    lora_clip_share: float = Field(0.1, gt=0, lt=1)
    """Share of privacy.clip_norm² that LoRA gradients get: they are clipped to √share · C, the
    head's gradients to √(1 - share) · C. Not used by kind "head", whose head gets all."""

    proximal: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Mode "local": μ of FedProx, per unit of weight; μ times the distance from the global
    adapter is added to the noised mean gradient. 0: not at all."""

    smoothing: float = Field(0.0, ge=0, lt=1)
    """Mode "local": share of the earlier steps' mean that is kept in an exponential mean of the
    noised gradients over a round's steps, which then takes the gradient's place; 0: none."""

    final_rate: float = Field(0.2, gt=0, le=1)
    """Mode "local": share of both learning rates that is left in the last round; they fall
    linearly."""

    max_length: int = Field(128, ge=2, le=8192)
    """Longest text in tokens; longer ones are cut."""


class AggregationPlan(Section):
    """How updates become the next global adapter."""

    method: Literal[
        "fedavg", "ffa", "fedsvd", "rolora", "la-lora", "fedex", "flora", "flexlora"
    ] = "fedsvd"
    """"fedavg" averages A and B apart, "ffa" freezes A, "fedsvd" trains B and re-factorises,
    "rolora" trains B and A in alternate rounds, "la-lora" in alternate local steps, "fedex" keeps
    what averaging misses as a residual weight, "flora" merges all and starts anew, "flexlora"
    averages products; the last two take sites of lower rank. docs/methods.md compares them."""

    robust: Literal["none", "median", "trimmed-mean", "krum", "norm-bound"] = "none"
    """Mode "local": what keeps faulty or hostile sites from the mean. All but "none" count every
    site the same, whatever it declares, and hold a round's updates in memory together."""

    trim_share: float = Field(0.2, ge=0.01, lt=0.5)
    """Robust "trimmed-mean": share of the sites that is cut off at either end of every value."""

    faulty_sites: int = Field(1, ge=1)
    """Robust "krum": how many sites may be faulty, f; a round needs at least 2·f + 3."""

    norm_bound: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Robust "norm-bound": longer updates are scaled down to this L2 norm, in units of the
    weights; 0: to the median of the round's norms."""


class ServerPlan(Section):
    """How the coordinator steps: along the sites' gradients (training.mode "gradient"), or along
    their mean update (mode "local", the fields named local)."""

    optimizer: Literal["adam", "adam-corrected", "momentum"] = "adam"
    """"adam" divides each tensor's step by the root mean square of its noised gradients, so that
    steps shrink as noise grows; "adam-corrected" takes the known variance of the noise out of
    that mean square first; "momentum" divides by nothing."""

    head_rate: Positive = 1.0
    """Step size of the head times the square root of its number of rounds. With "adam" it is the
    distance that noise alone moves a weight over the whole stage, whatever the number of rounds
    and sites; with "momentum" a step is rate · gradient / clip_norm, summed over the sites."""

    lora_rate: Positive = 0.1
    """The same for the LoRA factors."""

    warm_rate: Positive = 0.3
    """The same for the head in LoRA rounds, which finds itself trained."""

    momentum: float = Field(0.0, ge=0, lt=1)
    """Share of the last direction that is kept (Adam's β₁)."""

    second_moment: float = Field(0.99, gt=0, lt=1)
    """Share of the mean square gradient that is kept (Adam's β₂); bias-corrected."""

    final_rate: float = Field(0.1, gt=0, le=1)
    """Share of a stage's step size that is left in its last round; it falls linearly."""

    averaging: float = Field(0.0, ge=0, lt=1)
    """Decay of an exponential mean of the head's iterates, which is what a stage ends with; 0: its
    last iterate."""

    local_optimizer: Literal["none", "fedavgm", "fedadam", "fedyogi"] = "none"
    """Mode "local": the mean update is the next adapter's move as it is ("none"), or the gradient
    of this optimiser."""

    local_rate: Positive = 1.0
    """Step size η of local_optimizer: a factor of the update with "fedavgm", else about the
    distance that a weight moves in a round, in units of the weights."""

    local_momentum: float = Field(0.9, ge=0, lt=1)
    """β₁ of local_optimizer; β₂ is second_moment."""

    local_tau: Positive = 1e-3
    """τ of "fedadam" and "fedyogi": updates far smaller than this move a weight less."""


class RoundsPlan(Section):
    """The round loop at the coordinator."""

    count: int = Field(43, ge=1, le=1_000_000)
    """Number of rounds, the warm start included."""

    warm_start: float = Field(0.4, ge=0, lt=1)
    """Share of the training budget (of Σ 1/σ² over its rounds) that the first round spends on
    noised sums of every label's features, from which the coordinator computes a head in closed
    form; 0: no such round, training starts from the label names."""

    lora_share: float = Field(0.2, gt=0, lt=1)
    """Share of the rest of the training budget that LoRA rounds get; the head's rounds have what
    is left. Used by training.mode "gradient" when there are both."""

    minimum_sites: int = Field(1, ge=1)
    """Fewest sites whose updates make a round; with fewer the run stops."""

    evaluate_every: int = Field(0, ge=0)
    """Sites evaluate the global adapter on records they set aside after every so many rounds and
    after the last; 0: never (the coordinator's own test data cost no privacy)."""

    timeout_seconds: Positive = 3600.0
    """Longest wait for one site's answer, in seconds."""


class WirePlan(Section):
    """How numbers travel."""

    update: Literal["float32", "bfloat16", "float16", "int8"] = "float32"
    """Number format of what sites send, rounded at random and without bias after the noise, so at
    no cost in ε: 4, 2, 2 or 1 bytes a value. What sites are sent is float32."""


class SimulationPlan(Section):
    """Virtual sites on one machine; not used by a real federation."""

    sites: int = Field(4, ge=1, le=100_000)
    """Number of virtual sites."""

    partition: Literal["iid", "dirichlet", "by-column"] = "iid"
    """How records are divided: at random, with Dirichlet-skewed label shares, or by a column."""

    alpha: Positive = 0.5
    """Dirichlet concentration; smaller is more skewed. Used by partition "dirichlet". No unit."""

    column: str = ""
    """Column whose values are the sites; used by partition "by-column"."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of partition, start, sampling and (with noise "seeded") the privacy noise."""

    engine: Literal["in-process", "ray"] = "in-process"
    """"in-process" calls the sites one after another; "ray" uses Flower's simulation engine."""

    noise: Literal["seeded", "secure"] = "seeded"
    """"seeded" makes noise reproducible (and so not private); "secure" draws it from the
    operating system's generator, as real sites do."""

    baselines: Literal["zero-shot", "all"] = "zero-shot"
    """What the result is compared with: "zero-shot" the untrained start alone; "all" also trains
    each site alone under the same ε, and one model on all data pooled without privacy."""

    @model_validator(mode="after")
    def _column_for_by_column(self) -> SimulationPlan:
        if self.partition == "by-column" and not self.column:
            raise ValueError('partition "by-column" needs simulation.column')
        return self


class RunPlan(Section):
    """One run, whole. All fields have defaults; the defaults are the demo's recipe."""

    backbone: BackbonePlan = BackbonePlan()
    """The pretrained model."""
    adapter: AdapterPlan = AdapterPlan()
    """The trained part."""
    task: TaskPlan = TaskPlan()
    """The task and its labels."""
    data: DataPlan = DataPlan()
    """Data and columns."""
    privacy: PrivacyPlan = PrivacyPlan()
    """The guarantee."""
    training: TrainingPlan = TrainingPlan()
    """Local training."""
    aggregation: AggregationPlan = AggregationPlan()
    """The aggregation rule."""
    server: ServerPlan = ServerPlan()
    """The coordinator's optimiser."""
    rounds: RoundsPlan = RoundsPlan()
    """The round loop."""
    wire: WirePlan = WirePlan()
    """The wire."""
    simulation: SimulationPlan = SimulationPlan()
    """The simulation."""

    @model_validator(mode="after")
    def _consistent(self) -> RunPlan:
        if len(self.task.labels) == 1:
            raise ValueError("task.labels must name at least two labels, or be empty")
        needed = (1 if self.rounds.warm_start else 0) + self.lora_rounds
        if self.rounds.count < needed:
            raise ValueError(
                f"rounds.count is {self.rounds.count}, but the warm start and the LoRA rounds "
                f"(training.lora_rounds) alone are {needed}"
            )
        self._check_method()
        if self.privacy.unit != "record" and self.data.unit not in ("", self.privacy.unit):
            raise ValueError(
                f'privacy.unit names the column "{self.privacy.unit}", data.unit another '
                f'("{self.data.unit}")'
            )
        return self

    def _check_method(self) -> None:
        """What method, robust rule and server optimiser need of each other and of the rest."""
        method, robust = self.aggregation.method, self.aggregation.robust
        optimizer = self.server.local_optimizer
        for needs_local, key in (
            (method in LOCAL_ONLY, f'aggregation.method "{method}"'),
            (robust != "none", f'aggregation.robust "{robust}"'),
            (optimizer != "none", f'server.local_optimizer "{optimizer}"'),
        ):
            if needs_local and self.training.mode != "local":
                raise ValueError(f'{key} needs training.mode "local"')
        if method in AVERAGES_PRODUCTS:
            if optimizer != "none":
                raise ValueError(
                    f'aggregation.method "{method}" averages products: server.local_optimizer, '
                    'which moves factors, must be "none"'
                )
            if robust in ("median", "trimmed-mean"):
                raise ValueError(
                    f'aggregation.method "{method}" averages products: aggregation.robust '
                    f'"{robust}" works on factors; use "krum" or "norm-bound"'
                )
        if robust != "none" and self.rounds.warm_start:
            raise ValueError(
                f'aggregation.robust "{robust}" does not protect the sums of the warm start: set '
                "rounds.warm_start to 0"
            )
        fewest = self.robust_minimum
        if self.rounds.minimum_sites < fewest:
            raise ValueError(
                f'aggregation.robust "{robust}" needs at least {fewest} sites with these '
                f"settings: raise rounds.minimum_sites from {self.rounds.minimum_sites}"
            )

    @property
    def robust_minimum(self) -> int:
        """Fewest updates that the robust rule can do its work on."""
        rule = self.aggregation
        if rule.robust == "krum":
            return 2 * rule.faulty_sites + 3
        if rule.robust == "trimmed-mean":
            return next(n for n in range(3, 1002) if int(rule.trim_share * n) >= 1)
        if rule.robust == "median" or (rule.robust == "norm-bound" and not rule.norm_bound):
            return 3
        return 1

    def for_one_site(self) -> RunPlan:
        """The same run with a single site: no minimum of sites, no rule that needs several."""
        return self.replace(rounds={"minimum_sites": 1}, aggregation={"robust": "none"})

    @property
    def unit_column(self) -> str:
        """The column that says whose record it is; empty: every record is its own unit."""
        return self.data.unit or ("" if self.privacy.unit == "record" else self.privacy.unit)

    @property
    def lora_rounds(self) -> int:
        """How many of the last rounds train LoRA factors on the coordinator's steps."""
        training = self.training
        if training.mode == "local" or self.adapter.kind == "head" or training.lora == "never":
            return 0
        if training.lora == "always":
            return training.lora_rounds
        if self.privacy.private and not self.rounds.evaluate_every:
            return 0
        return min(training.lora_rounds, self.rounds.count // 3)

    @property
    def evaluation_rounds(self) -> list[int]:
        """The rounds after which sites evaluate; among them the last before LoRA."""
        every, last = self.rounds.evaluate_every, self.rounds.count
        if not every:
            return []
        before_lora = {last - self.lora_rounds} if last > self.lora_rounds else set()
        return sorted({*range(every, last + 1, every), *before_lora, last})

    def canonical(self) -> str:
        """The plan as JSON with sorted keys and no spaces; ``inf`` is written "inf"."""
        return json.dumps(
            _json_safe(self.model_dump()), sort_keys=True, separators=(",", ":"), allow_nan=False
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 of :meth:`canonical`, 64 hex digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def replace(self, **sections: dict[str, Any]) -> RunPlan:
        """A copy with some keys of some sections changed, validated anew.

        Example: ``plan.replace(task={"labels": ["a", "b"]})``.
        """
        content = self.model_dump()
        for name, values in sections.items():
            content[name] |= values
        return RunPlan.model_validate(content)


def _json_safe(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _json_safe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_safe(item) for item in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return value
