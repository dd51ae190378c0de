"""What a site tells of its budget: nothing, or what its policy declares."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorica.client.config.site import load_site
from lorica.client.training.opening import open_trainer
from lorica.common.version import __version__
from lorica.common.wire.messages import (
    CAPABILITIES,
    TRAIN,
    pack_reply,
    reply_from_bytes,
    reply_to_bytes,
)
from tests.client.service.helpers import make_site, request_for, small_plan


def test_a_budget_is_told_only_where_the_policy_declares_it(
    tmp_path: Path, small_backbone: Path
) -> None:
    site = make_site(tmp_path / "site", small_backbone)
    trainer, ledger = open_trainer(load_site(site), site.parent)
    reply = trainer.capabilities(request_for(small_plan(small_backbone), CAPABILITIES, 0))
    assert (reply.budget, reply.version) == (None, __version__)
    assert "budget" not in pack_reply(reply)["lorica"]
    ledger.close()


def test_a_declared_budget_is_the_ledgers_and_falls_as_it_is_spent(
    tmp_path: Path, small_backbone: Path
) -> None:
    site = make_site(tmp_path / "site", small_backbone, budget="declared")
    config, plan = load_site(site), small_plan(small_backbone)
    trainer, ledger = open_trainer(config, site.parent)
    before = trainer.capabilities(request_for(plan, CAPABILITIES, 0)).budget
    assert before == (config.ledger.lifetime_epsilon, config.ledger.lifetime_epsilon)
    trained = trainer.train(request_for(plan, TRAIN, 1))
    assert trained.status == "ok" and trained.budget is None, "only capabilities tell it"
    reply = trainer.capabilities(request_for(plan, CAPABILITIES, 0))
    assert reply.budget is not None
    spent = ledger.spending().lifetime
    assert reply.budget[1] == pytest.approx(config.ledger.lifetime_epsilon - spent)
    assert reply_from_bytes(reply_to_bytes(reply)) == reply
    ledger.close()
