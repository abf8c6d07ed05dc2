"""What the claims about couplings share: exact variances, quadrature, and the laws of projections.

Variances are compared as n e^{-t} Var / exp(2 x.y), t = |x+y|^2 or |x-y|^2: between 0 and n.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
from scipy import special

from equivalence._arrays import Array
from equivalence.features.base import FeatureMap
from equivalence.verify import oracle
from equivalence.verify.budgets import Budget, gamma
from equivalence.verify.cases import Case
from equivalence.verify.compare import Comparison
from equivalence.verify.dual_case import scaled
from equivalence.verify.laws import LawTest, distribution_test, neighbours_test, variance_test
from equivalence.verify.oracle import Arithmetic, Number
from equivalence.verify.quadrature import discretisation_error, gaussian_nodes

ALPHA = 1e-9
N_BLOCKS = 8000
U = 2.0**-53
_NEAR = 8.0


def pairs(case: Case, sign: int) -> Iterator[tuple[Array, Array, Number]]:
    """Queries x, keys y and t = |x + sign y|^2, of the case's first rows."""
    Q, K = scaled(case)
    number = case.arithmetic
    for i, j in zip(case.rows, range(len(K)), strict=False):
        x, y = near(Q[i : i + 1], K[j : j + 1])
        p, q = number.vectors(x)[0], number.vectors(sign * y)[0]
        yield x, y, number.sum((a + b) * (a + b) for a, b in zip(p, q, strict=True))


def near(x: Array, y: Array) -> tuple[Array, Array]:
    """Points, in float32 halved until |x|^2 + |y|^2 <= 8: further out float32 tells nothing.

    >>> near(np.array([[4.0]], np.float32), np.array([[0.0]], np.float32))[0].item()
    2.0
    """
    if x.dtype == np.float32:
        while (x**2).sum(axis=-1).max() + (y**2).sum(axis=-1).max() > _NEAR:
            x, y = x / 2, y / 2
    return x, y


