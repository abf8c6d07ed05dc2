"""Products that are cut into small ones: each of them, whatever is cut, within gamma_k."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import products
from equivalence.products import columns, product, views_of_columns
from equivalence.verify.budgets import Budget, gamma, unit_roundoff
from equivalence.verify.compare import compare

Array = np.ndarray[Any, Any]


@pytest.fixture(autouse=True, scope="module")
def small_kernels() -> Any:
    """As on a processor that has them; and so small that the products here are cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "has_small_kernels", lambda: True)
        patch.setattr(products, "_SMALL", 600)
        products._rows_at_a_time.cache_clear()
        yield
    products._rows_at_a_time.cache_clear()


def laid_out(X: Array, how: str) -> Array:
    """The same numbers: by rows, by columns, or as a part of more of them."""
    if how == "columns":
        return np.swapaxes(np.swapaxes(X, -1, -2).copy(), -1, -2)
    if how == "part":
        wide = np.full((*X.shape[:-2], X.shape[-2] + 3, X.shape[-1] + 5), np.nan, X.dtype)
        wide[..., 2:-1, 4:-1] = X
        return wide[..., 2:-1, 4:-1]
    return X


LAYOUTS = st.sampled_from(["rows", "columns", "part"])


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(*[st.integers(1, 40)] * 3),
    st.sampled_from([((), ()), ((2,), (2,)), ((2, 3), (3,)), ((1, 3), (2, 1))]),
    st.tuples(LAYOUTS, LAYOUTS, st.sampled_from(["rows", "part"])),
    st.sampled_from(["float64", "float32"]),
)
def test_a_product_is_the_sum_of_products(
    seed: int,
    sizes: tuple[int, int, int],
    batches: tuple[tuple[int, ...], tuple[int, ...]],
    layouts: tuple[str, str, str],
    dtype: str,
) -> None:
    rng, (n, k, c) = np.random.default_rng(seed), sizes
    A, B = (
        rng.standard_normal((*batch, *shape)).astype(dtype)
        for batch, shape in zip(batches, ((n, k), (k, c)), strict=True)
    )
    out = np.full((*np.broadcast_shapes(*batches), n, c), np.nan, dtype)
    A, B, out = (laid_out(X, how) for X, how in zip((A, B, out), layouts, strict=True))
    assert product(A, B, out) is out
    a, b = A.astype(np.longdouble), B.astype(np.longdouble)
    want = np.einsum("...nk,...kc->...nc", a, b).astype(float)
    u = unit_roundoff(dtype)
    size = np.einsum("...nk,...kc->...nc", abs(a), abs(b)).astype(float)
    reason = "gamma_k |A||B| in any order (Higham 2002, sec. 3.1), and the oracle's rounding"
    compare("A B", out, want, Budget((gamma(k, u) + 2.0**-53) * size, reason, u)).require()


@pytest.mark.parametrize(
    ("n", "rows"), [(3, []), (40, [8]), (43, [3, 8]), (8, []), (47, [7, 8]), (64, [8])]
)
def test_rows_are_cut_in_powers_of_two_and_the_rest_by_itself(
    monkeypatch: pytest.MonkeyPatch, n: int, rows: list[int]
) -> None:
    """600 // (10 x 7) = 8 rows at a time."""
    A, B, out = np.ones((n, 10)), np.ones((10, 7)), np.empty((n, 7))
    cut: list[int] = []
    matmul = np.matmul

    def spy(A: Array, B: Array, *, out: Array) -> Array:
        cut.append(A.shape[-2])
        return matmul(A, B, out=out)

    monkeypatch.setattr(products.np, "matmul", spy)
    product(A, B, out)
    assert cut == (rows or [n])
    assert (out == 10).all()


def test_a_product_over_nothing_is_zero() -> None:
    out = np.full((130, 7), np.nan)
    assert (product(np.ones((130, 0)), np.ones((9, 8))[9:, :7], out) == 0).all()


def test_what_blas_would_copy_anyway_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    for A, B in (
        (np.ones((40, 10)), np.ones((7, 10)).T),  # no contiguous rows
        (np.ones((40, 10)), np.ones((10, 70))),  # 700 multiplications a row
    ):
        assert products._rows_at_a_time(*B.shape, B.strides[1] == 8) < 4
        assert (product(A, B, np.empty((40, B.shape[1]))) == 10).all()
    monkeypatch.setattr(products, "has_small_kernels", lambda: False)
    products._rows_at_a_time.cache_clear()
    assert products._rows_at_a_time(10, 7, True) == 0
    products._rows_at_a_time.cache_clear()


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(("n", "d", "width"), [(7, 2, 3), (6, 2, 3), (1, 1, 4), (9, 3000, 5)])
def test_columns_are_those_of_the_transpose(
    batch: tuple[int, ...], n: int, d: int, width: int
) -> None:
    X = np.random.default_rng(0).standard_normal((*batch, n, d)).astype(np.float32)
    memory = np.full((-(-n // width), *batch, d, width), np.nan)
    copies = columns(X, width, memory)
    assert all(block.strides[-1] == 8 and np.shares_memory(block, memory) for block in copies)
    views = views_of_columns(X, width)
    assert all(np.shares_memory(block, X) for block in views)
    for blocks in (copies, views):
        joined = np.concatenate(blocks, axis=-1)
        np.testing.assert_array_equal(joined, np.swapaxes(X, -1, -2))
