"""Whom a site hides among: confirmed by people, and never a coordinator's word."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorica.client.secure_sum.peers import Peers
from lorica.client.training.sealing import Sealing
from lorica.common.errors import Code, LoricaError
from lorica.common.plan import RunPlan
from lorica.common.secure_sum.identity import Identity, fingerprint_of
from lorica.common.secure_sum.keys import RunKeys
from lorica.common.secure_sum.messages import SumRequest
from lorica.common.secure_sum.roster import Roster
from lorica.common.wire.messages import Request

PLAN = RunPlan().replace(privacy={"trust": "sum", "honest_sites": 3}, task={"labels": ["a", "b"]})


def _request(roster: Roster) -> Request:
    return Request(PLAN, "run", 1, sealed=SumRequest(roster.as_bytes()).to_bytes())


def _roster(own: Identity, others: dict[str, Identity]) -> Roster:
    names = {"me": own, **others}
    cards = [RunKeys(key, "run", PLAN.fingerprint, name).card for name, key in names.items()]
    return Roster.of(cards)


def _sealing(folder: Path, fewest: int = 2, listed: dict[str, str] | None = None) -> Sealing:
    return Sealing("me", peers=Peers(folder, listed), fewest_peers=fewest)


def test_a_coordinator_that_invents_sites_gets_nothing(tmp_path: Path) -> None:
    sealing = _sealing(tmp_path)
    own = Peers(tmp_path).identity()
    invented = {f"site {n}": Identity.generate() for n in range(20)}
    with pytest.raises(LoricaError, match="0 of the 20") as caught:
        sealing.training(_request(_roster(own, invented)))
    assert caught.value.code is Code.PEERS_UNCONFIRMED


def test_confirmed_and_listed_peers_count_and_others_keys_do_not(tmp_path: Path) -> None:
    real = {name: Identity.generate() for name in ("a", "b", "c")}
    peers = Peers(tmp_path)
    roster = _roster(peers.identity(), real)
    listed = {"b": fingerprint_of(real["b"].public).upper().replace(" ", ":")}
    sealing = _sealing(tmp_path, listed=listed)
    with pytest.raises(LoricaError, match="1 of the 3"):
        sealing.training(_request(roster))
    assert [peer.confirmed for peer in peers.all()] == [False, False, False, False]
    Peers(tmp_path).confirm("a")
    sealing.training(_request(roster))  # a and b: two, as h - 1 and fewest_peers ask
    swapped = _roster(peers.identity(), real | {"a": Identity.generate()})
    with pytest.raises(LoricaError) as caught:
        sealing.training(_request(swapped))
    assert caught.value.code is Code.PEERS_UNCONFIRMED


def test_a_site_that_was_never_met_cannot_be_confirmed(tmp_path: Path) -> None:
    with pytest.raises(LoricaError) as caught:
        Peers(tmp_path).confirm("nobody")
    assert caught.value.code is Code.SITE_UNKNOWN


def test_the_sites_key_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    first, again = Peers(tmp_path / "peers").identity(), Peers(tmp_path / "peers").identity()
    assert first.public == again.public
    path = tmp_path / "peers" / "identity.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(LoricaError, match="owner alone"):
        Peers(tmp_path / "peers").identity()
    path.write_text("no key")
    with pytest.raises(LoricaError, match="no readable key"):
        Peers(tmp_path / "peers").identity()


def test_a_site_without_a_key_is_in_no_sealed_sum() -> None:
    roster = _roster(Identity.generate(), {"a": Identity.generate(), "b": Identity.generate()})
    with pytest.raises(LoricaError) as caught:
        Sealing("me").training(_request(roster))
    assert caught.value.code is Code.PEERS_UNCONFIRMED


def test_a_damaged_list_is_named(tmp_path: Path) -> None:
    (tmp_path / "confirmed.json").write_text("[")
    with pytest.raises(LoricaError, match=r"confirmed\.json is damaged"):
        Peers(tmp_path).all()