@cache
def partners(n: int, d: int) -> float:
    """How many others are in a projection's block of d, counted one by one."""
    return sum(i != j and i // d == j // d for i in range(n) for j in range(n)) / n


def exact_variance(number: Arithmetic, t: Number, p: float, c: Number, *, pair: bool) -> Number:
    """e^{-t} (E T^2 - 1 + p c), given e^{-t} c; E T^2 = e^t, or cosh t of a `pair` or a cosine."""
    one = number.number(1.0)
    rest = one - number.exp(-t)
    own = rest * rest / number.number(2.0) if pair else rest
    return own + number.number(p) * c


def orthogonal_c(number: Arithmetic, t: Number, d: int, sign: int) -> Number:
    """e^{-t} c: of positive features (sign 1) e^{-2t} 1F1(d; d/2; t/2) - e^{-t}, or at -t."""
    half = t / number.number(2.0)
    if sign > 0:
        M = number.exp(-t - t) * number.kummer(float(d), d / 2, half)
    else:
        M = number.kummer(float(d), d / 2, -half)
    return M - number.exp(-t)


def simplex_c(number: Arithmetic, t: Number, d: int, sign: int, *, pair: bool) -> Number:
    """e^{-t} c at pairwise cosine rho = -1/(d-1), d > 1; of a `pair` the mean with that at -rho.

    Antithetic pairs and cosines, which are even in w, are such pairs. E 1F1(d; d/2; z (1 + rho B))
    by Taylor's series in rho, whose coefficients are z^j/j! (d)_j/(d/2)_j 1F1(d + j; d/2 + j; z)
    and E B^j, B = sin(a) with density sin(a)^(d-1). Its terms are below t^j/j! and end where that
    is nothing. In floats it cancels like e^{|rho| t} for cosines.
    """
    half = t / number.number(2.0)
    z = half if sign > 0 else -half
    last = int(3 * float(t)) + 26
    waves = _sine_integrals(number, d + last)
    terms, factor = [], number.number(1.0)
    for j in range(last):
        if not (pair and j % 2):
            terms.append(factor * waves[d - 1 + j] * number.kummer(float(d + j), d / 2 + j, z))
        grown = number.number(float(d + j)) / number.number((d / 2 + j) * (j + 1))
        factor = -factor * grown * z / number.number(float(d - 1))
    mean = number.sum(terms) / waves[d - 1]
    return (number.exp(-t - t) * mean if sign > 0 else mean) - number.exp(-t)


def _sine_integrals(number: Arithmetic, n: int) -> list[Number]:
    """The integrals of sin(a)^k over (0, pi), k < n, by Wallis' recurrence."""
    found = [number.pi(), number.number(2.0)]
    for k in range(2, n):
        found.append(found[k - 2] * number.number(k - 1.0) / number.number(float(k)))
    return found


def variance_budget(log_variance: Array, t: float, n: int, d: int, p: float, u: float) -> Budget:
    """The error of n e^{-t} times the relative variance, from the logarithm that the code gives."""
    size = abs(log_variance.astype(np.float64)) + t + math.log(n) + 1
    relative = math.expm1(gamma(d + 8, U) * (t + 4)) + np.expm1(4 * u * size)
    terms = t + 12 * math.sqrt(t) + 60
    # Logarithms of Poisson probabilities are sums of numbers up to k log k, k below `terms`.
    poisson = gamma(1, U) * 6 * terms * (math.log(terms) + 1)
    return Budget(
        relative * n * np.exp(log_variance.astype(np.float64) - t) + (p + 2) * poisson,
        "t errs by gamma_(d+2), the logarithm by u times its size, each Poisson probability of c "
        "by 6 k log k u",
        u,
    )


def quadrature_degree(t: float, scale: float) -> tuple[int, float]:
    """N with series terms from degree 2N on below rounding, and a bound of what they add up to.

    As (d)_k / (d/2)_k <= 2^k, the term of degree k is at most t^k / k!, which is summed as if
    geometric; Gauss's rules and the midpoints take at most as much of it again.
    """
    N = 4
    while True:
        K = 2 * N
        term = math.exp(K * math.log(t) - math.lgamma(K + 1)) if t else 0.0
        left = 2 * scale * term / (1 - t / (K + 1)) if t < K + 1 else math.inf
        if left < U:
            return N, left
        N += 2


def orthogonal_mean(t: float, d: int, wave: Callable[[Array], Array], N: int) -> Array:
    """E wave(R_1 a_1 r) wave(R_2 a_2 r), r^2 = t, for chi_d norms R and orthogonal directions.

    a_1, a_2 are two coordinates of a uniform direction: a point of the disc at radius rho,
    rho^2 ~ Beta(1, (d-2)/2), and uniform angle. Exact for even waves' terms up to degree 2N - 1.
    """
    R, w_R, a_1, a_2, w_a = _nodes(d, N)
    F_1, F_2 = (wave(np.multiply.outer(a, R) * math.sqrt(t)) @ w_R for a in (a_1, a_2))
    mean: Array = w_a @ (F_1 * F_2)
    return mean


@cache
def _nodes(d: int, N: int) -> tuple[Array, ...]:
    v, w = special.roots_genlaguerre(N, d / 2 - 1)
    if d == 2:
        square, w_square = np.ones(1), np.ones(1)
    else:
        x, w_square = special.roots_jacobi(N, (d - 4) / 2, 0)
        square = (1 + x) / 2
    angle = (np.arange(N) + 0.5) * (math.pi / 2 / N)
    rho = np.sqrt(square)[:, None]
    weights = np.repeat(w_square / w_square.sum() / N, N)
    a_1, a_2 = (rho * np.cos(angle)).ravel(), (rho * np.sin(angle)).ravel()
    return np.sqrt(2 * v), w / w.sum(), a_1, a_2, weights


def quadrature_budget(t: float, N: int, left: float, size: float) -> Budget:
    """The error of `orthogonal_mean`, times what it is multiplied with, of that size."""
    return Budget(
        np.full((1, 1), left + 64 * N * U * (t + 1) * size),
        f"series terms from degree {2 * N} on; Gauss's nodes, eigenvalues of a Jacobi matrix of "
        "norm 4N, err by 8u times that, the integrand by t times the nodes",
        U,
    )


def log_products(phi: FeatureMap, x: Array, y: Array) -> Array:
    """log(phi_w(x) phi_w(y)) a projection w: the products of two rows' features, times m.

    >>> from equivalence.features import PositiveFeatures
    >>> log_products(PositiveFeatures([[0.0]]), np.array([[1.0]]), np.array([[1.0]])).item()
    -1.0
    """
    (f, a), (g, b) = ([part.astype(np.float64) for part in phi(p)] for p in (x, y))
    with np.errstate(divide="ignore"):
        log_T: Array = np.log(f) + np.log(g) + (a + b)[:, None] + math.log(f.shape[-1])
    return log_T


def exponent_error(W: Array, x: Array, y: Array, u: float) -> Array:
    """The error of log T at each projection, that of the rounded direction of w included.

    Beside the dot products: one difference in a feature, two and a logarithm in its log scale.
    log2 e, where exp2 stands for exp, is two roundings of a product and of the log scale.
    """
    x, y, W = (a.astype(np.float64) for a in (x, y, W))
    size = abs(W) @ (abs(x) + abs(y))[0]
    shifts = size.max() + float((x**2 + y**2).sum()) + math.log(len(W)) + 1
    error: Array = gamma(2 * x.shape[1] + 8, u) * size + 7 * u * shifts + 32 * u
    return error


def moment_along(
    case: Case,
    x: Array,
    y: Array,
    what: str,
    power: int,
    log_exact: Number,
    log_T_at: Callable[[Array], tuple[Array, Array]],
    because: str,
) -> Comparison:
    """E T^power, T = exp(w.(x + y) - (|x|^2 + |y|^2)/2), by the trapezoidal rule along x + y.

    Both sides times exp(-shift). `log_T_at` gives log T at each projection, and its error.
    """
    z = (x + y)[0].astype(np.float64)
    length = float(np.linalg.norm(z))
    nodes, weights = gaussian_nodes(centre=power * length)
    log_T, log_error = log_T_at((nodes[:, None] * (z / length)).astype(x.dtype))
    shift = float(log_exact)
    norms = float((x.astype(np.float64) ** 2 + y.astype(np.float64) ** 2).sum())
    terms = weights * np.exp(power * (nodes * length - norms / 2) - shift)
    rounded = log_error + 2 * case.u * (abs(nodes) * length + norms + abs(shift))
    # A node whose feature underflowed beside the row's largest is lost whole.
    lost = np.isneginf(log_T)
    error = np.where(lost, 1.0, np.expm1(power * rounded))
    bound = (terms * error).sum() + gamma(len(nodes) + 4, case.u) * terms.sum()
    budget = Budget(
        np.full((1, 1), bound + 2 * discretisation_error()),
        because + "; trapezoidal rule, 2 exp(-2 pi^2/h^2) and tails beyond 9 standard deviations",
        case.u,
    )
    got = np.full((1, 1), (weights * np.exp(power * log_T - shift)).sum())
    number = case.arithmetic
    want = [[number.exp(log_exact - number.number(shift))]]
    return oracle.against(number, f"{what} by quadrature along x + y", got, want, budget)


def projection_laws(
    draw: Callable[..., Array], rng: np.random.Generator, what: str, **options: object
) -> Iterator[LawTest]:
    """Blocks of d = 3 projections: each one N(0, I), norms independent, blocks independent.

    Q of a QR factorisation without the sign fix has a first entry that is never positive: its law
    is 1/2 away, and 0.31 where a simplex is turned by such a Q. Norms of the rows of the matrix
    that was factored raise the variance of the first coordinate by (2d - 2)/(d (d + 2)), 4/15; a
    norm sqrt(d) instead of chi_d has a step of 0.6; one norm for all of a block moves the law of
    |w_1|^2 + |w_2|^2 by 0.128.
    """
    d = 3
    W = draw(d * N_BLOCKS, d, rng=rng, **options).reshape(N_BLOCKS, d, d)
    where = f"{what}, d={d}, {N_BLOCKS} blocks"
    first = W[:, 0, 0]
    anywhere = W[:, 2] @ np.array([2.0, -1.0, 2.0]) / 3
    yield distribution_test(
        f"law of the first coordinate: {where}", first, special.ndtr, alpha=ALPHA, gap=0.3
    )
    yield variance_test(
        f"variance of the first coordinate: {where}", first**2, N_BLOCKS, alpha=ALPHA, ratio=1.25
    )
    yield distribution_test(
        f"law along one direction: {where}", anywhere, special.ndtr, alpha=ALPHA, gap=0.08
    )
    squares = (W**2).sum(axis=-1)
    yield distribution_test(
        f"law of a norm: {where}",
        squares[:, 0],
        lambda q: special.chdtr(d, q),
        alpha=ALPHA,
        gap=0.4,
    )
    yield distribution_test(
        f"independence of two norms: {where}",
        squares[:, 0] + squares[:, 1],
        lambda q: special.chdtr(2 * d, q),
        alpha=ALPHA,
        gap=0.12,
    )
    yield neighbours_test(
        f"independence of neighbouring blocks: {where}", first, alpha=ALPHA, ratio=1.4
    )


def cosines(W: Array) -> Array:
    """The cosines of the angles between projections, each with each, in blocks of d."""
    U = W / np.linalg.norm(W, axis=1, keepdims=True)
    same = np.subtract.outer(*[np.arange(len(W)) // W.shape[1]] * 2) == 0
    off = same & ~np.eye(len(W), dtype=bool)
    found: Array = (U @ U.T)[off]
    return found


def cosine_budget(d: int) -> Budget:
    """Householder's Q errs by sqrt(d) gamma_(10 d^2) in norm (Higham 2002, thm 19.4)."""
    return Budget(
        np.array(4 * math.sqrt(d) * gamma(10 * d * d, U)),
        "Householder's Q errs by sqrt(d) gamma_(10 d^2) (Higham 2002, thm 19.4); two of them, "
        "their product and their norms",
        U,
    )
