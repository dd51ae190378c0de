"""Sections of the plan that say how it is trained: sites, aggregation, coordinator, rounds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lorica.common.config import Positive, Section

KeptPart = Literal["head", "tail", "both"]
"""What is kept of a text that is too long."""

PARTS: dict[KeptPart, str] = {"head": "beginning", "tail": "end", "both": "two ends"}
"""The same in words."""

Precision = Literal["float32", "bf16", "auto"]


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
    without privacy, and where features as they came tell the task little (entities), always; else
    where the data's public size leaves LoRA a signal above the noise (rounds.expected_units), or
    where sites evaluate (rounds.evaluate_every). What LoRA rounds came to is then judged, by
    data.judge or by the sites' noised counts, and the best state is kept."""

    lora_rounds: int = Field(60, ge=1)
    """Mode "gradient": how many of the last rounds train LoRA factors, and the head with them,
    if any do; with "auto" at most six tenths of all rounds (all, where the head has nothing to
    learn from features as they came)."""

    lora_sample_rate: float = Field(0.0, ge=0, le=1)
    """Mode "gradient": probability of a unit to be in the batch of a LoRA round. 0: 0.05 without
    privacy, 0.1 with it, where many rounds of small batches would need noise that no longer falls
    with them; more where rounds.expected_units says that this is less than 128 units."""

    gradient_clip_share: float = Field(0.0, ge=0, lt=1)
    """Mode "gradient": share of privacy.clip_norm² that the gradient of LoRA factors gets in a LoRA
    round: they are clipped to √share · C, the head's to √(1 - share) · C. Tasks without a head have
    √share · C, and noise of that size. 0: 0.5; for private runs on entities 0.9: their head has few
    values, whose sum stands above the noise in any case."""

    local_steps: int = Field(4, ge=1, le=100_000)
    """Mode "local": DP-SGD steps each site takes per round."""

    expected_batch_size: int = Field(96, ge=1)
    """Mode "local": expected number of records in a Poisson batch; the sample rate is this
    divided by the site's declared number of records."""

    learning_rate: Positive = 0.01
    """Mode "local": Adam step size of the LoRA factors, in units of their weights."""

    head_learning_rate: Positive = 0.4
    """Mode "local": Adam step size of the classification head, in units of its weights."""

    layer_decay: float = Field(1.0, ge=0.01, le=1)
    """Factor of the step size of adapted layers from a layer to the one below; the highest adapted
    layer and the head have the whole. 1: all alike."""

    lora_clip_share: float = Field(0.1, gt=0, lt=1)
    """Mode "local": share of privacy.clip_norm² that LoRA gradients get: they are clipped to
    √share · C, the head's gradients to √(1 - share) · C. Not used by kind "head", whose head gets
    all. Tasks without a head have √share · C, and noise of that size."""

    proximal: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Mode "local": μ of FedProx, per unit of weight; μ times the distance from the global
    adapter is added to the noised mean gradient. 0: not at all."""

    smoothing: float = Field(0.0, ge=0, lt=1)
    """Mode "local": share of the earlier steps' mean that is kept in an exponential mean of the
    noised gradients over a round's steps, which then takes the gradient's place; 0: none."""

    final_rate: float = Field(0.2, gt=0, le=1)
    """Mode "local": share of both learning rates that is left in the last round; they fall
    linearly."""

    augmentations: int = Field(1, ge=1, le=64)
    """Images: views of every record in a step, changed at random as ``augment`` says, whose mean
    gradient is the record's (before clipping: the guarantee is unchanged). 1: images as they
    are. Above 1 every step runs the whole encoder."""

    augment: list[Literal["shift", "flip", "crop"]] = Field(default=["shift"], min_length=1)
    """What is done to a view: "shift" by at most an eighth of the side, "flip" left and right,
    "crop" to at least three quarters of the side."""

    max_length: int = Field(128, ge=2, le=8192)
    """Longest text in tokens; longer ones are cut, and their share is said."""

    keep: KeptPart = "head"
    """What is kept of a text that is longer than max_length: its beginning ("head"), its end
    ("tail") or half of each ("both"). Letters often say at the end what they come to."""

    precision: Precision = "float32"
    """What the encoder computes in. "bf16": bfloat16, half the bytes and on hardware with units for
    it less time, at an error of 0.4 % a product; sites without such hardware refuse. "auto": each
    site has bfloat16 if its hardware has. Adapters, heads, gradients per record, norms and noise
    are float32 or finer in any case: the guarantee is the same."""

    gradient_checkpointing: Literal["none", "layers"] = "none"
    """"layers": adapted layers forget what they computed and compute it anew for the gradient:
    less memory for long texts, more time, the same gradients."""


class AggregationPlan(Section):
    """How updates become the next global adapter."""

    method: Literal[
        "fedavg", "ffa", "fedsvd", "rolora", "la-lora", "fedex", "flora", "flexlora", "fedsa"
    ] = "fedsvd"
    """"fedavg" averages A and B apart, "ffa" freezes A, "fedsvd" trains B and re-factorises,
    "rolora" trains B and A in alternate rounds, "la-lora" in alternate local steps, "fedex" keeps
    what averaging misses as a residual weight, "flora" merges all and starts anew, "flexlora"
    averages products (these two take sites of lower rank), "fedsa" averages A and leaves B and the
    head to each site. docs/methods.md compares them."""

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
    """How the coordinator steps along the sites' gradients; fields named local: mean updates.

    Gradients are what sites send in training.mode "gradient", updates in mode "local"."""

    optimizer: Literal["adam", "adam-corrected", "momentum"] = "adam"
    """"adam" divides each tensor's step by the root mean square of its noised gradients, so that
    steps shrink as noise grows; "adam-corrected" takes the known variance of the noise out of
    that mean square first; "momentum" divides by nothing."""

    head_rate: Positive = 1.0
    """Step size of the head times the square root of its number of rounds. With "adam" it is the
    distance that noise alone moves a weight over the whole stage, whatever the number of rounds
    and sites; with "momentum" a step is rate · gradient / clip_norm, summed over the sites."""

    lora_rate: Positive = 1e-3
    """Step size of the LoRA factors in a run of 100 LoRA rounds, in units of their weights: about
    what a weight moves in a round by Adam for each weight. In T rounds it is √(100 / T) times that,
    at most twice."""

    lora_momentum: float = Field(0.9, ge=0, lt=1)
    """Share of the last direction of the LoRA factors that is kept (Adam's β₁)."""

    lora_warm_up: float = Field(0.1, ge=0, le=1)
    """Share of the LoRA rounds in which their step size rises to its full height."""

    warm_rate: Positive = 0.1
    """The same for the head in LoRA rounds without privacy, which finds itself trained. With
    privacy it goes on in LoRA rounds by head_rate, as far as their noise lets its gradient count
    (weights by inverse variance)."""

    cold_rate: Positive = 1.0
    """The same for the head in LoRA rounds that are a run's first, whose head begins at random."""

    momentum: float = Field(0.0, ge=0, lt=1)
    """Share of the last direction that is kept (Adam's β₁)."""

    second_moment: float = Field(0.99, gt=0, lt=1)
    """Share of the mean square gradient that is kept (Adam's β₂); bias-corrected."""

    final_rate: float = Field(0.1, gt=0, le=1)
    """Share of a stage's step size that is left in its last round; it falls linearly."""

    averaging: float = Field(0.0, ge=0, lt=1)
    """Decay of an exponential mean of the head's iterates, which is what a stage ends with; 0: its
    last iterate."""

    lora_averaging: float = Field(0.0, ge=0, le=1)
    """Share of the LoRA rounds, the last ones, whose mean state is what they end with, head and
    factors alike. A mean of released states costs no ε. 0: the last state."""

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

    count: int = Field(100, ge=1, le=1_000_000)
    """Number of rounds, the warm start included."""

    warm_start: float = Field(0.4, ge=0, lt=1)
    """Share of the training budget (of Σ 1/σ² over its rounds) that the first round spends on
    noised sums of every label's features, from which the coordinator computes a head in closed
    form; an eighth of it where there are LoRA rounds. 0: no such round, training starts from the
    label names."""

    lora_share: float = Field(0.8, gt=0, lt=1)
    """Share of the rest of the training budget that LoRA rounds get; the head's rounds have what
    is left. Used by training.mode "gradient" when there are both."""

    expected_units: int = Field(0, ge=0)
    """How many units of privacy all sites together are expected to have, about; 0: not known. A
    public figure, which training.lora "auto" decides by; a simulation fills it in."""

    expected_sites: int = Field(0, ge=0)
    """The same of sites, each of which adds noise of its own; 0: minimum_sites."""

    minimum_sites: int = Field(1, ge=1)
    """Fewest sites whose updates make a round; with fewer the run stops."""

    evaluate_every: int = Field(0, ge=0)
    """Sites evaluate the global adapter on records they set aside after every so many rounds and
    after the last. 0: only where training.lora "auto" needs it and the coordinator has no data of
    its own to judge by (data.judge): before, amid and after the LoRA rounds."""

    test_every: int = Field(0, ge=0)
    """The coordinator measures accuracy on its own test data after every so many rounds, before
    the first and after the last. 0: after every round but those of LoRA, in which about ten times,
    and not more often than after every fifth."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the adapter that all sites begin with, and of nothing else: what a site draws, sets
    aside or adds as noise follows from secrets of its own."""

    timeout_seconds: Positive = 3600.0
    """Longest wait for one site's answer, in seconds: the deadline of a round."""

    reconnect_seconds: float = Field(180.0, ge=0, allow_inf_nan=False)
    """How long a round waits, within its deadline, for a site whose connection broke or whose
    trainer is restarting; it is then asked the same again, at no further cost in ε."""

    fraction: float = Field(1.0, gt=0, le=1)
    """Share of the ready sites that a round wants updates of, at least minimum_sites; drawn anew
    each round, from the run's id and the round. A site that is not asked spends nothing, but σ is
    calibrated as if it were asked in every round: no amplification by sampling is claimed."""

    selection: Literal["uniform", "weighted"] = "uniform"
    """How they are drawn: all alike, or in proportion to the number of records they declare."""

    over_provision: float = Field(0.0, ge=0, le=10, allow_inf_nan=False)
    """So many more sites than wanted are asked, as a share of those wanted. The round ends when
    the wanted number has answered; those that answer later spent their ε for nothing, and their
    updates are dropped."""

    quorum: float = Field(0.0, ge=0, le=1)
    """Share of the wanted number that must have answered at the deadline for the round to count;
    minimum_sites always must."""


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
    """Seed of partition, test split, sets aside, sampling and (with noise "seeded") the privacy
    noise of virtual sites; of the adapter's start it is rounds.seed."""

    engine: Literal["in-process", "ray"] = "in-process"
    """"in-process" runs the sites on this machine, with one backbone and one cache for all; "ray"
    on the actors of a Ray cluster, made here or named by the environment variable RAY_ADDRESS, each
    of which has some of the sites for good."""

    workers: int = Field(0, ge=0, le=1024)
    """Processes that the sites are divided among; 0: one for every core (engine "ray": of the
    cluster). Engine "in-process": 1 runs one site after another in the simulation's own process,
    with all its threads."""

    messages: Literal["direct", "real"] = "direct"
    """"direct" hands requests and replies over as they are, with the same results to the bit;
    "real" packs every one of them as it travels between institutions, which takes several times as
    long."""

    noise: Literal["seeded", "secure"] = "seeded"
    """"seeded" makes noise reproducible (and so not private); "secure" draws it from the
    operating system's generator, as real sites do."""

    sealing: Literal["auto", "protocol", "stand-in"] = "auto"
    """privacy.trust "sum": whether the virtual sites run the real protocol of sealed sums, or give
    their vectors, noise and all, to be added up as they are, which gives the same sum to the bit
    in less time. "auto": the protocol for up to 32 sites."""

    ranks: list[Annotated[int, Field(ge=1)]] = []
    """LoRA ranks of the sites, in turn: the first site trains at the first, and so on, again from
    the first after the last. Methods "flora" and "flexlora"; empty: all at adapter.rank."""

    declared: Literal["exact", "rounded"] = "exact"
    """What a virtual site declares as its number of units: the "exact" one, or the next lower
    power of √2 ("rounded"), as a site would that keeps it to itself. Weights follow from it and,
    in mode "local", sample rates; rounded ones are few, and noise is calibrated once for each."""

    baselines: Literal["zero-shot", "alone", "own", "all"] = "zero-shot"
    """What the result is compared with: "zero-shot" the untrained start alone; "alone" also each
    site alone under the same ε, and one model on all data pooled without privacy; "own" a model of
    every site's own records, trained without privacy inside its walls, and the result tuned on
    them; "all" all of these."""

    @model_validator(mode="after")
    def _column_for_by_column(self) -> SimulationPlan:
        if self.partition == "by-column" and not self.column:
            raise ValueError('partition "by-column" needs simulation.column')
        return self
