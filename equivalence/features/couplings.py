"""How n projections of N(0, I_d) are drawn together: each one normal, their joint law a coupling.

A coupling changes no mean of a sum over projections, only its variance: see
equivalence/features/variance.py for what each one gains.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from equivalence._arrays import Array, as_integer

Coupling = Callable[[int, int, np.random.Generator], Array]

# Sobol' points are multiples of 2^-30; the middles of their cells avoid the quantile of zero.
_SOBOL_BITS = 30
_SOBOL_DIMENSIONS = 21201


def iid(n: int, d: int, rng: np.random.Generator) -> Array:
    """Independent draws, (n, d).

    >>> iid(2, 3, np.random.default_rng(0)).shape
    (2, 3)
    """
    return rng.standard_normal((n, d))


def orthogonal(n: int, d: int, rng: np.random.Generator) -> Array:
    """Blocks of d directions at right angles, Haar distributed, with independent chi_d norms.

    The last block may be cut. Source: Yu et al. 2016; proofs/orthogonal_features.py.

    >>> W = orthogonal(2, 3, np.random.default_rng(0))
    >>> bool(abs(W[0] @ W[1]) < 1e-12)
    True
    """
    return _with_chi_norms(haar(-(-n // d), d, rng), n, rng)


def simplex(n: int, d: int, rng: np.random.Generator) -> Array:
    """Blocks of d directions with pairwise cosine -1/(d-1), rotated by Haar, with chi_d norms.

    They are the corners of a regular simplex around 0, which spans d-1 dimensions; in one
    dimension a block is one draw. Source: Reid et al. 2023; proofs/simplex_features.py.

    >>> W = simplex(2, 3, np.random.default_rng(0))
    >>> U = W / np.linalg.norm(W, axis=1, keepdims=True)
    >>> round(float(U[0] @ U[1]), 12)
    -0.5
    """
    corners = np.eye(d) if d == 1 else (np.eye(d) - 1 / d) * np.sqrt(d / (d - 1))
    return _with_chi_norms(corners @ haar(-(-n // d), d, rng), n, rng)


def sobol(n: int, d: int, rng: np.random.Generator) -> Array:
    """The first n of a scrambled Sobol' sequence through the normal quantile, (n, d).

    Each point is normal up to the sequence's grid of 2^-30, on whose cells' middles it lies.
    Raises ValueError for d beyond 21201, the sequence's largest dimension.

    >>> sobol(5, 2, np.random.default_rng(0)).shape
    (5, 2)
    """
    from scipy.special import ndtri
    from scipy.stats import qmc

    if d > _SOBOL_DIMENSIONS:
        raise ValueError(f"dim is {d}; expected at most {_SOBOL_DIMENSIONS} for coupling 'sobol'")
    seed = rng.integers(2**63)
    points = qmc.Sobol(d, scramble=True, bits=_SOBOL_BITS, seed=int(seed))
    cells = points.random_base2((n - 1).bit_length())[:n]
    W: Array = ndtri(cells + 2.0 ** -(_SOBOL_BITS + 1))
    return W


COUPLINGS: dict[str, Coupling] = {
    "iid": iid,
    "orthogonal": orthogonal,
    "simplex": simplex,
    "sobol": sobol,
}


def sample_projections(
    n: int,
    d: int,
    *,
    rng: np.random.Generator,
    coupling: str = "iid",
    antithetic: bool = False,
) -> Array:
    """Draw n projections of N(0, I_d) together, float64 (n, d).

    Parameters
    ----------
    n, d : int
        How many, and of how many coordinates.
    rng : numpy.random.Generator
        The only source of randomness.
    coupling : str
        'iid', 'orthogonal', 'simplex' or 'sobol'.
    antithetic : bool
        Draw n/2 of them; the second half are their negatives, in the same order.

    Raises
    ------
    ValueError
        Sizes below 1, an unknown coupling, or an odd n of antithetic projections.
    TypeError
        Sizes that are not integers, an `antithetic` that is not a boolean, or an `rng` that is not
        a numpy Generator.

    Examples
    --------
    >>> W = sample_projections(4, 3, rng=np.random.default_rng(0), antithetic=True)
    >>> bool((W[:2] == -W[2:]).all())
    True
    """
    check_draw(n, d, coupling, antithetic)
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"rng is {rng!r}; expected a numpy.random.Generator")
    draw = COUPLINGS[coupling]
    if not antithetic:
        return draw(n, d, rng)
    W = draw(n // 2, d, rng)
    return np.concatenate([W, -W])


def check_draw(n: int, d: int, coupling: str, antithetic: bool) -> None:
    """Refuse by name what `sample_projections` cannot draw; the sizes go by their public names.

    >>> check_draw(3, 2, "iid", True)
    Traceback (most recent call last):
    ValueError: n_features is 3; expected pairs of antithetic projections, an even number
    """
    for name, size in (("dim", d), ("n_features", n)):
        if as_integer(name, size) < 1:
            raise ValueError(f"{name} is {size!r}; expected at least 1")
    if not isinstance(antithetic, bool | np.bool_):
        raise TypeError(f"antithetic is {antithetic!r}; expected True or False")
    if not isinstance(coupling, str) or coupling not in COUPLINGS:
        raise ValueError(f"coupling is {coupling!r}; expected one of {', '.join(COUPLINGS)}")
    if antithetic and n % 2:
        raise ValueError(
            f"n_features is {n!r}; expected pairs of antithetic projections, an even number"
        )


def is_antithetic(projections: Array) -> bool:
    """Whether the second half of the projections is the negative of the first.

    >>> is_antithetic(np.array([[1.0], [-1.0]]))
    True
    """
    half, odd = divmod(len(projections), 2)
    return not odd and np.array_equal(projections[:half], -projections[half:])


def haar(blocks: int, d: int, rng: np.random.Generator) -> Array:
    """Orthogonal matrices (blocks, d, d), uniform on the orthogonal group.

    QR of a normal matrix is Haar only if R has a positive diagonal, which LAPACK's has not: Q
    times diag(sign R) is the unique such Q (Mezzadri 2007).

    >>> Q = haar(1, 2, np.random.default_rng(0))[0]
    >>> bool(abs(Q @ Q.T - np.eye(2)).max() < 1e-12)
    True
    """
    Q, R = np.linalg.qr(rng.standard_normal((blocks, d, d)))
    signs = np.copysign(1.0, np.diagonal(R, axis1=-2, axis2=-1))
    directions: Array = Q * signs[:, None, :]
    return directions


def _with_chi_norms(directions: Array, n: int, rng: np.random.Generator) -> Array:
    """The first n directions of the blocks (..., d, d), with norms of their own."""
    d = directions.shape[-1]
    norms = np.sqrt(rng.chisquare(d, size=(n, 1)))
    return directions.reshape(-1, d)[:n] * norms
