"""The proof's own expressions against the code, both optima, few tokens, and every map reduced."""

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import OneStepRegressor, attention
from equivalence.features import (
    DenseFeatures,
    GeneralizedFeatures,
    GramFeatures,
    PositiveFeatures,
    ReducedFeatures,
    Reduction,
    TaylorFeatures,
    TrigonometricFeatures,
)
from equivalence.features.dense import optimal_tilts
from equivalence.features.generalized import optimal_tilt
from equivalence.features.reductions import balancing, second_moment
from equivalence.streaming import AttentionState, causal_attention_by_chunks
from equivalence.verify.budgets import (
    Budget,
    attention_budget,
    dual_budget,
    gamma,
    normalizer_budget,
    sum_budget,
)
from equivalence.verify.cases import make_case
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import on_one_scale
from proofs import load

U = 2.0**-53
PROOF = load("dense_exponential_features")
RNG = np.random.default_rng(0)
W = RNG.standard_normal((6, 3))
TILTS = np.array([-0.5, -0.0625, 0.0625])
POINTS = RNG.standard_normal((2, 3))
K = RNG.standard_normal((9, 3)) - np.array([0.5, 0, 1])
Q = RNG.standard_normal((8, 3)) * np.array([2, 1, 0.5])


def orthonormal(seed: int, d: int = 3) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]


def relative(value: float, roundings: int) -> Budget:
    return sum_budget(np.array([[value]]), roundings, U)


def test_the_variance_of_the_code_is_that_of_the_proof() -> None:
    axes = orthonormal(1)
    x, y = POINTS
    rho = 1 / (1 - 8 * TILTS)
    along = {"x": (axes.T @ x).tolist(), "y": (axes.T @ y).tolist()}
    mean = PROOF.evaluate("mean", along)
    square, mirrored = (
        PROOF.evaluate(name, along | {"rho": rho.tolist()}) / mean**2
        for name in ("second_moment", "mirrored_moment")
    )
    for n, antithetic, second in ((1, False, square), (2, True, (square + mirrored) / 2)):
        got = DenseFeatures.log_relative_variance(
            x[None], y[None], n, tilts=TILTS, axes=axes, antithetic=antithetic
        )
        # Exponents below 64 in size, and second - 1 beside 1.
        compare("E T^2 - 1", [math.exp(got.item())], [second - 1], relative(second, 2048)).require()


@pytest.mark.parametrize("moments", [[0.3], [1e-3, 4.0], [1e4, 0.5, 30.0, 2.0]])
def test_the_tilts_are_where_the_slopes_of_the_proof_vanish(moments: list[float]) -> None:
    for antithetic, name in ((False, "slope"), (True, "pair_slope")):
        rho = 1 / (1 - 8 * optimal_tilts(moments, antithetic=antithetic))
        for k, m in enumerate(moments):
            given = {"rho": rho.tolist(), "m": moments, "k": k + 1}
            arguments = {key: given[key] for key in PROOF.arguments(name)}
            # Terms 1/rho and m; rho errs by 16u, and as much moves sigma, of a slope below 1.
            budget = relative(1 / rho[k] + m, 64)
            compare("slope", [PROOF.evaluate(name, arguments)], [0.0], budget).require()


@given(st.floats(0.01, 1e3), st.integers(1, 32), st.booleans())
def test_equal_moments_have_the_tilt_of_generalised_features(
    s: float, d: int, antithetic: bool
) -> None:
    got = optimal_tilts(np.full(d, s / d), antithetic=antithetic)
    want = optimal_tilt(s, d, antithetic=antithetic)
    # sigma is a sum of 2d terms of size up to s, and A = (1 - 1/rho)/8 grows like s.
    budget = Budget(gamma(2 * d + 64, U) * (1 + s) * (1 + abs(want)), "sums and a bisection", U)
    compare("the tilts", got, np.full(d, want), budget).require()


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_no_other_tilts_and_no_other_axes_do_better(seed: int, everywhere: bool) -> None:
    rng = np.random.default_rng(seed)
    spread = rng.exponential(size=4)
    x, y = (
        rng.standard_normal((6, 4)) * spread + rng.standard_normal(4),
        rng.standard_normal((5, 4)),
    )
    phi = DenseFeatures(rng.standard_normal((1, 4))).fit(x, y)
    z = x[:, None] + y

    def cost(tilts: np.ndarray, axes: np.ndarray) -> float:
        """The mean over all pairs of log E T^2, from its definition."""
        rho = 1 / (1 - 8 * tilts)
        return float((np.log((1 + rho) / 2 / np.sqrt(rho)) + rho * (z @ axes) ** 2).sum(-1).mean())

    best = cost(phi.tilts, phi.axes)
    step = 1.0 if everywhere else 1e-3
    turned = phi.axes @ np.linalg.qr(np.eye(4) + step * rng.standard_normal((4, 4)))[0]
    others = [
        cost(phi.tilts * np.exp(step * rng.standard_normal(4)), phi.axes),
        cost(phi.tilts, turned),
        cost(optimal_tilts(((z @ turned) ** 2).mean(axis=(0, 1))), turned),
        cost(np.full(4, GeneralizedFeatures(W[:, :1] * np.ones(4)).fit(x, y).A), np.eye(4)),
    ]
    rounding = gamma(256, U) * (abs(best) + float((z**2).sum(-1).mean()) + 1)
    assert all(best <= other + rounding for other in others)


