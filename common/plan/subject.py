"""Sections of the plan that say what is trained, on what, and under which guarantee."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from lorica.common.config import Positive, PositiveOrInf, Section, Window, distinct
from lorica.common.plan.traits import TRAITS, SiteMetric, TaskKind

EMBEDDED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the embedded all-MiniLM-L6-v2's ``model.safetensors`` (upstream revision
1110a243fdf4706b3f48f1d95db1a4f5529b4d41)."""

NumberFormat = Literal["none", "int8", "int4"]
"""How weights of frozen linear layers are kept; "none": in float32."""

DESCRIBED = ("text-classification", "multi-label-classification")
"""Tasks whose head starts from what labels mean."""

DESCRIBES = " = "
"""Between a label and its description in ``task.descriptions``."""

DEMO_DATA = "embedded:clinic-notes"
"""``data.train`` of the packaged synthetic data set."""

SYNTHETIC_NOTES = (DEMO_DATA, "embedded:clinic-histories")
"""Packaged data sets of notes that no patient is behind."""


LEAST_BIT, MOST_BIT = 1e-3, 10.0
"""ε of a bit by randomised response, as in :mod:`lorica.common.privacy.response`."""


class BackbonePlan(Section):
    """The pretrained model that every site adapts."""

    source: str = Field("embedded", min_length=1)
    """A local folder, a hub id ("org/name"), or "embedded" for the packaged all-MiniLM-L6-v2."""

    revision: str = ""
    """Hub revision (commit, tag or branch); empty means the hub's main branch."""

    sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    """SHA-256 of model.safetensors, or of weights, config and tokenizer together (`lorica site
    backbone FOLDER` prints both), 64 lower-case hex digits; empty means unchecked, except for
    "embedded", whose hash is pinned. Sites find the model by it."""

    quantize: NumberFormat = "none"
    """Bits in which the frozen linear weights are held: "none" for float32, "int8" (one scale a
    row) or "int4" (NF4, one scale for 64 weights). Sites and coordinator round the same way."""


class AdapterPlan(Section):
    """What is trained on top of the frozen backbone."""

    kind: Literal["lora", "bitfit", "head"] = "lora"
    """"lora" trains LoRA factors and the task's head, "bitfit" the biases of all linear modules of
    the chosen layers and the head, "head" the head alone."""

    rank: int = Field(8, ge=1, le=512)
    """LoRA rank r, in columns of B; kind "lora" alone uses it."""

    alpha: Positive = 16.0
    """LoRA scaling numerator: the adapted weight is W + (alpha / rank) · B·A. No unit."""

    target_modules: list[str] = []
    """The linear modules that get LoRA factors: "attention" for the attention's projections,
    whatever the backbone calls them, "feed-forward" for the other ones of its layers, or names as
    peft knows them; kind "bitfit" takes all. Of a group (and of "bitfit") those are left out that
    run more than once in a pass, such as DeBERTa-v3's query and key projections, which read
    positions, too, or that do not read one input per record: `lorica backbone check` lists them.
    Empty: attention; for entities without privacy, where no noise grows with the number of values,
    both."""

    center: Literal["labels", "none"] = "labels"
    """What is taken from every feature before it is scaled to unit length again: the mean of the
    label-name embeddings (of images, whose labels' names say nothing, the mean feature by the warm
    start's noised sums), or nothing. Records of one domain share a large common part that tells
    labels apart by nothing."""

    batch_norm: Literal["refuse", "fixed", "group"] = "refuse"
    """Batch norms of the backbone, which join the records of a batch: "refuse" the backbone, or
    put in their place a "fixed" scale and shift by the statistics of pre-training, which no record
    changes, or a "group" norm, which changes what the backbone computes."""

    layers: list[int] = []
    """Indices of the layers that are adapted (LoRA factors, biases), counted from 0, negative from
    the end; empty means all, as it must for networks that are no list of layers. Layers below the
    lowest adapted one stay frozen and are computed once."""


class TaskPlan(Section):
    """What the adapted model is for."""

    kind: TaskKind = "text-classification"
    """The task."""

    labels: Annotated[list[str], AfterValidator(distinct)] = []
    """Label names, in the order of the head's rows; of token classification, the kinds of
    entities. Empty: a simulation takes them from the training data; a site refuses a plan without
    them."""

    descriptions: list[str] = []
    """What labels mean, as "label = text"; a label may have several. The head of a text task starts
    from them, and where a label has none from its name. They are public, as the plan is."""

    separator: str = Field("|", min_length=1)
    """Multi-label: what stands between the labels of one record, where they are no JSON list."""

    minimum: float = Field(0.0, allow_inf_nan=False)
    """Regression: smallest value that a target can have, in the target's unit. A public bound,
    not the data's own smallest value, which is private."""

    maximum: float = Field(1.0, allow_inf_nan=False)
    """Regression: the same for the largest."""

    system: str = ""
    """Task "causal-lm": an instruction that stands before every prompt; empty: none."""

    answer_tokens: int = Field(64, ge=1, le=100_000)
    """Task "causal-lm": most tokens of an answer that `lorica predict` generates."""

    mask_share: float = Field(0.15, gt=0, lt=1)
    """Task "masked-lm": share of a text's tokens that are asked for."""

    @property
    def meanings(self) -> dict[str, list[str]]:
        """Label -> its descriptions, in their order, of labels that have some."""
        found: dict[str, list[str]] = {}
        for text in self.descriptions:
            label, _, meaning = text.partition(DESCRIBES)
            found.setdefault(label, []).append(meaning.strip())
        return found

    @property
    def lacks_labels(self) -> bool:
        """Whether it names fewer labels than the task needs."""
        return len(self.labels) < TRAITS[self.kind].fewest_labels


