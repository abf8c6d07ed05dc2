"""The proof's own expressions against the code, kernels and their features, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import attention
from equivalence.kernels import (
    Kernel,
    elu_kernel,
    gaussian_kernel,
    kernel_attention,
    kernel_features,
    laplace_kernel,
    quadratic_kernel,
)
from equivalence.verify.budgets import (
    Budget,
    attention_budget,
    gamma,
    smoother_budget,
    sum_budget,
)
from equivalence.verify.cases import Case, make_case
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import scaled
from equivalence.verify.other_kernels import OTHERS, OtherKernel
from equivalence.verify.strategies import cases
from proofs import load

PROOF = load("identity_is_bilinearity")
U = 2.0**-53

each_kernel = pytest.mark.parametrize("other", OTHERS, ids=lambda other: other.name)


def evaluated(name: str, given: dict[str, Any]) -> Any:
    return PROOF.evaluate(name, {key: given[key] for key in PROOF.arguments(name)})


@each_kernel
def test_the_code_computes_the_expressions_of_the_proof(other: OtherKernel) -> None:
    case = make_case(1, n_q=1, n=5, d=2, c=1)
    Q, K = scaled(case)
    soft = np.exp(Q @ K.T)[0]
    theirs = other.kernel(Q, K)[0]
    given = {
        "kappa": soft.tolist(),
        "rho": (theirs / soft).tolist(),
        "v": case.V[:, 0].tolist(),
        "u": case.V[::-1, 0].tolist(),
    }
    error = other.relative_error(Q, K, U)
    own = smoother_budget(theirs[None], error, case.V, U)
    # The ratio of the kernels is rounded, and so is the softmax kernel that it is a ratio to.
    ratio = smoother_budget(theirs[None], np.full((1, 5), gamma(32, U)), case.V, U)
    softmax = attention_budget(case.Q, case.K, case.V, case.s, U)
    o = attention(case.Q, case.K, case.V)[0]
    smoothed = kernel_attention(Q, K, case.V, other.kernel)[0]
    moved = attention(case.Q, case.K, case.V[::-1])[0]
    for name, got, budget in (
        ("o_softmax", o, softmax.times(2)),
        ("moved", moved, softmax.times(2)),
        ("o_other", smoothed, own + ratio),
        ("difference", smoothed - o, own + ratio + softmax.times(2)),
        ("covariance", smoothed - o, own + ratio + softmax.times(2)),
    ):
        compare(name, got, [evaluated(name, given)], budget[0]).require()
    one_hot = np.eye(5)
    weights = kernel_attention(Q, K, one_hot, other.kernel) - attention(case.Q, case.K, one_hot)
    for t in range(5):
        budget = smoother_budget(theirs[None], error + gamma(32, U), one_hot, U)
        both = budget + attention_budget(case.Q, case.K, one_hot, case.s, U).times(2)
        want = evaluated("p_difference", {**given, "t": t + 1})
        compare("p_difference", weights[0, t : t + 1], [want], both[0, t : t + 1]).require()


def test_one_step_of_the_proof_is_the_smoother_of_every_kernel() -> None:
    case = make_case(2, n_q=1, n=5, d=3, c=2, N=3)
    Q, K = scaled(case)
    N = case.N
    for other in OTHERS:
        Phi, phi_q = kernel_features(K, Q, other.kernel)
        select, kappa = np.eye(5), other.kernel(K, Q)[:, 0]
        given = {
            "V_N": case.V[:N], "V_T": case.V[N:], "Phi_N": Phi[:N], "Phi_T": Phi[N:],
            "phi_q": phi_q[0], "S_N": select[:N], "S_T": select[N:], "kappa_q": kappa,
        }  # fmt: skip
        lists = {name: x.tolist() for name, x in given.items()}
        smoothed = kernel_attention(Q, K, case.V, other.kernel)[0]
        # The features reproduce the kernel up to the substitution that made them.
        terms = abs(phi_q) @ abs(Phi).T / kappa
        error = gamma(16, U) * terms + other.relative_error(Q, K, U)
        budget = smoother_budget(kappa[None], error, case.V, U)[0].times(2)
        for name in ("prediction", "o", "smoother"):
            compare(name, smoothed, evaluated(name, lists), budget).require()


def test_the_gaussian_of_the_proof_is_ours() -> None:
    k, q = np.array([[0.3, -1.2, 0.7]]), np.array([[1.1, 0.4, -0.2]])
    got = gaussian_kernel(k, q)[0]
    for name in ("gaussian", "gaussian_from_softmax"):
        want = evaluated(name, {"k": k[0].tolist(), "q": q[0].tolist()})
        compare(name, got, [want], sum_budget(got[:, None], 16, U)).require()


@each_kernel
def test_equal_keys_have_equal_kernel_values(other: OtherKernel) -> None:
    """A Gram matrix of low rank is factored all the same, and every query sees the kernel."""
    case = make_case(3, n_q=4, n=12, d=1, twins=True)
    Q, K = scaled(case)
    Phi, phi_q = kernel_features(K, Q, other.kernel)
    kappa = other.kernel(Q, K)
    bound = gamma(2 * len(K) + 8, U) * abs(phi_q) @ abs(Phi).T
    bound = bound + other.relative_error(Q, K, U) * kappa
    budget = Budget(bound, "substitution errs by gamma_m |L||y| (Higham 2002, thm 8.5)", U)
    compare("phi(k).phi(q) = kappa", phi_q @ Phi.T, kappa, budget).require()


def exponential(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    values: np.ndarray = np.exp(x @ np.swapaxes(y, -1, -2))
    return values


@given(case=cases(dtypes=("float64",)))
def test_with_the_exponential_kernel_it_is_softmax_attention(case: Case) -> None:
    Q, K = scaled(case)
    budget = attention_budget(case.Q, case.K, case.V, case.s, case.u)
    got = kernel_attention(Q, K, case.V, exponential)
    want = attention(case.Q, case.K, case.V, scale=case.scale)
    # Not shifted before exp: the exponent itself is rounded, by at most u times the score.
    compare("softmax", got, want, budget.times(4)).require()


@given(case=cases(dtypes=("float64",)), factor=st.sampled_from([2.0**-30, 0.5, 3.0, 1e6]))
def test_proportional_kernels_are_one_to_attention(case: Case, factor: float) -> None:
    """The part of the theorem that no check can see: a factor of the query."""
    Q, K = scaled(case)

    def times(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return gaussian_kernel(x, y) * factor * (1 + (x**2).sum(axis=-1, keepdims=True))

    kappa = gaussian_kernel(Q, K)
    error = OTHERS[2].relative_error(Q, K, case.u) + gamma(2 * K.shape[1] + 8, case.u)
    budget = smoother_budget(kappa, error, case.V, case.u)
    compare(
        "proportional",
        kernel_attention(Q, K, case.V, times),
        kernel_attention(Q, K, case.V, gaussian_kernel),
        budget + budget,
    ).require()


def test_keys_of_one_norm_do_not_tell_the_gaussian_from_softmax() -> None:
    """On a sphere the ratio of the two kernels is the same for every key: no value sees it."""
    angles = np.linspace(0, 6, 7)
    K = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    Q, V = np.array([[0.3, -2.0], [1.0, 1.0]]), np.eye(7)
    kappa = gaussian_kernel(Q, K)
    error = OTHERS[2].relative_error(Q, K, U) + gamma(16, U)  # the keys' norms are rounded
    budget = smoother_budget(kappa, error, V, U) + attention_budget(Q, K, V, 1.0, U)
    got = kernel_attention(Q, K, V, gaussian_kernel)
    compare("on a sphere", got, attention(Q, K, V, scale=1.0), budget).require()


@pytest.mark.parametrize(
    "kernel",
    [elu_kernel, quadratic_kernel, gaussian_kernel, laplace_kernel],
    ids=lambda k: k.__name__,
)
def test_kernels_are_symmetric_and_broadcast(kernel: Callable[..., Any]) -> None:
    rng = np.random.default_rng(4)
    X, Y = rng.standard_normal((2, 1, 3, 4)), rng.standard_normal((5, 6, 4))
    values = kernel(X, Y)
    assert values.shape == (2, 5, 3, 6)
    assert (values > 0).all()
    both = Budget(2 * gamma(32, U) * values, "two orders of the same terms", U)
    compare("symmetric", np.swapaxes(kernel(Y, X), -1, -2), values, both).require()
    compare("one of the batch", kernel(X[1, 0], Y[3]), values[1, 3], both[1, 3]).require()
    single = kernel(X.astype(np.float32), Y.astype(np.float32))
    assert single.dtype == np.float32
    assert kernel(X.astype(np.float16), Y.astype(np.float16)).dtype == np.float32
    assert kernel([[1, 2]], [[3, 4]]).dtype == np.float64
    assert np.isnan(kernel([[np.nan]], [[1.0]])).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_smoother_keeps_the_dtype(dtype: str) -> None:
    case = make_case(5)
    Q, K, V = (x.astype(dtype) for x in (case.Q, case.K, case.V))
    assert kernel_attention(Q, K, V, laplace_kernel).dtype == dtype


def test_the_smoother_takes_leading_axes() -> None:
    rng = np.random.default_rng(6)
    Q, K, V = (rng.standard_normal(s) for s in ((2, 1, 3, 4), (5, 6, 4), (6, 2)))
    o = kernel_attention(Q, K, V, gaussian_kernel)
    assert o.shape == (2, 5, 3, 2)
    kappa = gaussian_kernel(Q[1, 0], K[3])
    budget = smoother_budget(kappa, np.full(kappa.shape, gamma(64, U)), V, U)
    one = kernel_attention(Q[1, 0], K[3], V, gaussian_kernel)
    compare("one of the batch", o[1, 3], one, budget.times(2)).require()


def test_without_keys_there_is_no_mean() -> None:
    o = kernel_attention(np.ones((2, 3)), np.ones((0, 3)), np.ones((0, 4)), gaussian_kernel)
    assert o.shape == (2, 4)
    assert np.isnan(o).all()


def test_where_every_kernel_value_underflows_the_output_is_nan() -> None:
    far = kernel_attention([[1000.0]], [[0.0], [1.0]], [[1.0], [2.0]], gaussian_kernel)
    assert np.isnan(far).all()


Q, K, V = np.ones((2, 3)), np.ones((4, 3)), np.ones((4, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Q[0], K, V, gaussian_kernel), r"query has shape \(3,\)"),
        ((Q, K[:, :2], V, gaussian_kernel), r"key has shape \(4, 2\); expected \(..., n_tokens, 3"),
        ((Q, K, V[:3], gaussian_kernel), r"value has shape \(3, 5\); expected \(..., 4, c\)"),
        ((Q, K, np.ones((3, 4, 5)), lambda x, y: x), r"kernel has values of shape \(2, 3\)"),
        ((np.ones((2, 2, 3)), K, np.ones((3, 4, 5)), gaussian_kernel), r"value has leading axes"),
    ],
)
def test_shapes_that_do_not_fit_are_named(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel_attention(*arguments)


def indefinite(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The sum of absolute differences, plus 1: a distance is no kernel."""
    values: np.ndarray = 1 + abs(x[:, None] - y).sum(axis=-1)
    return values