def test_equal_tilts_are_generalised_features_whatever_the_axes() -> None:
    for axes in (np.eye(3), orthonormal(2)):
        x = POINTS @ axes.T
        got = DenseFeatures(W, np.full(3, -0.25), axes)(x)
        want = GeneralizedFeatures(W, -0.25)(POINTS)
        for a, b in zip(got, want, strict=True):
            size = abs(W) @ abs(POINTS).T.max(axis=1) * 8 + (W**2).sum(axis=1) + 8
            budget = Budget(np.array(gamma(32, U) * size.max()), "exponents, in any order", U)
            compare("equal tilts", a, b, budget).require()
    one = DenseFeatures.log_relative_variance(POINTS, POINTS, 2, tilts=np.full(3, -0.25))
    other = GeneralizedFeatures.log_relative_variance(POINTS, POINTS, 2, A=-0.25)
    compare("variance", one, other, Budget(gamma(64, U) * (abs(other) + 16), "sums", U)).require()


def test_nothing_overflows_at_s_of_ten_thousand() -> None:
    x, y = np.array([[60.0, 80.0]]), np.zeros((1, 2))
    phi = DenseFeatures(10 * W[:, :2]).fit(x, y)
    z = (x @ phi.axes)[0]
    given = {"rho": (1 / (1 - 8 * phi.tilts)).tolist(), "m": (z**2).tolist()}
    log_moment = PROOF.evaluate("log_moment", given)
    for n, antithetic in ((1, False), (2, True)):
        got = DenseFeatures.log_relative_variance(
            x, y, n, tilts=phi.tilts, axes=phi.axes, antithetic=antithetic
        )
        # A pair has the mean of this moment and of that of w and -w, which is nothing here.
        moment = log_moment - math.log(n)
        want = moment + math.log1p(-math.exp(-moment))
        compare("log variance", got, [[want]], relative(1e4, 64)).require()
        A = optimal_tilt(1e4, 2, antithetic=antithetic)
        # Along z one tilt of its own: far below that of one tilt for both axes.
        assert got < GeneralizedFeatures.log_relative_variance(x, y, n, A=A, antithetic=antithetic)
    features, log_scale = phi(x)
    assert np.isfinite(log_scale).all()
    assert features.max() == 1


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_no_other_balance_has_any_smaller_eigenvalue(seed: int, d: int) -> None:
    rng = np.random.default_rng(seed)
    M_x, M_y = (second_moment(rng.standard_normal((d + 2, d)), shrinkage=0.25) for _ in range(2))
    S, inverse = balancing(M_x, M_y)
    least = np.linalg.eigvalsh(S @ M_x @ S.T + inverse @ M_y @ inverse.T)
    # The proof's 2 sigma_j: M_x M_y has the eigenvalues sigma_j^2.
    sigma = np.sqrt(np.sort(np.linalg.eigvals(M_x @ M_y).real))
    lengths = float(np.linalg.norm(S) ** 2 * np.trace(M_x) + np.linalg.norm(inverse) ** 2)
    size = lengths + float(np.trace(M_x) * np.trace(M_y)) * (1 + 1 / sigma[0])
    budget = Budget(np.array(gamma(256 * d * d, U) * size), "eigenvalues of M_x M_y", U)
    compare("the eigenvalues", least, 2 * sigma, budget).require()
    other = S + 0.5 * rng.standard_normal((d, d))
    moved = np.linalg.inv(other).T
    eigenvalues = np.linalg.eigvalsh(other @ M_x @ other.T + moved @ M_y @ moved.T)
    rounding = gamma(256 * d * d, U) * float(eigenvalues[-1])
    assert (eigenvalues >= 2 * sigma - budget.bound - rounding).all()