class DataPlan(Section):
    """Where records come from (simulations) and which columns mean what."""

    train: str = Field(DEMO_DATA, min_length=1)
    """Training data: path of a CSV, TSV, JSONL, Parquet or Arrow file, of a folder (images,
    Parquet, a data set of Hugging Face `datasets`), "hub:ORG/NAME", or "embedded:NAME"."""

    test: str = ""
    """Test data that the coordinator holds; empty: a simulation sets a fifth of the training
    data aside (records of one unit stay together)."""

    judge: str = ""
    """Validation data that the coordinator holds, a file like data.test: which state of LoRA rounds
    is kept is judged by them, and no result is measured on them; empty: sites judge."""

    table: str = ""
    """Of a folder of images: a CSV or TSV file in it that names files, labels and what else is
    known of them; empty: every sub-folder's name is the label of what is in it."""

    file: str = Field("file", min_length=1)
    """Name of the column of ``table`` with the files' names, from the folder of images."""

    text: str = Field("text", min_length=1)
    """Name of the column with the text."""

    label: str = "label"
    """Name of the column with what the task is to tell: the label's name, the answer. Empty:
    there is none, which only tasks without labels take."""

    image: str = ""
    """Name of the column with images in Parquet, Arrow and data sets: encoded bytes, or bytes and
    path. Empty: "image", where the task is of images. Folders of images need none."""

    window: Window = []
    """Of images with more than 8 bits or fractions: centre and width of the window of values that
    becomes black to white, such as [2048, 4096]. Empty: by their bits; fractions from 0 to 1."""

    unit: str = ""
    """Name of the column that says whose record it is (patient_id, customer_id); empty: the
    column privacy.unit, or every record its own unit. Splits never separate one unit's records."""

    missing_unit: Literal["refuse", "own"] = "refuse"
    """Records with an empty unit column: "refuse" the data, or each is its "own" unit. At a real
    site its own configuration decides."""

    alike: Literal["refuse", "merge", "keep"] = "refuse"
    """Labels, and names of sites, that only look alike (case, blanks, invisible characters, 1 and
    1.0): "refuse" the data, "merge" them under the plan's or the most frequent spelling, or "keep"
    them apart. At a real site its own configuration decides."""

    validation: float = Field(0.1, gt=0, lt=1)
    """Share of a site's units that is set aside for evaluation at the site; used only when sites
    evaluate (rounds.evaluate_every)."""


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

    trust: Literal["none", "sum"] = "none"
    """"none": every site adds noise enough by itself and trusts nobody. "sum": the coordinator sees
    the sum over the sites alone, so that together they need the noise of one holder of all records;
    training.mode "gradient"."""

    honest_sites: int = Field(0, ge=0, le=10_000)
    """Trust "sum": so many honest sites, at least 2, have the noise together that ε asks for; n
    sites have √(n / honest_sites) times that of one holder of all records. The more of the sites
    must be honest, the less noise there is. 0: as many as rounds.minimum_sites."""

    evaluation_share: float = Field(0.05, gt=0, lt=1)
    """Share of ε and δ that evaluation at the sites gets; used only when sites evaluate
    (rounds.evaluate_every)."""

    evaluation_metrics: list[SiteMetric] = ["accuracy", "loss"]
    """What sites count, noise and send when they evaluate."""

    benefit_epsilon: float = Field(0.0, ge=0, le=MOST_BIT, allow_inf_nan=False)
    """ε of one bit that every site tells after the last round, by randomised response: whether its
    own guard (`lorica site benefit`) keeps a model without the others' records. Part of
    ``epsilon``. Ten sites tell something from about 2 on, a hundred from 1. 0: nobody is
    asked."""

    @model_validator(mode="after")
    def _room_for_the_bit(self) -> PrivacyPlan:
        bit = self.benefit_epsilon
        if bit and bit < LEAST_BIT:
            raise ValueError(f"benefit_epsilon must be 0 or at least {LEAST_BIT:g}")
        if bit and bit >= self.epsilon:
            raise ValueError(f"benefit_epsilon is part of epsilon: {bit:g} is not below it")
        return self

    @property
    def private(self) -> bool:
        """Whether any privacy is asked for (ε is finite)."""
        return math.isfinite(self.epsilon)
