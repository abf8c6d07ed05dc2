"""What a user of the feature maps relies on, beyond the claims about them."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence.features import (
    Features,
    GramFeatures,
    PositiveFeatures,
    TrigonometricFeatures,
)
from equivalence.verify import oracle
from equivalence.verify.budgets import (
    Budget,
    exact,
    gamma,
    gaussian_exponent_error,
    kernel_budget,
    unit_roundoff,
)
from equivalence.verify.compare import compare
from equivalence.verify.oracle import FLOATS

Array = np.ndarray[Any, Any]
Map = GramFeatures | PositiveFeatures | TrigonometricFeatures

RNG = np.random.default_rng(0)
K, X = RNG.standard_normal((5, 3)), RNG.standard_normal((4, 3))
PROJECTIONS = RNG.standard_normal((6, 3))
MAPS: dict[str, Callable[[], Map]] = {
    "GramFeatures": lambda: GramFeatures().fit(K),
    "PositiveFeatures": lambda: PositiveFeatures(PROJECTIONS),
    "TrigonometricFeatures": lambda: TrigonometricFeatures(PROJECTIONS),
}
EACH_MAP = pytest.mark.parametrize("make", MAPS.values(), ids=MAPS)


def require_kernel(
    phi: GramFeatures, keys: Array, points: Array, at_points: Features | None = None
) -> None:
    """phi(k).phi(x) = exp(k.x) for each pair, both sides without their log scales: no overflow."""
    at_keys, at_points = phi(keys), at_points or phi(points)
    f, g = at_points.features, at_keys.features
    a, b = (x.log_scale.astype(np.float64).tolist() for x in (at_points, at_keys))
    x, z = FLOATS.vectors(points), FLOATS.vectors(keys)
    want = [
        [math.exp(math.fsum([FLOATS.dot(p, r), -s, -t])) for r, t in zip(z, b, strict=True)]
        for p, s in zip(x, a, strict=True)
    ]
    u = unit_roundoff(f.dtype)
    # The exponent is rounded on both sides.
    error = sum(gaussian_exponent_error(points, keys, v) for v in (u, 2.0**-53))
    m, tiny = f.shape[-1], float(np.finfo(f.dtype).tiny)
    lost = Budget(np.array((m + 2) * tiny), "m products and an entry of g may underflow", u)
    budget = kernel_budget(f, g, error, u) + lost
    oracle.against(FLOATS, "exp(k.x)", f @ g.T, want, budget).require()


def require_positive(projections: Array, points: Array, got: Features) -> None:
    """exp(w.x - |x|^2/2) / sqrt(m), one feature at a time, both sides without the log scale."""
    m, d = projections.shape
    dtype = got.features.dtype
    u = unit_roundoff(dtype)
    W, x = (a.astype(np.float64) for a in (projections.astype(dtype), points))
    want = [
        [
            math.exp(math.fsum([FLOATS.dot(w, p), -FLOATS.dot(p, p) / 2, -float(s)])) / math.sqrt(m)
            for w in FLOATS.vectors(W)
        ]
        for p, s in zip(FLOATS.vectors(x), got.log_scale, strict=True)
    ]
    # Each exponent: a dot product and |x|^2/2, then the difference of each from the largest, the
    # sums that make the log scale, and log(m)/2; two of log2 e, where exp2 stands for exp.
    size = abs(x) @ abs(W).T
    terms = size + size.max(axis=1, keepdims=True) + (x**2).sum(axis=1)[:, None] + math.log(m)
    error = np.expm1((gamma(d + 7, u) + gamma(d + 7, 2.0**-53)) * terms) + 2 * 4 * u
    tiny = float(np.finfo(dtype).tiny)
    budget = Budget(
        error * np.array(want) + tiny,
        f"the exponent errs by gamma_(d+7) of its terms, exp by 4 ulp, d={d}, on both sides",
        u,
    )
    oracle.against(FLOATS, "exp(w.x - |x|^2/2)", got.features, want, budget).require()


def require_waves(projections: Array, points: Array, got: Features) -> None:
    """[cos w.x, sin w.x], and the log scale |x|^2/2 - log(m)/2."""
    u, d = unit_roundoff(got.features.dtype), projections.shape[1]
    phases = [
        [FLOATS.dot(w, x) for w in FLOATS.vectors(projections)] for x in FLOATS.vectors(points)
    ]
    want = [[f(p) for f in (math.cos, math.sin) for p in row] for row in phases]
    size = np.tile(abs(points) @ abs(projections).T, 2)
    waves = Budget(gamma(d + 2, u) * size + 8 * u, "phases err by gamma_(d+2), waves by 4 ulp", u)
    oracle.against(FLOATS, "cos w.x and sin w.x", got.features, want, waves).require()
    scale = (points**2).sum(axis=1) / 2
    norms = Budget(gamma(d + 6, u) * (scale + math.log(len(projections))), "gamma_(d+6)", u)
    half = scale - math.log(len(projections)) / 2
    compare("|x|^2/2 - log(m)/2", got.log_scale, half, norms).require()


RAGGED = [[1.0, 2.0], [3.0]]
NUMBERS = "expected float16, float32, float64 or integers"
FINITE = "entries that are NaN or infinite; expected finite"
# What is passed, and what the message says after the argument's name.
BAD_MATRICES: dict[str, tuple[Any, str]] = {
    "a number": (1.0, "has shape (); expected (..., n_tokens, dim)"),
    "one axis": (K[0], "has shape (3,); expected (..., n_tokens, dim)"),
    "no columns": (K[:, :0], "has shape (5, 0); expected a last axis of at least 1"),
    "three axes": (K[None], "has shape (1, 5, 3); expected (n_"),
    "no rows": (K[:0], "has shape (0, 3); expected (n_"),
    "NaN": (np.where(K[1, 1] == K, math.nan, K), f"has {FINITE}"),
    "inf": (np.where(K[1, 1] == K, math.inf, K), f"has {FINITE}"),
    "-inf": (np.where(K[1, 1] == K, -math.inf, K), f"has {FINITE}"),
    "ragged": (RAGGED, "is no array"),
}
BAD_DTYPES: dict[str, tuple[Any, str]] = {
    "complex": (K.astype(complex), f"has dtype complex128; {NUMBERS}"),
    "object": (K.astype(object), f"has dtype object; {NUMBERS}"),
    "None": (None, f"has dtype object; {NUMBERS}"),
    "str": (K.astype(str), f"has dtype <U32; {NUMBERS}"),
    "longdouble": (K.astype(np.longdouble), f"has dtype {np.dtype(np.longdouble)}; {NUMBERS}"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_MATRICES.values(), ids=BAD_MATRICES)
def test_matrices_that_do_not_fit_are_refused_by_name(bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"keys {message}")):
        GramFeatures().fit(bad)
    with pytest.raises(ValueError, match=re.escape(f"projections {message}")):
        PositiveFeatures(bad)


@pytest.mark.parametrize(("bad", "message"), BAD_DTYPES.values(), ids=BAD_DTYPES)
def test_what_is_not_real_is_refused_by_name(bad: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(f"keys {message}")):
        GramFeatures().fit(bad)
    with pytest.raises(TypeError, match=re.escape(f"projections {message}")):
        PositiveFeatures(bad)
    for make in MAPS.values():
        with pytest.raises(TypeError, match=re.escape(f"x {message}")):
            make()(bad)


@EACH_MAP
@pytest.mark.parametrize("bad", [1.0, X[0], X[:, :2], X[:, :0], X.T], ids=np.shape)
def test_points_that_do_not_fit_are_refused_by_name(make: Callable[[], Map], bad: Any) -> None:
    what = re.escape(f"x has shape {np.shape(bad)}; expected (..., n_tokens, ")
    with pytest.raises(ValueError, match=what):
        make()(bad)


@pytest.mark.parametrize(("dtype", "huge"), [("float64", 1e200), ("float32", 1e20)])
def test_landmarks_whose_squared_norm_overflows_are_refused(dtype: str, huge: float) -> None:
    keys = np.array([[1.0], [huge]], dtype)
    with pytest.raises(
        ValueError, match=f"keys has rows whose squared norm overflows {dtype}; exp"
    ):
        GramFeatures().fit(keys)


def test_features_before_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("no landmarks yet; expected fit(keys)")):
        GramFeatures()(X)


@pytest.mark.parametrize("name", ["dim", "n_features"])
@pytest.mark.parametrize(
    ("size", "error", "expected"),
    [
        (0, ValueError, "at least 1"),
        (-3, ValueError, "at least 1"),
        (2.5, TypeError, "an integer"),
        (2.0, TypeError, "an integer"),
        (True, TypeError, "an integer"),
        ("2", TypeError, "an integer"),
        (None, TypeError, "an integer"),
    ],
)
def test_sizes_that_are_no_sizes_are_refused(
    name: str, size: Any, error: type[Exception], expected: str
) -> None:
    sizes = {"dim": 3, "n_features": 5, name: size}
    with pytest.raises(error, match=re.escape(f"{name} is {size!r}; expected {expected}")):
        PositiveFeatures.sample(**sizes, rng=RNG)


@pytest.mark.parametrize("rng", [None, 0, np.random, np.random.RandomState(0)], ids=repr)
def test_an_rng_that_is_no_generator_is_refused(rng: Any) -> None:
    with pytest.raises(TypeError, match=r"rng is .*; expected a numpy\.random\.Generator"):
        PositiveFeatures.sample(3, 5, rng=rng)


def test_a_sample_is_the_generators_and_nothing_else() -> None:
    first = PositiveFeatures.sample(3, 5, rng=np.random.default_rng(1)).projections
    rng = np.random.default_rng(1)
    again, other = (PositiveFeatures.sample(np.int64(3), 5, rng=rng).projections for _ in range(2))
    assert (first.shape, first.dtype) == ((5, 3), np.float64)
    assert np.array_equal(first, again)
    assert not np.isin(first, other).any()


# |z|^2 lies beyond the range of exp (709 and 88), and a budget that grows with it still tells.
LARGE = {"float64": 40.0, "float32": 12.0}
HARD_KEYS: dict[str, Array] = {
    "one key": K[:1],
    "one key at the origin": np.zeros((1, 3)),
    "duplicates": K[[0, 1, 0, 2, 1, 0]],
    "near duplicates": np.concatenate([K, K + 1e-9, K - 1e-9]),
    "neighbouring floats": np.concatenate([K, np.nextafter(K, np.inf)]),
    "many in one dimension": np.linspace(-2, 2, 150)[:, None],
    "more than a numerical rank of 1": 1e-9 * RNG.standard_normal((20, 2)),
    "signed zeros": np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, -0.0]]),
}


@pytest.mark.parametrize("keys", HARD_KEYS.values(), ids=HARD_KEYS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gram_features_give_the_kernel_at_every_point_for_hard_keys(
    keys: Array, dtype: str
) -> None:
    keys = keys.astype(dtype)
    points = keys[::-1][:4] + np.random.default_rng(2).standard_normal(keys[:4].shape).astype(dtype)
    phi = GramFeatures().fit(keys)
    distinct = {tuple(row) for row in keys.tolist()}
    assert {tuple(row) for row in phi.landmarks_.tolist()} == distinct
    assert phi.factor_.shape == (len(distinct), len(distinct))
    assert 1 <= phi.rank_ <= len(distinct)
    require_kernel(phi, keys, points)


@pytest.mark.parametrize("dtype", LARGE)
@pytest.mark.parametrize("far", [slice(None), slice(4, 5)], ids=["all", "one"])
def test_gram_features_give_the_kernel_where_exp_overflows(far: slice, dtype: str) -> None:
    keys = K.copy()
    keys[far] *= LARGE[dtype] / np.linalg.norm(keys[far], axis=1, keepdims=True)
    points = keys + np.random.default_rng(2).standard_normal(keys.shape)
    phi = GramFeatures().fit(keys.astype(dtype))
    require_kernel(phi, keys.astype(dtype), points.astype(dtype))


def test_the_numerical_rank_of_many_near_points_is_small_and_nothing_is_lost() -> None:
    keys = HARD_KEYS["many in one dimension"]
    phi = GramFeatures().fit(keys)
    # exp(xy) on [-2, 2]: Taylor terms 4^r / r! fall below the unit roundoff at r = 27.
    assert phi.rank_ <= 27
    assert np.linalg.matrix_rank(phi.factor_.astype(np.float64), tol=0) == len(keys)


@pytest.mark.parametrize("keys", HARD_KEYS.values(), ids=HARD_KEYS)
def test_a_landmarks_features_are_its_row_of_the_factor(keys: Array) -> None:
    phi = GramFeatures().fit(keys)
    features, log_scale = phi(phi.landmarks_)
    assert np.array_equal(features, phi.factor_)
    assert np.array_equal(np.triu(phi.factor_, 1), np.zeros_like(phi.factor_))
    want = (phi.landmarks_**2).sum(axis=1) / 2
    rounding = Budget(gamma(3, 2.0**-53) * 2 * want, "|z|^2/2, summed twice", 2.0**-53)
    assert compare("log scale |z|^2/2", log_scale, want, rounding).require() <= 1


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 8),
    st.integers(1, 4),
    st.sampled_from(["float64", "float32"]),
    st.sampled_from([0.1, 1.0, 3.0]),
)
def test_gram_features_give_the_kernel_for_any_keys(
    seed: int, n: int, d: int, dtype: str, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    keys, points = (spread * rng.standard_normal((2, n, d))).astype(dtype)
    require_kernel(GramFeatures().fit(keys), keys, points)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from(["float64", "float32"]),
    st.sampled_from([0.1, 1.0, 3.0]),
)
def test_positive_features_are_the_exponentials_they_say(
    seed: int, m: int, d: int, dtype: str, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    W, points = rng.standard_normal((m, d)), (spread * rng.standard_normal((3, d))).astype(dtype)
    require_positive(W, points, PositiveFeatures(W)(points))


@pytest.mark.parametrize(
    ("dtype", "length", "projection"), [("float64", 60.0, 40.0), ("float32", 18.0, 8.0)]
)
def test_positive_features_of_long_points_neither_overflow_nor_vanish(
    dtype: str, length: float, projection: float
) -> None:
    points = np.array([[length, 0, 0], [0, -length, 1]], dtype)
    W = projection * np.array([[1.0, 0, 0], [0.9, -1, 0], [1, -1, 1]])
    exp_carries = math.log(np.finfo(dtype).max)
    assert ((W @ points.T).max(axis=0) > exp_carries).all()
    assert ((points**2).sum(axis=1) / 2 > exp_carries).all()
    features, log_scale = PositiveFeatures(W)(points)
    assert np.array_equal(features.max(axis=1), [1, 1])
    assert np.isfinite(log_scale).all()
    require_positive(W, points, Features(features, log_scale))


@pytest.mark.parametrize("length", [1e4, 1e9, 1e100, 1e200])
def test_gram_features_of_a_long_point_single_out_the_key_along_it(length: float) -> None:
    # exp(k.x) is a ratio of exp(1e4) and more between any two keys.
    phi = GramFeatures().fit(K)
    kernel = phi(length * X).features @ phi(K).features.T
    assert np.array_equal(np.argmax(kernel, axis=1), np.argmax(X @ K.T, axis=1))
    u, m = 2.0**-53, len(K)
    f, g = abs(phi(length * X).features), abs(phi(K).features)
    budget = Budget(gamma(2 * m + 2, u) * (f @ g.T), "substitution and sum (Higham 2002)", u)
    apart = kernel / np.exp(phi(K).log_scale.max() - phi(K).log_scale)
    assert apart.shape == budget.bound.shape


@pytest.mark.parametrize("x", ["float64", "float32", "float16"])
@pytest.mark.parametrize("own", ["float64", "float32", "float16"])
def test_the_dtype_of_features_is_that_of_the_points(x: str, own: str) -> None:
    points = X.astype(x)
    gram, positive = GramFeatures().fit(K.astype(own)), PositiveFeatures(PROJECTIONS.astype(own))
    together = np.result_type(x, own, "float32")
    assert {part.dtype for part in gram(points)} == {together}
    assert {part.dtype for part in positive(points)} == {np.dtype(x)}
    if x != "float16":
        require_kernel(gram, K.astype(own), points)
        require_positive(PROJECTIONS.astype(own), points, positive(points))


@EACH_MAP
@pytest.mark.parametrize("dtype", ["int32", "uint8", "bool"])
def test_integer_points_are_computed_in_float64(make: Callable[[], Map], dtype: str) -> None:
    points = np.array([[0, 1, 1], [1, 0, 0]], dtype)
    nothing = exact("integers are exact in float64")
    for got, want in zip(make()(points), make()(points.astype(np.float64)), strict=True):
        assert got.dtype == np.float64
        assert compare("of integers", got, want, nothing).require() == 0


def test_integer_landmarks_and_projections_are_computed_in_float64() -> None:
    integers = np.array([[0, 1, 1], [1, 0, 0]])
    require_kernel(GramFeatures().fit(integers), integers.astype(np.float64), X)
    require_positive(integers, X, PositiveFeatures(integers)(X))


FORMS: dict[str, Callable[[Array], Any]] = {
    "a list": Array.tolist,
    "Fortran order": np.asfortranarray,
    "every other entry": lambda x: np.repeat(np.repeat(x, 2, axis=0), 3, axis=1)[::2, ::3],
    "reversed twice": lambda x: x[::-1, ::-1].copy()[::-1, ::-1],
    "the other byte order": lambda x: x.astype(x.dtype.newbyteorder()),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_layout_of_the_arguments_does_not_matter(form: Callable[[Array], Any]) -> None:
    gram, positive = GramFeatures().fit(form(K)), PositiveFeatures(form(PROJECTIONS))
    require_kernel(gram, K, X)
    require_positive(PROJECTIONS, X, positive(form(X)))
    points = np.concatenate([K, X])
    for got, want in zip(gram(form(points)), gram(points), strict=True):
        assert got.dtype.isnative
        # Landmarks are recalled by their bytes: in no layout may one be missed.
        assert np.array_equal(got[:5], want[:5])


def test_no_argument_is_ever_modified() -> None:
    arguments = [x.copy() for x in (K, PROJECTIONS, X)]
    for x in arguments:
        x.flags.writeable = False
    keys, projections, points = arguments
    gram, positive = GramFeatures().fit(keys, points), PositiveFeatures(projections)
    for phi in (gram, positive):
        for _ in range(2):
            phi(points)
            phi(keys)
    for x, before in zip(arguments, (K, PROJECTIONS, X), strict=True):
        assert x.tobytes() == before.tobytes()


def test_landmarks_are_the_maps_own() -> None:
    keys = K.copy()
    phi = GramFeatures().fit(keys)
    keys[:] = 0
    require_kernel(phi, K, X)


@EACH_MAP
@pytest.mark.parametrize("batch", [(2,), (2, 3), (0,), (2, 0)])
def test_leading_axes_are_a_loop(make: Callable[[], Map], batch: tuple[int, ...]) -> None:
    phi = make()
    points = np.random.default_rng(3).standard_normal((*batch, 4, 3))
    features, log_scale = phi(points)
    m = phi(X).features.shape[-1]
    assert features.shape == (*batch, 4, m)
    assert log_scale.shape == (*batch, 4)
    for i in np.ndindex(batch):
        here = Features(features[i], log_scale[i])
        if isinstance(phi, PositiveFeatures):
            require_positive(PROJECTIONS, points[i], here)
        elif isinstance(phi, TrigonometricFeatures):
            require_waves(PROJECTIONS, points[i], here)
        else:
            require_kernel(phi, K, points[i], here)


@EACH_MAP
def test_no_points_have_no_features(make: Callable[[], Map]) -> None:
    features, log_scale = make()(X[:0])
    assert features.shape == (0, make()(X).features.shape[-1])
    assert log_scale.shape == (0,)


@EACH_MAP
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_point_has_features_that_are_nan_and_spoils_no_other(
    make: Callable[[], Map], bad: float
) -> None:
    points = X.copy()
    points[1, 1] = bad
    phi, good = make()(points), make()(X)
    assert np.isnan(phi.phi()[1]).all()
    assert np.isnan(phi.features[1]).any()
    others = np.array([0, 2, 3])
    nothing = exact("rows are computed one by one, in the same shape")
    assert compare("other rows", phi.phi()[others], good.phi()[others], nothing).require() == 0


@pytest.mark.parametrize(("dtype", "huge"), [("float64", 1e160), ("float32", 1e25)])
def test_positive_features_of_a_point_whose_norm_overflows_are_zero(
    dtype: str, huge: float
) -> None:
    phi = PositiveFeatures(PROJECTIONS)(np.full((1, 3), huge, dtype))
    assert np.array_equal(phi.phi(), np.zeros((1, 6)))


@pytest.mark.parametrize("sign", [1.0, -1.0])
@EACH_MAP
def test_points_whose_products_overflow_are_nan(make: Callable[[], Map], sign: float) -> None:
    largest = np.finfo(np.float64).max
    assert np.isnan(make()(np.full((1, 3), sign * largest)).phi()).all()


def test_a_long_float16_point_has_features_of_zero() -> None:
    features = PositiveFeatures(PROJECTIONS)(np.full((1, 3), 400, np.float16))
    assert features.features.dtype == np.float16
    assert np.array_equal(features.phi(), np.zeros((1, 6)))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("feature", "log_scale", "phi"),
    [
        (3.0, 0.0, 3.0),
        (3.0, -math.inf, 0.0),
        (3.0, -1e4, 0.0),
        (3.0, 1e4, math.inf),
        (-3.0, 1e4, -math.inf),
        (0.0, 1e4, math.nan),
        (0.0, 1.0, 0.0),
        (math.nan, 1.0, math.nan),
        (1.0, math.nan, math.nan),
    ],
)
def test_real_features_beyond_the_dtype_are_inf_and_warn_of_nothing(
    dtype: str, feature: float, log_scale: float, phi: float
) -> None:
    features = Features(np.array([[feature]], dtype), np.array([log_scale], dtype))
    assert features.phi().dtype == dtype
    assert np.array_equal(features.phi(), [[phi]], equal_nan=True)


def test_real_features_of_far_landmarks_warn_of_nothing() -> None:
    phi = GramFeatures().fit([[0.0], [40.0]])
    assert not np.isfinite(phi([[40.0]]).phi()).any()


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
}


@EACH_MAP
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_copies_and_pickles_are_the_same_map(
    make: Callable[[], Map], duplicate: Callable[[Any], Any]
) -> None:
    points = np.concatenate([K, X])
    for got, want in zip(duplicate(make())(points), make()(points), strict=True):
        assert np.array_equal(got, want)


def test_fitting_again_replaces_everything_and_failing_to_nothing() -> None:
    phi = GramFeatures().fit(K)
    assert phi.fit(X[:, :2]) is phi
    require_kernel(phi, X[:, :2], K[:, :2])
    with pytest.raises(ValueError, match="keys"):
        phi.fit([[math.nan, 1.0]])
    require_kernel(phi, X[:, :2], K[:, :2])


def test_the_queries_of_fit_do_not_matter() -> None:
    with_queries, without = GramFeatures().fit(K, X), GramFeatures().fit(K)
    assert np.array_equal(with_queries.factor_, without.factor_)