def test_the_balance_and_the_reduction_are_those_of_the_proof() -> None:
    a, b = K.mean(axis=0), Q.mean(axis=0)
    reduction = Reduction.fit(K, Q)
    S, inverse = reduction.S, reduction.inverse
    exact_inverse = np.linalg.inv(S).T
    condition = float(np.linalg.norm(S) * np.linalg.norm(inverse))
    given = {"X": K[0], "Y": Q[0], "a": a, "b": b, "S": S, "R": inverse}
    lists = {name: value.tolist() for name, value in given.items()}
    kernel = PROOF.evaluate("kernel", {name: lists[name] for name in ("X", "Y")})
    changed = PROOF.evaluate("reduction", lists)
    (x, f), (y, g) = reduction.keys(K[0][None]), reduction.queries(Q[0][None])
    size = float(np.linalg.norm(abs(K[0]) + abs(a)) * np.linalg.norm(abs(Q[0]) + abs(b)))
    budget = relative(size * (1 + condition), 512)
    compare("x.y", (x @ y.T + f + g)[0], [kernel], budget[0]).require()
    compare("x.y after rounded S and S^{-T}", [changed], [kernel], budget).require()
    backward = Budget(
        np.array(gamma(512, U) * condition * np.linalg.norm(inverse)), "an inverse", U
    )
    compare("S^{-T}", inverse, exact_inverse, backward).require()
    M_x, M_y = second_moment(K - a), second_moment(Q - b)
    left, right = (
        np.array(PROOF.evaluate(name, {"S": S.tolist(), moment: M.tolist()}))
        for name, moment, M in (("balanced_moment", "M_x", M_x), ("query_moment", "M_y", M_y))
    )
    size = condition**2 * float(np.trace(left) + np.trace(right))
    compare("balanced", left, right, Budget(np.array(gamma(512, U) * size), "S", U)).require()


def test_the_shift_is_the_mean_of_the_proof_and_takes_away_its_square() -> None:
    z = (K[:, None] + Q).reshape(-1, 3)
    reduction = Reduction.fit(K, Q, balance=False)
    for l in range(3):  # noqa: E741
        mean = PROOF.evaluate("mean_of_z", {"z": z[:, l].tolist()})
        got = reduction.a[l] + reduction.b[l]
        budget = relative(float(abs(z[:, l]).mean()) + float(abs(K).mean() + abs(Q).mean()), 64)
        compare("a + b", [got], [mean], budget).require()
    before, after = (
        float(((x[:, None] + y) ** 2).sum(-1).mean())
        for x, y in ((K, Q), (reduction.keys(K)[0], reduction.queries(Q)[0]))
    )
    square = float(((reduction.a + reduction.b) ** 2).sum())
    compare("E |z|^2", [after], [before - square], relative(before, 512)).require()


def test_the_shrinkage_is_the_variance_over_the_distance() -> None:
    """Ledoit and Wolf's intensity from its definition, a mean over matrices."""
    points = K * np.array([4.0, 1.0, 0.5])
    each = points[:, :, None] * points[:, None, :]
    M = each.mean(axis=0)
    ball = np.trace(M) / 3 * np.eye(3)
    r = ((each - M) ** 2).sum(axis=(1, 2)).mean() / 9 / ((M - ball) ** 2).sum()
    size = float((points**2).sum(axis=1).max()) ** 2 / float(((M - ball) ** 2).sum())
    budget = relative(float(np.trace(M)) * (1 + size), 256)
    compare("shrunk", second_moment(points), (1 - r) * M + r * ball, budget).require()
    assert r < 1
    # It is at most 1, and of a multiple of the identity nothing is left to shrink.
    far = second_moment(K)
    assert np.array_equal(far, np.diag(np.diag(far)))
    assert np.array_equal(second_moment([[1.0, 1.0], [1.0, -1.0]]), np.eye(2))


def test_fewer_tokens_than_dimensions_are_balanced_too() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((4, 16)), rng.standard_normal((3, 16))
    reduction = Reduction.fit(x, y)
    got = reduction.keys(x)[0] @ reduction.queries(y)[0].T
    got += reduction.keys(x)[1][:, None] + reduction.queries(y)[1]
    size = float(np.linalg.norm(x, axis=1).max() * np.linalg.norm(y, axis=1).max())
    condition = float(np.linalg.norm(reduction.S) * np.linalg.norm(reduction.inverse))
    compare("x.y", got, x @ y.T, relative(size * condition, 40 * 16 * 16)).require()
    phi = DenseFeatures(rng.standard_normal((2, 16))).fit(x, y)
    # z of 12 pairs spans 4 + 3 - 1 dimensions: elsewhere there is nothing to tilt for.
    assert (phi.tilts < -math.sqrt(U)).sum() == 6


