"""What method, robust rule and server optimiser need of each other and of the rest of a plan."""

from __future__ import annotations

from lorica.common.plan.course import (
    AggregationPlan,
    RoundsPlan,
    ServerPlan,
    TrainingPlan,
    WirePlan,
)
from lorica.common.plan.lora import telling
from lorica.common.plan.methods import METHODS
from lorica.common.plan.subject import (
    DESCRIBED,
    DESCRIBES,
    AdapterPlan,
    BackbonePlan,
    DataPlan,
    PrivacyPlan,
    TaskPlan,
)
from lorica.common.plan.table import TablePlan
from lorica.common.plan.traits import TRAITS

_COUNTS = {1: "one", 2: "two"}


def robust_minimum(rule: AggregationPlan) -> int:
    """Fewest updates that the robust rule can do its work on."""
    if rule.robust == "krum":
        return 2 * rule.faulty_sites + 3
    if rule.robust == "trimmed-mean":
        return next(n for n in range(3, 1002) if int(rule.trim_share * n) >= 1)
    if rule.robust == "median" or (rule.robust == "norm-bound" and not rule.norm_bound):
        return 3
    return 1


def check_task(
    task: TaskPlan, adapter: AdapterPlan, privacy: PrivacyPlan, *, evaluated: bool, views: int = 1
) -> None:
    """Return if the task can be what the plan asks for; raise ValueError otherwise.

    Args:
        task: the task and its labels.
        adapter: what is trained.
        privacy: the metrics that sites are asked for.
        evaluated: whether sites evaluate at all.
        views: of every record in a step.
    """
    traits = TRAITS[task.kind]
    if task.labels and not traits.fewest_labels:
        raise ValueError(f'the task "{task.kind}" has no labels: task.labels must be empty')
    if task.labels and len(task.labels) < traits.fewest_labels:
        fewest = _COUNTS[traits.fewest_labels]
        raise ValueError(f"task.labels must name at least {fewest} labels, or be empty")
    if task.descriptions:
        check_descriptions(task)
    if task.minimum >= task.maximum:
        raise ValueError("task.minimum must be below task.maximum")
    if adapter.kind == "head" and not traits.head:
        raise ValueError(f'the task "{task.kind}" has no head: adapter.kind must be "lora"')
    if views > 1 and not traits.images:
        raise ValueError(
            f'training.augmentations: only images have augmented views, not the task "{task.kind}"'
        )
    lacks = [name for name in privacy.evaluation_metrics if name not in traits.site_metrics]
    if evaluated and lacks:
        raise ValueError(
            f'privacy.evaluation_metrics: sites cannot count "{lacks[0]}" for the task '
            f'"{task.kind}", only {", ".join(traits.site_metrics)}'
        )


def check_descriptions(task: TaskPlan) -> None:
    """``task.descriptions`` say something of labels of a task that begins with their meaning.

    Raises:
        ValueError: otherwise.
    """
    if task.kind not in DESCRIBED:
        kinds = " or ".join(f'"{kind}"' for kind in DESCRIBED)
        raise ValueError(f"task.descriptions are for task.kind {kinds}")
    for text in task.descriptions:
        label, between, meaning = text.partition(DESCRIBES)
        if not (between and label.strip() and meaning.strip()):
            raise ValueError(f'task.descriptions are of the form "label = text", got {text!r}')
    known = set(task.labels)
    for label in task.meanings if known else ():
        if label not in known:
            raise ValueError(f"task.descriptions: {label!r} is none of task.labels")


def check_lora_trial(task: TaskPlan, privacy: PrivacyPlan) -> None:
    """Return if sites send what LoRA on trial is judged by; raise ValueError otherwise."""
    enough = telling(task.kind)
    if not set(enough) & set(privacy.evaluation_metrics):
        named = " or ".join(f'"{name}"' for name in enough)
        raise ValueError(
            'training.lora "auto" keeps what LoRA rounds came to only if the sites\' noised '
            f"counts do not speak against it: add {named} to "
            'privacy.evaluation_metrics, or set training.lora to "always" or "never"'
        )