def lopsided(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    values: np.ndarray = gaussian_kernel(x, y) * (1 + (y[:, 0] > 1) * (x[:, :1] < 1) / 2)
    return values


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (indefinite, "without a factor; expected one that is symmetric and positive semidefinite"),
        (lopsided, "without a factor; expected one that is symmetric"),
        (lambda x, y: 0 * gaussian_kernel(x, y), "kernel has values .* on the diagonal"),
        (lambda x, y: np.nan * gaussian_kernel(x, y), "kernel has values .* on the diagonal"),
        (lambda x, y: gaussian_kernel(x, y)[0], r"kernel has values of shape \(3,\)"),
    ],
)
def test_what_is_no_kernel_is_refused(kernel: Kernel, message: str) -> None:
    keys = np.array([[0.0], [0.5], [2.0]])
    with pytest.raises(ValueError, match=message):
        kernel_features(keys, keys[:1], kernel)


@pytest.mark.parametrize(
    ("keys", "queries", "message"),
    [
        (np.ones((2, 3, 4)), np.ones((1, 4)), r"keys and queries have shapes \(2, 3, 4\)"),
        (np.ones((3, 4)), np.ones((1, 1, 4)), r"keys and queries have shapes"),
        (np.ones((0, 4)), np.ones((1, 4)), r"n at least 1"),
        (np.ones((3, 4)), np.ones((1, 5)), r"queries has shape \(1, 5\)"),
        (np.full((3, 4), np.inf), np.ones((1, 4)), r"keys has entries that are NaN or infinite"),
    ],
)
def test_points_that_have_no_features_are_refused(
    keys: np.ndarray, queries: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kernel_features(keys, queries, gaussian_kernel)


def test_what_cannot_be_called_or_is_no_number_is_named() -> None:
    with pytest.raises(TypeError, match="kernel is 'rbf'; expected a callable"):
        kernel_attention(Q, K, V, "rbf")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="kernel is None; expected a callable"):
        kernel_features(K, Q, None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="y has dtype complex128"):
        gaussian_kernel(Q, K.astype(complex))