@pytest.mark.parametrize(
    "make",
    [
        lambda: PositiveFeatures(W),
        lambda: GeneralizedFeatures(W),
        lambda: DenseFeatures(W),
        lambda: TrigonometricFeatures(W),
        lambda: TaylorFeatures(3),
    ],
    ids=["positive", "generalized", "dense", "trigonometric", "taylor"],
)
def test_every_map_is_reduced_and_its_features_are_those_of_the_reduced_points(make: Any) -> None:
    phi = ReducedFeatures(make()).fit(K, Q)
    reduction = phi.reduction_
    (x, f), (y, g) = reduction.keys(K), reduction.queries(Q)
    own = make()
    if hasattr(own, "fit"):
        own = own.fit(x, y)
    for got, points, factor in ((phi.keys(K), x, f), (phi.queries(Q), y, g)):
        want = own(points)
        assert np.array_equal(got.features, want.features)
        assert np.array_equal(got.log_scale, want.log_scale + factor)


def test_reduced_gram_features_are_softmax_attention_in_every_form() -> None:
    case = make_case(5, n_q=5, n=5, d=3, scale=1.0)
    phi = ReducedFeatures(GramFeatures()).fit(case.K, case.Q)
    o = attention(case.Q, case.K, case.V, scale=1.0)
    reduction = phi.reduction_
    # Reduced points err by gamma_(3d) of products with S, as their scores and factors do.
    (x, f), (y, g) = reduction.keys(case.K), reduction.queries(case.Q)
    condition = float(np.linalg.norm(reduction.S) * np.linalg.norm(reduction.inverse))
    norms = (np.linalg.norm(y, axis=1)[:, None] + np.linalg.norm(x, axis=1)) ** 2
    error = gamma(256, U) * (condition * norms + abs(f) + abs(g)[:, None])
    Phi, phi_q = on_one_scale(phi.keys(case.K)), phi.queries(case.Q).features
    budget = attention_budget(case.Q, case.K, case.V, 1.0, U)
    budget = budget + dual_budget(Phi, phi_q, case.V, error, U)
    model = OneStepRegressor(phi.keys, query_map=phi.queries, scale=1.0)
    model.fit(case.K, case.V, n_demonstrations=3)
    state = AttentionState.of(phi.keys(case.K), case.V)
    compare("the regressor", model.predict(case.Q), o, budget).require()
    compare("the state", state.read(phi.queries(case.Q)), o, budget).require()
    causal = causal_attention_by_chunks(phi.queries(case.Q), phi.keys(case.K), case.V, chunk_size=2)
    want = attention(case.Q, case.K, case.V, scale=1.0, causal=True)
    compare("by chunks", causal, want, budget).require()
    log_D = np.log(np.exp(case.Q @ case.K.T).sum(axis=1))
    logarithm = Budget(gamma(64, U) * (abs(log_D) + 8), "the logarithm of a sum", U)
    budget = normalizer_budget(Phi, phi_q, error, U) + logarithm
    compare("log D", model.log_normalizer(case.Q), log_D, budget).require()


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_dtypes_and_leading_axes_are_kept_and_nothing_is_changed(dtype: str) -> None:
    x = np.random.default_rng(3).standard_normal((2, 4, 3)).astype(dtype)
    before = x.copy()
    dense = DenseFeatures(W, TILTS, orthonormal(1))
    reduced = ReducedFeatures(dense).fit(K.astype(dtype), Q)
    for phi in (dense(x), reduced.keys(x), reduced.queries(x)):
        assert {phi.features.dtype, phi.log_scale.dtype} == {np.dtype(dtype)}
        assert (phi.features.shape, phi.log_scale.shape) == ((2, 4, 6), (2, 4))
    variance = DenseFeatures.log_relative_variance(x, x[:, :1], 2, tilts=TILTS)
    assert (variance.shape, variance.dtype) == ((2, 4, 1), np.dtype(dtype))
    assert np.array_equal(x, before)
    assert np.array_equal(dense.tilts, TILTS)  # the map that was given is not the one fitted


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_point_is_nan_and_spoils_no_other(bad: float) -> None:
    x = np.array([[1.0, 2.0, 3.0], [bad, 1.0, 1.0]])
    dense = DenseFeatures(W, TILTS, orthonormal(1))
    for phi in (dense(x), ReducedFeatures(dense).fit(K, Q).keys(x)):
        assert np.isnan(phi.phi()[1]).all()
        assert np.isfinite(phi.phi()[0]).all()


