"""Which requests a site takes at all: whose they are, what its policy and its people allow."""

from __future__ import annotations

from pathlib import Path

from lorica.client.admission.backbones import site_backbone
from lorica.client.admission.consent import Consent
from lorica.client.admission.policy import check_plan
from lorica.client.admission.questions import Questions
from lorica.client.config.site import SiteConfig
from lorica.common.backbone.loading import Backbone, backbone_of
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import Kind, Request
from lorica.common.wire.signing import verify


class Admission:
    """The site's policy and people; without a configuration everything is admitted."""

    def __init__(
        self,
        config: SiteConfig | None,
        root: Path,
        consent: Consent | None,
        questions: Questions | None = None,
    ) -> None:
        """
        Args:
            config: site.toml; None in simulations.
            root: the folder that paths in ``config`` start from.
            consent: where people's decisions about runs are; None needs none.
            questions: bounds what plans may ask of the records; None has no bound.
        """
        self._config, self._root = config, root
        self._consent, self._questions = consent, questions

    def authenticate(self, request: Request, kind: Kind) -> None:
        """Before anything else is looked at: is this a coordinator that the site answers?

        The kind is that of the method that was called, so a request that was signed for one kind
        is no request of another.

        Raises:
            LoricaError: LOR-507 to LOR-509, LOR-710.
        """
        if self._config is not None and self._config.policy.coordinators:
            policy = self._config.policy
            verify(request, kind, policy.coordinators, hours=policy.request_hours)

    def admit(self, request: Request, units: int) -> None:
        """Return if policy and people allow the request's plan; ``units``: in the site's data.

        Raises:
            LoricaError: LOR-408 the policy does not, LOR-717 or LOR-718 its people do not.
        """
        plan = request.plan
        if self._config is not None:
            _, sha256 = site_backbone(plan.backbone, self._config.policy, self._root)
            check_plan(plan, self._config, backbone_sha256=sha256, units=units)
        if self._consent is not None:
            self._consent.check(request)

    def compare(self, plan: RunPlan) -> None:
        """Return if the records may be looked at to see whether the plan fits them.

        Raises:
            LoricaError: LOR-408 plans have asked enough, LOR-60x.
        """
        if self._questions is not None:
            self._questions.ask(plan)

    def backbone(self, plan: RunPlan) -> Backbone:
        """The plan's backbone: where the site has a policy, from its own folders alone."""
        if self._config is None:
            return backbone_of(plan)
        where, _ = site_backbone(plan.backbone, self._config.policy, self._root)
        return backbone_of(plan, where)