def check_quantised(backbone: BackbonePlan, adapter: AdapterPlan, rule: AggregationPlan) -> None:
    """Return if nothing asks to write into weights that are kept as codes; ValueError otherwise."""
    if backbone.quantize == "none":
        return
    if adapter.kind == "bitfit":
        raise ValueError(
            f'backbone.quantize "{backbone.quantize}" freezes linear layers whole, and '
            'adapter.kind "bitfit" trains their biases: set backbone.quantize to "none" or '
            'adapter.kind to "lora"'
        )
    if adapter.kind == "lora" and METHODS[rule.method].residual:
        raise ValueError(
            f'aggregation.method "{rule.method}" adds residuals to the backbone\'s weights, '
            f'which backbone.quantize "{backbone.quantize}" keeps in fewer bits: set '
            'backbone.quantize to "none" or use another method, such as "flexlora"'
        )


def check_trust(
    privacy: PrivacyPlan, training: TrainingPlan, rounds: RoundsPlan, wire: WirePlan
) -> None:
    """Return if sites can be seen as their sum alone; raise ValueError with what is against it."""
    if privacy.trust != "sum":
        if privacy.honest_sites:
            raise ValueError('privacy.honest_sites is for privacy.trust "sum"')
        return
    if privacy.benefit_epsilon:
        raise ValueError(
            "privacy.benefit_epsilon asks single sites for a bit, and with privacy.trust "
            '"sum" the coordinator sees nothing of a single site'
        )
    if training.mode != "gradient":
        raise ValueError('privacy.trust "sum" needs training.mode "gradient": sums of releases')
    if (privacy.honest_sites or rounds.minimum_sites) < 2:
        raise ValueError(
            'privacy.trust "sum" hides a site among others: set privacy.honest_sites, or '
            "rounds.minimum_sites, to at least 2"
        )
    for key, asked in (
        ("fraction", rounds.fraction < 1),
        ("over_provision", rounds.over_provision),
    ):
        if asked:
            raise ValueError(
                f'privacy.trust "sum" asks all sites in every round: leave rounds.{key} at its '
                "default"
            )
    if wire.update != "float32":
        raise ValueError(
            'privacy.trust "sum" sends integers of its own length: leave wire.update at "float32"'
        )


def check_table(table: TablePlan, task: TaskPlan, data: DataPlan, unit: str) -> None:
    """Return if task and table go together; raise ValueError otherwise.

    Args:
        table: the columns.
        task: reads a table, or does not.
        data: what other columns are called.
        unit: name of the column that says whose record it is; may be empty.
    """
    reads = TRAITS[task.kind].table
    if reads and not table.names:
        raise ValueError(
            f'the task "{task.kind}" needs table.columns or table.categories, which name what '
            "stands beside the " + ("image" if TRAITS[task.kind].images else "text")
        )
    if table.names and not reads:
        kinds = ", ".join(f'"{kind}"' for kind, traits in TRAITS.items() if traits.table)
        raise ValueError(
            f'the task "{task.kind}" reads no table: table.columns and table.categories must be '
            f"empty, or task.kind one of {kinds}"
        )
    others = {"label": data.label, "text": data.text, "unit": unit, "image": data.image}
    for key, column in others.items():
        if column and column in table.names:
            raise ValueError(f"the table names '{column}', which is the column data.{key}")


def check_aggregation(
    rule: AggregationPlan, server: ServerPlan, training: TrainingPlan, rounds: RoundsPlan
) -> None:
    """Return if these sections go together; raise ValueError with the first that does not."""
    method, robust = rule.method, rule.robust
    optimizer = server.local_optimizer
    for needs_local, key in (
        (METHODS[method].local_only, f'aggregation.method "{method}"'),
        (robust != "none", f'aggregation.robust "{robust}"'),
        (optimizer != "none", f'server.local_optimizer "{optimizer}"'),
    ):
        if needs_local and training.mode != "local":
            raise ValueError(f'{key} needs training.mode "local"')
    if METHODS[method].averages_products:
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
    if robust != "none" and rounds.warm_start:
        raise ValueError(
            f'aggregation.robust "{robust}" does not protect the sums of the warm start: set '
            "rounds.warm_start to 0"
        )
    fewest = robust_minimum(rule)
    if rounds.minimum_sites < fewest:
        raise ValueError(
            f'aggregation.robust "{robust}" needs at least {fewest} sites with these '
            f"settings: raise rounds.minimum_sites from {rounds.minimum_sites}"
        )
