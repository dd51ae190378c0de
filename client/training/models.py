"""The model that a plan's sessions compute with; virtual sites of one process have it in common.

A session alone has a model of its own. Where a process answers for many sites, one after another,
they share one: its adapter is loaded anew for each answer, so nothing of a site is in what the next
one computes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from lorica.client.ledger.in_memory import Replies
from lorica.client.mechanism.exactness import require_exact
from lorica.client.mechanism.gradient_trial import require_right_gradients
from lorica.client.mechanism.independence import require_independence
from lorica.client.mechanism.per_sample import enable_per_sample_gradients
from lorica.common.adapter.state import State, unpack_state
from lorica.common.backbone.loading import Backbone
from lorica.common.data.records import Records
from lorica.common.plan import RunPlan
from lorica.common.plan.stages import Stage, ever_trained
from lorica.common.tasks import task_of
from lorica.common.tasks.model import AdaptedModel

MOST_OPEN = 8192
"""Sessions of a process that are open at a time: their records are encoded."""

_MOST = 2  # models kept at a time
_REPLY_BYTES = 2**27  # of the newest replies of all sites


@dataclass(eq=False)
class Model:
    """A model that was tried out, and what has been loaded into it."""

    classifier: AdaptedModel
    """With gradients per record of what is trained."""
    trainable: dict[str, nn.Parameter]
    """What the plan ever trains, by name."""
    held: tuple[bytes, Stage] | None = field(default=None, repr=False)
    """The state that is loaded as a stage on frozen features asks, and nothing else with it; None:
    something else, or nobody knows."""


def build(plan: RunPlan, backbone: Backbone, records: Records) -> Model:
    """The plan's model on a backbone, tried out; of the records nothing is looked at.

    Args:
        plan: the run, at the site's own rank.
        backbone: loaded, shared.
        records: of the kind that the model reads.

    Raises:
        LoricaError: LOR-2xx the backbone does not give what the plan needs, LOR-404 the model joins
            records or gives wrong gradients, LOR-411 not the same numbers every time.
    """
    task = task_of(plan)
    classifier = task.model(backbone).eval()
    adapter = classifier.adapter_parameters
    trainable = {name: adapter[name] for name in ever_trained(plan, adapter)}
    if any(not name.startswith("head.") for name in trainable):
        # Once, before a simulation's process is split into workers; head rounds do without.
        import lorica.client.mechanism.dp_sgd  # noqa: F401
    enable_per_sample_gradients(classifier, trainable.values())
    require_independence(classifier.pooled_of_ids, backbone)
    require_right_gradients(plan, backbone)
    require_exact(classifier, backbone, task.encode(backbone, records.take([])))
    return Model(classifier, trainable)


class Models:
    """The models of a process that answers for many sites, one at a time; not for threads."""

    def __init__(self) -> None:
        self._made: OrderedDict[tuple[str, int, str, int], Model] = OrderedDict()
        self._sent: tuple[bytes, State] | None = None
        self._open: OrderedDict[int, Callable[[], None]] = OrderedDict()
        self._begun: list[object] = []
        self.replies = Replies(_REPLY_BYTES)
        """Where the sites' ledgers keep replies."""

    def get(self, plan: RunPlan, backbone: Backbone, records: Records) -> Model:
        """As :func:`build`, once for a plan and a number of threads."""
        key = plan.fingerprint, plan.adapter.rank, backbone.identity, torch.get_num_threads()
        model = self._made.pop(key, None) or build(plan, backbone, records)
        self._made[key] = model
        while len(self._made) > _MOST:
            self._made.popitem(last=False)
        return model

    def unpacked(self, blob: bytes) -> State:
        """As of :func:`~lorica.common.adapter.state.unpack_state`, once for a blob; to read."""
        if self._sent is None or self._sent[0] is not blob:
            self._sent = blob, unpack_state(blob)
        return self._sent[1]

    def opened(self, site: int, close: Callable[[], None]) -> None:
        """Note that a site uses its session; of very many those not used for longest are closed.

        Args:
            site: tells the process's sites apart.
            close: closes its session, which is opened anew when it is needed.
        """
        self._open.pop(site, None)
        self._open[site] = close
        while len(self._open) > MOST_OPEN:
            self._open.popitem(last=False)[1]()

    def began(self, site: object) -> None:
        """Keep a site that has begun a ledger in memory for as long as the models are: what it has
        spent is not forgotten, whoever else lets go of it."""
        self._begun.append(site)

    def clean(self) -> None:
        """Forget what an answer that failed may have left in the models: gradients, and what is
        loaded."""
        for model in self._made.values():
            model.held = None
            for parameter in model.trainable.values():
                parameter.grad = None
                if hasattr(parameter, "grad_sample"):
                    parameter.grad_sample = None
