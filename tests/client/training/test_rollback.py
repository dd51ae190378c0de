"""A ledger that is put back from a copy: nothing leaves, and what is asked again is the same."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from lorica.client.config.site import load_site
from lorica.client.ledger.head import Head
from lorica.client.training.opening import kept_secret, open_trainer, site_secret
from lorica.client.training.trainer import LocalTrainer
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.wire.messages import TRAIN, Request, pack_request, unpack_request, with_head
from tests.client.service.helpers import KEY, make_site, request_for, small_plan


@pytest.fixture
def plan(small_backbone: Path) -> RunPlan:
    return small_plan(small_backbone, rounds={"count": 3, "evaluate_every": 0})


@pytest.fixture
def site(tmp_path: Path, small_backbone: Path) -> Path:
    return make_site(tmp_path / "north", small_backbone, noise="secure")


@contextmanager
def opened(site: Path) -> Iterator[LocalTrainer]:
    trainer, ledger = open_trainer(load_site(site), site.parent)
    try:
        yield trainer
    finally:
        trainer.close()
        ledger.close()


def anew(request: Request, **changes: str) -> Request:
    """The request as the coordinator sends it again: signed anew, with the head that it holds."""
    return KEY.sign(replace(request, **changes), TRAIN)  # type: ignore[arg-type]


def copied(site: Path) -> Path:
    copy = site.parent.with_name("copy")
    shutil.copytree(site.parent, copy)
    return copy


def put_back(copy: Path, site: Path) -> None:
    shutil.rmtree(site.parent)
    shutil.copytree(copy, site.parent)


def test_the_coordinator_s_head_stops_an_older_ledger_and_the_sentence_says_what_to_do(
    site: Path, plan: RunPlan
) -> None:
    second = request_for(plan, TRAIN, 2)
    with opened(site) as trainer:
        first = trainer.train(request_for(plan, TRAIN, 1))
        copy = copied(site)
        newest = trainer.train(anew(second, head=first.head))
        assert trainer.train(anew(second, head=newest.head)).blob == newest.blob
    put_back(copy, site)
    with opened(site) as trainer:
        for request in (second, request_for(plan, TRAIN, 1), request_for(plan, TRAIN, 3)):
            with pytest.raises(LoricaError, match="older copy") as caught:
                trainer.train(anew(request, head=newest.head))
            assert caught.value.code is Code.LEDGER_ROLLED_BACK
            assert "newest copy" in caught.value.mend
            assert newest.head.split(":")[1] in caught.value.detail
        assert len(trainer._ledger.history().charges) == 1  # type: ignore[union-attr]


def test_what_is_asked_again_of_an_older_ledger_gets_the_same_noise(
    site: Path, plan: RunPlan
) -> None:
    """The attack of before: four different replies to one request, whose mean has half the noise,
    and a ledger that says nothing was spent."""
    request = request_for(plan, TRAIN, 1)
    copy = copied(site)
    with opened(site) as trainer:  # the secret is made by the first start
        before = trainer.train(anew(request)).blob
    secret = (site.parent / "noise.key").read_bytes()
    for _ in range(2):
        put_back(copy, site)
        (site.parent / "noise.key").write_bytes(secret)
        (site.parent / "noise.key").chmod(0o600)
        with opened(site) as trainer:
            assert trainer.train(anew(request)).blob == before
            assert trainer.train(anew(request, run="another")).blob != before


def test_a_witness_stops_an_older_ledger_before_anything_is_asked(
    site: Path, plan: RunPlan, tmp_path: Path
) -> None:
    witness = tmp_path / "elsewhere" / "head"
    witness.parent.mkdir()
    site.write_text(site.read_text() + f'\n[ledger]\nwitness = "{witness}"\n')
    with opened(site) as trainer:
        copy = copied(site)
        trainer.train(request_for(plan, TRAIN, 1))
    with opened(site):
        pass
    put_back(copy, site)
    with pytest.raises(LoricaError, match="The witness") as caught, opened(site):
        pass
    assert caught.value.code is Code.LEDGER_ROLLED_BACK


def test_a_head_that_the_site_did_not_seal_stops_nobody(site: Path, plan: RunPlan) -> None:
    forged = Head("0" * 32, 10_000, "f" * 64).sealed(b"another secret")
    with opened(site) as trainer:
        for head in (forged, "nonsense", "0" * 300):
            trainer.train(replace(request_for(plan, TRAIN, 1), head=head))


def test_a_secret_that_others_may_read_is_refused(site: Path) -> None:
    config = load_site(site)
    secret = site_secret(config, site.parent)
    assert secret == site_secret(config, site.parent) and len(secret) == 32
    (site.parent / "noise.key").chmod(0o640)
    with pytest.raises(LoricaError, match="take the noise off"):
        site_secret(config, site.parent)


def test_a_ledger_with_charges_and_no_secret_is_not_served(site: Path, plan: RunPlan) -> None:
    """As after a backup that leaves keys out: another secret would know none of the old heads."""
    with opened(site) as trainer:
        trainer.train(request_for(plan, TRAIN, 1))
    (site.parent / "noise.key").unlink()
    gone = pytest.raises(LoricaError, match=r"noise\.key is gone, but the ledger")
    with gone as caught, opened(site):
        pass
    assert caught.value.code is Code.SITE_CONFIG and not (site.parent / "noise.key").exists()
    with pytest.raises(LoricaError, match=r"noise\.key is gone, but the ledger"):
        kept_secret(load_site(site), site.parent)  # as other commands ask for it
    assert not (site.parent / "noise.key").exists()


def test_a_head_travels_beside_what_is_signed(plan: RunPlan) -> None:
    packed = pack_request(Request(plan, "r", 1, b"x"))
    assert unpack_request(with_head(packed, "a:1:b:c")).head == "a:1:b:c"
    assert unpack_request(packed).head == ""
