"""A row's outputs are the same to the bit in every place, and those of a plain product."""

from __future__ import annotations

import pytest
import torch

from lorica.client.mechanism import row_products as module
from lorica.client.mechanism.clipping import BLOCK
from lorica.client.mechanism.row_products import RowProducts


def drawn(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.fixture(params=["together", "row by row"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As this machine computes them, and as one that rounds by place does."""
    if request.param == "row by row":
        monkeypatch.setattr(module, "_is_exact", lambda *_: False)


@pytest.mark.parametrize("outputs", [1, 2, 5, 77])
@pytest.mark.parametrize("columns", [1, 7, 129, 384, 385, 769])
def test_a_row_has_the_same_bits_in_every_place_among_any_others(
    way: None, columns: int, outputs: int
) -> None:
    probe, weights = drawn(0, columns), drawn(1, outputs, columns)
    wanted = RowProducts(weights)(probe.repeat(BLOCK, 1))[0]
    for place in range(BLOCK):
        rows = drawn(2 + place, BLOCK, columns) * 10.0 ** (place % 7)
        rows[place] = probe
        assert torch.equal(RowProducts(weights)(rows)[place], wanted)


@pytest.mark.parametrize(("columns", "outputs"), [(1, 1), (385, 77), (769, 3)])
def test_they_are_those_of_a_plain_product(way: None, columns: int, outputs: int) -> None:
    rows, weights = drawn(0, BLOCK, columns), drawn(1, outputs, columns)
    found = RowProducts(weights)(rows)
    assert found.shape == (BLOCK, outputs) and found.is_contiguous()
    torch.testing.assert_close(found, rows @ weights.T, rtol=1e-12, atol=1e-12)


def test_what_is_not_finite_stays_in_its_row(way: None) -> None:
    rows, weights = drawn(0, BLOCK, 9), drawn(1, 2, 9)
    wanted = RowProducts(weights)(rows)
    rows[5, 3], rows[6, 0] = torch.nan, torch.inf
    found = RowProducts(weights)(rows)
    others = [place for place in range(BLOCK) if place not in (5, 6)]
    assert torch.equal(found[others], wanted[others])
    assert not found[[5, 6]].isfinite().any()


def test_a_machine_that_rounds_by_place_is_found_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd(torch.Tensor):
        """A product whose odd rows are off by a last bit."""

        def __matmul__(self, other: torch.Tensor) -> torch.Tensor:
            found = torch.Tensor(self) @ other
            found[1::2] = torch.nextafter(found[1::2], torch.tensor(torch.inf).double())
            return found

    def randn(*shape: int, **settings: object) -> torch.Tensor:
        return torch.ones(*shape, dtype=torch.float64).as_subclass(Odd)

    module._is_exact.cache_clear()
    monkeypatch.setattr(torch, "randn", randn)
    try:
        assert not module._is_exact(8, 8, 1)
    finally:
        module._is_exact.cache_clear()
    assert "row by row" in caplog.text


def test_another_number_of_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="64 rows"):
        RowProducts(drawn(1, 2, 4))(drawn(0, 3, 4))