def test_fit_takes_the_keys_twice_and_knows_antithetic_projections() -> None:
    own, twice = DenseFeatures(W).fit(K), DenseFeatures(W).fit(K, K)
    assert np.array_equal(own.tilts, twice.tilts)
    assert np.array_equal(Reduction.fit(K).S, Reduction.fit(K, K).S)
    reduction = ReducedFeatures(PositiveFeatures(W)).fit(K).reduction_
    assert np.array_equal(reduction.b, Reduction.fit(K, K).b)
    pairs = DenseFeatures(np.concatenate([W, -W])).fit(K, Q)
    assert np.array_equal(pairs.axes, DenseFeatures(W).fit(K, Q).axes)
    assert (pairs.tilts >= DenseFeatures(W).fit(K, Q).tilts).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: DenseFeatures(W, [0.0, 0.0]), ValueError, "tilts has shape (2,); expected"),
        (
            lambda: DenseFeatures(W, [0.0, 0.0, 0.125]),
            ValueError,
            "expected 3 finite numbers below",
        ),
        (lambda: DenseFeatures(W, [0.0, 0.0, math.nan]), ValueError, "expected 3 finite numbers"),
        (lambda: DenseFeatures(W, ["a"] * 3), TypeError, "tilts has dtype <U1"),
        (lambda: DenseFeatures(W, axes=np.ones((3, 3))), ValueError, "axes has columns that are"),
        (lambda: DenseFeatures(W, axes=np.eye(2)), ValueError, "axes has shape (2, 2); expected"),
        (lambda: DenseFeatures(W, axes=[np.eye(3)]), ValueError, "axes has columns that are"),
        (lambda: DenseFeatures(W, axes=np.eye(3) * math.nan), ValueError, "axes has columns that"),
        (lambda: DenseFeatures(W)([[1.0]]), ValueError, "x has shape (1, 1); expected"),
        (lambda: DenseFeatures(W).fit(W[:0]), ValueError, "keys has shape (0, 3)"),
        (lambda: DenseFeatures(W).fit(W, W * math.nan), ValueError, "queries has entries that are"),
        (lambda: optimal_tilts([-1.0]), ValueError, "moments is [-1.]; expected one finite"),
        (lambda: optimal_tilts([[1.0]]), ValueError, "moments is [[1.]]; expected one finite"),
        (
            lambda: DenseFeatures.log_relative_variance(W, W, 2, coupling="orthogonal"),
            ValueError,
            "coupling is 'orthogonal'; expected 'iid': no closed form is known",
        ),
        (
            lambda: DenseFeatures.log_relative_variance(W, W[:, :2], 2),
            ValueError,
            "y has shape (6, 2); expected",
        ),
        (lambda: second_moment(W, shrinkage=2.0), ValueError, "shrinkage is 2.0; expected 0 to 1"),
        (lambda: balancing(np.eye(2), np.eye(3)), ValueError, "query_moment has shape (3, 3)"),
        (lambda: balancing(np.ones((2, 3)), np.eye(3)), ValueError, "key_moment has shape (2, 3)"),
        (lambda: balancing([[1, 2], [3, 4]], np.eye(2)), ValueError, "key_moment is not symmetric"),
        (
            lambda: balancing(np.eye(2), [[1.0, 1.0], [1.0, 1.0]]),
            ValueError,
            "query_moment has eigenvalues from",
        ),
        (lambda: Reduction.fit(W[:1], W), ValueError, "key_moment has eigenvalues from 0.0e+00"),
        (lambda: Reduction.fit(W, W[:, :2]), ValueError, "queries has shape (6, 2)"),
        (lambda: Reduction([1.0], [1.0], [[1.0]], [1.0]), ValueError, "inverse has shape (1,)"),
        (lambda: Reduction(1.0, [1.0], [[1.0]], [[1.0]]), ValueError, "a has shape ()"),
        (lambda: Reduction([1.0], [math.nan], [[1.0]], [[1.0]]), ValueError, "b has entries that"),
        (lambda: Reduction.fit(W).keys([[1.0]]), ValueError, "x has shape (1, 1); expected"),
        (lambda: ReducedFeatures(PositiveFeatures), TypeError, "feature_map is <class"),
        (lambda: ReducedFeatures(PositiveFeatures(W)).keys(W), ValueError, "has no reduction yet"),
        (lambda: OneStepRegressor(query_map=3), TypeError, "query_map is 3; expected a feature"),
    ],
)
def test_bad_input_is_refused_by_name(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
