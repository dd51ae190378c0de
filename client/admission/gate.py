"""Which requests a site takes at all: whose they are, what its policy and its people allow, and
whether its records fit.

Formal statement:
    Before a charge nothing is decided by the records but in :meth:`Admission.compare`, and its
    answer is one bit: the plan fits, or one code (LOR-335) whatever is wrong. How many different
    plans may ask for such a bit is bounded (:mod:`lorica.client.admission.questions`). Policy,
    consent, noise and budget are decided by the plan, the site's settings and the ledger, which
    hold no figure that was counted from the records.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lorica.client.admission.adapter_bounds import check_adapter
from lorica.client.admission.answered import Answered
from lorica.client.admission.backbones import site_backbone
from lorica.client.admission.consent import Consent
from lorica.client.admission.figures import SiteFigures
from lorica.client.admission.policy import check_noise, check_plan, check_records, require_labels
from lorica.client.admission.questions import Questions, question
from lorica.client.config.site import SiteConfig
from lorica.common.backbone.loading import Backbone, backbone_of
from lorica.common.errors import Code, LoricaError, is_failure
from lorica.common.plan import RunPlan
from lorica.common.privacy.of_plan import RunPrivacy
from lorica.common.wire.messages import Kind, Request
from lorica.common.wire.signing import verify

if TYPE_CHECKING:  # the ClientApp imports this room's neighbours, and no records
    from lorica.common.data.records import Records


class Admission:
    """The site's policy and people; without a configuration everything is admitted."""

    def __init__(
        self,
        config: SiteConfig | None = None,
        root: Path = Path(),
        *,
        figures: SiteFigures | None = None,
        consent: Consent | None = None,
        questions: Questions | None = None,
        answered: Answered | None = None,
    ) -> None:
        """
        Args:
            config: site.toml; None in simulations.
            figures: what the site says of itself; with a config, what that fixes.
            root: the folder that paths in ``config`` start from.
            consent: where people's decisions about runs are; None needs none.
            questions: bounds what plans may ask of the records; None has no bound.
            answered: what was answered already; None keeps it for this process's lifetime.

        Raises:
            LoricaError: LOR-409 the config has no figure for the number of units.
        """
        self._config, self._root = config, root
        self.figures = SiteFigures.of(config) if config is not None else figures or SiteFigures()
        self._consent, self._questions = consent, questions
        hours = config.policy.request_hours if config is not None else math.inf
        self._answered = answered or Answered(None, hours)
        self._fits = ""  # the question that the records were last found to fit
        self._fits_plan = ""  # the plan, by its fingerprint, that last asked it

    @property
    def open(self) -> bool:
        """Whether there is neither a policy nor a person to ask (simulations)."""
        return self._config is None and self._consent is None and self._questions is None

    @contextlib.contextmanager
    def answering(self, request: Request, kind: Kind) -> Iterator[None]:
        """Before anything else is looked at: is this a coordinator that the site answers, and was
        the request not answered before? When the block ends, by a reply or by a refusal, it was.

        The kind is that of the method that was called, so a request that was signed for one kind
        is no request of another.

        Raises:
            LoricaError: LOR-507 to LOR-509, LOR-512, LOR-513, LOR-710, LOR-60x.
        """
        if self._config is None or not self._config.policy.coordinators:
            yield
            return
        policy, site = self._config.policy, self._config.site.name
        verify(request, kind, policy.coordinators, site=site, hours=policy.request_hours)
        self._answered.check(request)
        try:
            yield
        except BaseException as error:  # a refusal leaves, too
            if is_failure(error):  # else it was interrupted and may come again
                self._answered.note(request)
            raise
        self._answered.note(request)

    def admit(self, request: Request, units: int) -> None:
        """Return if policy and people allow the request's plan; ``units``: the site's figure.

        Raises:
            LoricaError: LOR-408 the policy does not, LOR-717 or LOR-718 its people do not.
        """
        plan = request.plan
        if self._config is not None:
            _, sha256 = site_backbone(plan.backbone, self._config.policy, self._root)
            check_plan(plan, self._config, backbone_sha256=sha256, units=units)
        if self._consent is not None:
            self._consent.check(request)

    def require_noise(self, privacy: RunPrivacy) -> None:
        """Return if a run's noise and sample rates are above the policy's floors.

        Raises:
            LoricaError: LOR-408.
        """
        if self._config is not None:
            check_noise(privacy, self._config.policy)

    def require_adapter(self, state: Mapping[str, torch.Tensor]) -> None:
        """Return if a state that a coordinator sent is within the policy's bounds.

        Raises:
            LoricaError: LOR-412.
        """
        if self._config is not None:
            check_adapter(state, self._config.policy)

    def compare(self, plan: RunPlan, records: Records, *, where: str) -> None:
        """Return if the plan fits the records: the one place where that is decided.

        Raises:
            LoricaError: LOR-307 the plan names too few labels, LOR-408 plans have asked enough,
                LOR-335 the plan does not fit, whatever
                the reason; it is in the detail, for the site alone. LOR-60x.
        """
        if plan.fingerprint == self._fits_plan:
            return
        asked = question(plan)
        if asked == self._fits:
            self._fits_plan = plan.fingerprint
            return
        require_labels(plan)
        if self._questions is not None:
            self._questions.ask(plan, records)
        try:
            check_records(plan, records, where=where)
        except BaseException as error:
            if not is_failure(error):
                raise
            known = error if isinstance(error, LoricaError) else None
            raise LoricaError(
                Code.DATA_UNFIT,
                f"The records do not fit the plan: {known or repr(error)}",
                mend=known.mend if known else None,
            ) from error
        self._fits, self._fits_plan = asked, plan.fingerprint

    def backbone(self, plan: RunPlan) -> Backbone:
        """The plan's backbone: where the site has a policy, from its own folders alone."""
        if self._config is None:
            return backbone_of(plan)
        where, _ = site_backbone(plan.backbone, self._config.policy, self._root)
        return backbone_of(plan, where)
