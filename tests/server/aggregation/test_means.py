"""Aggregation rules, tested on the product B·A; references are explicit loops in float64."""

from __future__ import annotations

import gc
import pickle
import weakref
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorica.common.adapter.factors import refactorise
from lorica.common.adapter.state import State
from lorica.common.errors import Code, LoricaError
from lorica.common.plan.course import AggregationPlan
from lorica.common.plan.methods import METHODS, is_returned
from lorica.common.plan.tensors import residual_name
from lorica.server.aggregation import RULES, aggregator

NAMES = sorted(METHODS)
EXACT = [
    (method, turn)
    for method in NAMES
    for turn in range(1, len(METHODS[method].turns) + 1)
    if RULES[method].exact
]
"""Exact methods with every round of their turn."""
PATH = "encoder.layer.5.attention.self.query"
A, B = f"{PATH}.lora_A.weight", f"{PATH}.lora_B.weight"
R = residual_name(PATH)


class Case:
    """A start, the updates of some sites and their weights, all drawn from one seed."""

    def __init__(
        self,
        seed: int = 0,
        *,
        rank: int = 4,
        n_in: int = 12,
        n_out: int = 10,
        weights: tuple[float, ...] = (3.0, 1.0, 0.5),
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.weights = weights
        shapes = {A: (rank, n_in), B: (n_out, rank), "head.weight": (3, 6), "head.bias": (3,)}
        self.start: State = {name: self._normal(shape) for name, shape in shapes.items()}

    def _normal(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator)

    def updates(self, method: str, turn: int = 1) -> list[State]:
        """Updates of all sites in a round of the method; gives the start its residual."""
        if METHODS[method].residual and R not in self.start:
            self.start[R] = self._normal((self.start[B].shape[0], self.start[A].shape[1]))
        trained = {n: t for n, t in self.start.items() if is_returned(method, n, turn)}
        return [{n: self._normal(tuple(t.shape)) for n, t in trained.items()} for _ in self.weights]

    @property
    def shares(self) -> list[float]:
        total = sum(self.weights)
        return [weight / total for weight in self.weights]


def aggregate(method: str, start: State, updates: list[State], weights: tuple[float, ...]) -> State:
    rule = aggregator(method, start, list(updates[0]))
    for update, weight in zip(updates, weights, strict=True):
        rule.add(update, weight)
    return rule.finish()


def at_site(start: State, update: State, name: str) -> torch.Tensor:
    """A site's own value of a tensor after local training, in float64."""
    value = start[name].double()
    return value + update[name].double() if name in update else value


def mean_of_products(case: Case, updates: list[State]) -> torch.Tensor:
    """The reference: R + Σ p_k B_k A_k, a loop over sites in float64."""
    total = torch.zeros(case.start[B].shape[0], case.start[A].shape[1], dtype=torch.float64)
    total += case.start.get(R, torch.zeros(()))
    for share, update in zip(case.shares, updates, strict=True):
        total += share * (at_site(case.start, update, B) @ at_site(case.start, update, A))
    return total


def mean_of(case: Case, updates: list[State], name: str) -> torch.Tensor:
    total = torch.zeros_like(case.start[name], dtype=torch.float64)
    for share, update in zip(case.shares, updates, strict=True):
        total += share * at_site(case.start, update, name)
    return total


def product(state: State) -> torch.Tensor:
    """What is added to the frozen weight, up to the scaling."""
    return state[B].double() @ state[A].double() + state.get(R, torch.zeros(())).double()


def expected_product(method: str, case: Case, updates: list[State]) -> torch.Tensor:
    """What the method says that its product is."""
    if method == "flexlora":
        u, s, v_t = torch.linalg.svd(mean_of_products(case, updates), full_matrices=False)
        rank = case.start[A].shape[0]
        return (u[:, :rank] * s[:rank]) @ v_t[:rank]
    if RULES[method].exact:
        return mean_of_products(case, updates)
    return mean_of(case, updates, B) @ mean_of(case, updates, A)


def distance(found: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference, relative to the reference's largest entry where that is above 1."""
    scale = max(1.0, float(reference.abs().max()))
    return float((found.double() - reference.double()).abs().max()) / scale


@st.composite
def cases(draw: st.DrawFn) -> Case:
    return Case(
        draw(st.integers(0, 2**32 - 1)),
        rank=draw(st.integers(1, 8)),
        n_in=draw(st.integers(1, 16)),
        n_out=draw(st.integers(1, 16)),
        weights=tuple(draw(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=6))),
    )


# Products


@pytest.mark.parametrize(("method", "turn"), EXACT)
@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_exact_rules_give_the_mean_of_the_products(method: str, turn: int, case: Case) -> None:
    updates = case.updates(method, turn)
    state = aggregate(method, case.start, updates, case.weights)
    assert distance(product(state), mean_of_products(case, updates)) < 1e-5


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_flexlora_gives_the_closest_product_of_its_rank(case: Case) -> None:
    """Against torch's SVD of the mean of products: the error is what that leaves out."""
    updates = case.updates("flexlora")
    state = aggregate("flexlora", case.start, updates, case.weights)
    mean = mean_of_products(case, updates)
    values = torch.linalg.svdvals(mean)[case.start[A].shape[0] :]
    error = float((product(state) - mean).norm())
    assert error == pytest.approx(float(values.norm()), abs=1e-5 * max(1.0, float(mean.norm())))
    assert distance(product(state), expected_product("flexlora", case, updates)) < 1e-4


def test_flexlora_is_exact_for_products_of_its_rank() -> None:
    """Sites of ranks 1 and 2 in a federation of rank 4, filled up with zeros."""
    case = Case(weights=(3.0, 1.0))
    updates = case.updates("flexlora")
    for update, rank in zip(updates, (1, 2), strict=True):
        update[A][rank:] = -case.start[A][rank:]
        update[B][:, rank:] = -case.start[B][:, rank:]
    state = aggregate("flexlora", case.start, updates, case.weights)
    assert distance(product(state), mean_of_products(case, updates)) < 1e-5
    values = torch.linalg.svdvals(product(state))
    assert distance(state[B].double().T @ state[B].double(), torch.diag(values[:4] ** 2)) < 1e-4


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_fedsa_averages_a_and_misses_the_covariance_of_the_factors(case: Case) -> None:
    """B and head stay the sites' own; against loops in float64 over what every site has then."""
    updates = case.updates("fedavg")  # what the sites trained; of it they send A
    shared = [{A: update[A]} for update in updates]
    state = aggregate("fedsa", case.start, shared, case.weights)
    assert all(torch.equal(state[name], case.start[name]) for name in case.start if name != A)
    mean_a, mean_b = mean_of(case, updates, A), mean_of(case, updates, B)
    assert distance(state[A], mean_a) < 1e-6
    next_products = torch.zeros(len(mean_b), mean_a.shape[1], dtype=torch.float64)
    covariance = torch.zeros_like(next_products)
    for share, update in zip(case.shares, updates, strict=True):
        own_b, own_a = at_site(case.start, update, B), at_site(case.start, update, A)
        next_products += share * own_b @ state[A].double()
        covariance += share * (own_b - mean_b) @ (own_a - mean_a)
    missed = mean_of_products(case, updates) - next_products
    assert distance(missed, covariance) < 1e-5


def test_fedex_keeps_what_fedavg_misses() -> None:
    case = Case()
    updates = case.updates("fedex")
    state = aggregate("fedex", case.start, updates, case.weights)
    plain = {name: tensor for name, tensor in case.start.items() if name != R}
    average = aggregate("fedavg", plain, updates, case.weights)
    assert torch.equal(state[A], average[A]) and torch.equal(state[B], average[B])
    missed = mean_of_products(case, updates) - case.start[R].double() - product(average)
    assert distance(state[R].double() - case.start[R].double(), missed) < 1e-5
    assert float(missed.norm()) > 1


def test_flora_starts_every_round_with_fresh_orthonormal_rows_and_no_product() -> None:
    case = Case()
    seen = [case.start[A]]
    for _ in range(3):
        updates = case.updates("flora")
        state = aggregate("flora", case.start, updates, case.weights)
        assert not state[B].any()
        assert distance(state[A].double() @ state[A].double().T, torch.eye(4)) < 1e-6
        assert distance(state[R], mean_of_products(case, updates)) < 1e-5
        assert all(float((state[A] @ other.T).abs().max()) < 0.999 for other in seen[1:])
        assert not any(torch.allclose(state[A], other) for other in seen)
        seen.append(state[A])
        case.start = state


def test_rolora_leaves_the_other_factor_as_it_was_to_the_bit() -> None:
    case = Case()
    for turn, frozen in ((1, A), (2, B)):
        updates = case.updates("rolora", turn)
        state = aggregate("rolora", case.start, updates, case.weights)
        assert torch.equal(state[frozen], case.start[frozen])


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_fedavg_errs_by_the_covariance_of_the_factors(case: Case) -> None:
    updates = case.updates("fedavg")
    state = aggregate("fedavg", case.start, updates, case.weights)
    mean_b, mean_a = mean_of(case, updates, B), mean_of(case, updates, A)
    covariance = torch.zeros_like(mean_b @ mean_a)
    bound = 0.0
    for share, update in zip(case.shares, updates, strict=True):
        off_b = at_site(case.start, update, B) - mean_b
        off_a = at_site(case.start, update, A) - mean_a
        covariance += share * (off_b @ off_a)
        bound += share * float(off_b.norm() * off_a.norm())
    error = mean_of_products(case, updates) - product(state)
    assert distance(product(state) + covariance, mean_of_products(case, updates)) < 1e-5
    assert float(error.norm()) <= bound + 1e-4 * (1 + bound)


def test_fedavg_is_not_exact_in_general() -> None:
    case = Case()
    updates = case.updates("fedavg")
    state = aggregate("fedavg", case.start, updates, case.weights)
    assert distance(product(state), mean_of_products(case, updates)) > 0.01


@pytest.mark.parametrize("common", [A, B])
def test_fedavg_is_exact_when_sites_agree_on_one_factor(common: str) -> None:
    case = Case()
    updates = case.updates("fedavg")
    for update in updates:
        update[common] = updates[0][common]
    state = aggregate("fedavg", case.start, updates, case.weights)
    assert distance(product(state), mean_of_products(case, updates)) < 1e-5


@pytest.mark.parametrize("method", NAMES)
def test_the_head_is_the_weighted_mean(method: str) -> None:
    case = Case()
    updates = case.updates(method)
    state = aggregate(method, case.start, updates, case.weights)
    for name in ("head.weight", "head.bias"):
        assert distance(state[name], mean_of(case, updates, name)) < 1e-6


def test_ffa_leaves_a_as_it_was_to_the_bit() -> None:
    case = Case()
    state = aggregate("ffa", case.start, case.updates("ffa"), case.weights)
    assert torch.equal(state[A], case.start[A])


# FedSVD's factors


@settings(max_examples=60, deadline=None)
@given(case=cases())
def test_fedsvd_gives_a_orthonormal_rows(case: Case) -> None:
    state = aggregate("fedsvd", case.start, case.updates("fedsvd"), case.weights)
    rank, n_in = case.start[A].shape
    expected = torch.diag((torch.arange(rank) < n_in).double())  # beyond `in` rows are zero
    assert distance(state[A].double() @ state[A].double().T, expected) < 1e-5


def test_fedsvd_puts_the_singular_values_into_b() -> None:
    """Against torch's SVD of the product formed in full."""
    case = Case()
    updates = case.updates("fedsvd")
    state = aggregate("fedsvd", case.start, updates, case.weights)
    values = torch.linalg.svdvals(mean_of_products(case, updates))[: state[A].shape[0]]
    assert distance(state[B].double().T @ state[B].double(), torch.diag(values**2)) < 1e-5


def test_fedsvd_keeps_the_row_space_of_a() -> None:
    case = Case()
    state = aggregate("fedsvd", case.start, case.updates("fedsvd"), case.weights)
    basis = torch.linalg.qr(case.start[A].double().T).Q
    rows = state[A].double()
    assert distance(rows @ basis @ basis.T, rows) < 1e-6


def test_fedsvd_only_rotates_a_once_its_rows_are_orthonormal() -> None:
    case = Case()
    case.start = aggregate("fedsvd", case.start, case.updates("fedsvd"), case.weights)
    again = aggregate("fedsvd", case.start, case.updates("fedsvd"), case.weights)
    turn = again[A].double() @ case.start[A].double().T
    assert distance(turn @ turn.T, torch.eye(4)) < 1e-5


@pytest.mark.parametrize(("rank", "n_in", "n_out"), [(4, 12, 10), (4, 12, 2), (6, 4, 10)])
def test_fedsvd_of_a_zero_product_keeps_the_row_space_orthonormal(
    rank: int, n_in: int, n_out: int
) -> None:
    a = Case(rank=rank, n_in=n_in).start[A].double()
    new_a, new_b = refactorise(a, torch.zeros(n_out, rank))
    rows = new_a[: min(rank, n_in)]
    assert torch.count_nonzero(new_b) == 0
    assert distance(rows @ rows.T, torch.eye(len(rows))) < 1e-12
    assert distance(a @ rows.T @ rows, a) < 1e-12


def test_fedsvd_handles_rank_deficient_factors() -> None:
    case = Case()
    a, b = case.start[A].double(), case.start[B].double()
    for broken_a, broken_b in (
        (a, b[:, :1] @ torch.ones(1, 4, dtype=torch.float64)),
        (a[:1].repeat(4, 1), b),
        (torch.zeros_like(a), b),
    ):
        new_a, new_b = refactorise(broken_a, broken_b)
        assert distance(new_b @ new_a, broken_b @ broken_a) < 1e-12
        assert distance(new_a @ new_a.T, torch.eye(4)) < 1e-12


def test_fedsvd_fixes_the_signs() -> None:
    case = Case()
    a, b = case.start[A], case.start[B]
    new_a, new_b = refactorise(a, b)
    assert (new_a.gather(1, new_a.abs().argmax(dim=1, keepdim=True)) > 0).all()
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    other_a, other_b = refactorise(flip @ a, b @ flip)
    assert distance(other_a, new_a) < 1e-12
    assert distance(other_b, new_b) < 1e-12


# Every rule


@pytest.mark.parametrize("method", NAMES)
def test_the_same_updates_give_the_same_bits(method: str) -> None:
    case = Case()
    updates = case.updates(method)
    one, two = (aggregate(method, case.start, updates, case.weights) for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in case.start)


@pytest.mark.parametrize("method", NAMES)
def test_the_order_of_sites_does_not_matter(method: str) -> None:
    case = Case(weights=(5.0, 0.1, 2.0, 100.0))
    updates = case.updates(method)
    one = aggregate(method, case.start, updates, case.weights)
    two = aggregate(method, case.start, updates[::-1], case.weights[::-1])
    assert all(distance(one[name], two[name]) < 1e-6 for name in case.start)


@pytest.mark.parametrize("method", NAMES)
@settings(max_examples=30, deadline=None)
@given(case=cases(), data=st.data())
def test_the_order_of_sites_does_not_matter_for_the_product(
    method: str, case: Case, data: st.DataObject
) -> None:
    updates = case.updates(method)
    order = data.draw(st.permutations(range(len(updates))))
    one = aggregate(method, case.start, updates, case.weights)
    two = aggregate(
        method, case.start, [updates[k] for k in order], tuple(case.weights[k] for k in order)
    )
    assert distance(product(one), product(two)) < 1e-6


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("factor", [1e-9, 7.0, 1e300])
def test_only_the_ratios_of_weights_matter(method: str, factor: float) -> None:
    case = Case()
    updates = case.updates(method)
    one = aggregate(method, case.start, updates, case.weights)
    two = aggregate(method, case.start, updates, tuple(factor * w for w in case.weights))
    assert all(distance(one[name], two[name]) < 1e-6 for name in case.start)


@pytest.mark.parametrize("method", NAMES)
def test_a_single_site_gives_its_own_update(method: str) -> None:
    case = Case(weights=(0.3,))
    (update,) = case.updates(method)
    state = aggregate(method, case.start, [update], case.weights)
    assert distance(product(state), mean_of_products(case, [update])) < 1e-5
    for name in update:
        if name.startswith("head") or method not in ("fedsvd", "flora", "flexlora"):
            assert torch.equal(state[name], at_site(case.start, update, name).float())


@pytest.mark.parametrize("method", NAMES)
def test_a_site_of_weight_zero_changes_nothing(method: str) -> None:
    case = Case()
    updates = case.updates(method)
    one = aggregate(method, case.start, updates[1:2], (2.0,))
    two = aggregate(method, case.start, updates, (0.0, 2.0, 0.0))
    assert all(torch.equal(one[name], two[name]) for name in case.start)


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_updates_are_averaged_as_they_are(method: str, dtype: torch.dtype) -> None:
    case = Case()
    updates = [{n: t.to(dtype) for n, t in u.items()} for u in case.updates(method)]
    state = aggregate(method, case.start, updates, case.weights)
    assert all(tensor.dtype == torch.float32 for tensor in state.values())
    assert distance(product(state), expected_product(method, case, updates)) < 1e-5


@pytest.mark.parametrize("method", NAMES)
def test_the_next_state_is_whole_and_shares_no_memory(method: str) -> None:
    case = Case()
    updates = case.updates(method)
    before = {name: tensor.clone() for name, tensor in case.start.items()}
    rule = aggregator(method, case.start)
    for update in updates:
        rule.add(update, 1.0)
    state = rule.finish()
    again = rule.finish()
    assert list(state) == list(case.start)
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32 and tensor.is_contiguous()
        assert tensor.shape == case.start[name].shape
        assert torch.equal(tensor, again[name])
        tensor.fill_(7.0)
    assert all(torch.equal(case.start[name], before[name]) for name in before)
    assert all(torch.equal(rule.finish()[name], again[name]) for name in again)


@pytest.mark.parametrize("method", [method for method in NAMES if not METHODS[method].personal])
def test_an_adapter_without_lora_is_averaged_too(method: str) -> None:
    case = Case()
    start = {name: tensor for name, tensor in case.start.items() if name.startswith("head")}
    updates = [{name: u[name] for name in start} for u in case.updates(method)]
    state = aggregate(method, start, updates, case.weights)
    assert all(distance(state[name], mean_of(case, updates, name)) < 1e-6 for name in start)


# Streaming


@pytest.mark.parametrize("method", NAMES)
def test_memory_does_not_grow_over_a_thousand_sites(method: str) -> None:
    case = Case()
    update = case.updates(method)[0]
    rule = aggregator(method, case.start)
    rule.add({name: tensor.clone() for name, tensor in update.items()}, 1.0)
    size = len(pickle.dumps(rule))
    sent: list[weakref.ref[torch.Tensor]] = []
    for _ in range(1000):
        copy = {name: tensor.clone() for name, tensor in update.items()}
        sent += map(weakref.ref, copy.values())
        rule.add(copy, 1.0)
        del copy
    gc.collect()
    assert all(reference() is None for reference in sent)
    assert len(pickle.dumps(rule)) == size


@pytest.mark.parametrize("method", NAMES)
def test_updates_are_neither_changed_nor_watched(method: str) -> None:
    case = Case()
    updates = case.updates(method)
    expected = aggregate(method, case.start, updates, case.weights)
    rule = aggregator(method, case.start)
    for update, weight in zip(updates, case.weights, strict=True):
        before = {name: tensor.clone() for name, tensor in update.items()}
        rule.add(update, weight)
        for name, tensor in update.items():
            assert torch.equal(tensor, before[name])
            tensor.fill_(99.0)
    for tensor in case.start.values():
        tensor.fill_(99.0)
    state = rule.finish()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


# Refusals


def refused(rule_call: object, *args: object) -> LoricaError:
    with pytest.raises(LoricaError) as caught:
        rule_call(*args)  # type: ignore[operator]
    return caught.value


@pytest.mark.parametrize("method", NAMES)
def test_a_bad_update_leaves_the_aggregate_unchanged(method: str) -> None:
    case = Case()
    good, other, _ = case.updates(method)
    rule = aggregator(method, case.start)
    rule.add(good, 1.0)
    before = rule.finish()
    nan, inf = torch.full((3,), float("nan")), torch.tensor([1.0, float("inf"), 0.0])
    bad: list[tuple[State, float]] = [
        ({**other, "head.bias": nan}, 1.0),
        ({**other, "head.bias": inf}, 1.0),
        ({**other, "stranger": torch.zeros(1)}, 1.0),
        (dict(list(other.items())[1:]), 1.0),
        ({**other, "head.bias": torch.zeros(4)}, 1.0),
        (other, -1.0),
        (other, float("nan")),
        (other, float("inf")),
    ]
    for update, weight in bad:
        assert refused(rule.add, update, weight).code is Code.UPDATE_REFUSED
        after = rule.finish()
        assert all(torch.equal(after[name], before[name]) for name in before)


def test_weights_that_sum_beyond_the_largest_number_are_refused() -> None:
    case = Case()
    updates = case.updates("ffa")
    rule = aggregator("ffa", case.start)
    rule.add(updates[0], 1.7e308)
    assert refused(rule.add, updates[1], 1.7e308).code is Code.UPDATE_REFUSED


@pytest.mark.parametrize("method", ["ffa", "fedsvd", "rolora"])
def test_a_matrix_that_is_frozen_is_refused(method: str) -> None:
    case = Case()
    (update, *_) = case.updates("fedavg")
    error = refused(aggregator(method, case.start).add, update, 1.0)
    assert error.code is Code.UPDATE_REFUSED
    assert A in error.detail


@pytest.mark.parametrize("method", NAMES)
def test_no_update_or_no_weight_makes_no_round(method: str) -> None:
    case = Case()
    rule = aggregator(method, case.start)
    assert refused(rule.finish).code is Code.TOO_FEW_SITES
    rule.add(case.updates(method)[0], 0.0)
    assert refused(rule.finish).code is Code.TOO_FEW_SITES


# Registry


def test_rules_plan_and_sites_know_the_same_methods() -> None:
    in_plan = get_args(AggregationPlan.model_fields["method"].annotation)
    assert set(RULES) == set(NAMES) == set(in_plan)
    assert all(cls.method == method for method, cls in RULES.items())


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    error = refused(aggregator, "fedsdv", Case().start)
    assert error.code is Code.PLAN_BAD_VALUE
    assert "Did you mean 'fedsvd'?" in error.detail
    assert all(method in refused(aggregator, "zzz", {}).detail for method in NAMES)


@pytest.mark.parametrize("method", NAMES)
def test_every_rule_documents_exactness_bytes_epsilon_and_source(method: str) -> None:
    text = RULES[method].__doc__ or ""
    assert ("**Exact**" in text) == RULES[method].exact
    assert all(word in text for word in ("Bytes per site", "Epsilon:", "Source:", "arXiv"))
