"""One demonstration a step, in any order, any split of eta, any sharding: the same weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence import dual
from equivalence._arrays import Array
from equivalence.verify import oracle
from equivalence.verify.budgets import attention_budget
from equivalence.verify.cases import Case
from equivalence.verify.claim import Claim, Kind, Mutant
from equivalence.verify.compare import Comparison, compare
from equivalence.verify.dual_case import DualCase, see_dual
from equivalence.verify.implementation import Implementation

_ETA = 0.3


def check(impl: Implementation, case: Case) -> Iterator[Comparison]:
    """All steps against attention, every prefix against the definition, and the symmetries."""
    # There is one W for each query and step: those of the oracle's queries are enough.
    rows = case.rows
    x = see_dual(impl, case).at(rows)
    o = impl.attention(case.Q, case.K, case.V, scale=case.scale)[rows]
    attention = attention_budget(case.Q, case.K, case.V, case.s, case.u)[rows]
    # Every W is a sum of as many terms as one step on all would add, so the dual's budget holds.
    W_0 = impl.initial_weights(case.V[case.N :], x.Phi[case.N :], x.D)
    steps = list(impl.gradient_steps(W_0, case.V[: case.N], x.Phi[: case.N], x.D, _ETA))
    final = impl.predict(steps[-1] if steps else W_0, x.phi_q)
    yield compare("after all steps the prediction is o", final, o, attention + x.budget)
    yield _every_prefix(impl, case, x, [W_0, *steps])
    yield from _symmetries(impl, case, x, W_0, final)


def _every_prefix(
    impl: Implementation, case: Case, x: DualCase, weights: list[Array]
) -> Comparison:
    """After t steps the missing part of o is sum_{i > t} p_i v_i, neither more nor less."""
    number, row = case.arithmetic, int(case.rows[0])
    s = oracle.scale_of(number, case.scale, case.Q.shape[-1])
    q, k, v = (number.vectors(a) for a in (case.Q[row : row + 1], case.K, case.V))
    p = oracle.weights(number, q[0], k, s)
    terms = [[p_j * x for x in v_j] for p_j, v_j in zip(p, v, strict=True)]
    none = [number.number(0.0)] * len(v[0])
    want = [[number.sum(column) for column in zip(none, *terms[case.N :], strict=True)]]
    for term in terms[: case.N]:
        want.append([number.sum(pair) for pair in zip(want[-1], term, strict=True)])
    got = np.stack([impl.predict(W, x.phi_q)[0] for W in weights])
    return oracle.against(
        number, "after t steps sum_{i>t} p_i v_i is missing", got, want, x.budget[0]
    )


def _symmetries(
    impl: Implementation, case: Case, x: DualCase, W_0: Array, final: Array
) -> Iterator[Comparison]:
    V, Phi, D, N = case.V[: case.N], x.Phi[: case.N], x.D, case.N
    rng = case.rng("orders")
    both = x.budget + x.budget

    def predict_after(W: Array, tokens: npt.NDArray[np.intp], eta: float = _ETA) -> Array:
        steps: Callable[..., Iterator[Array]] = impl.gradient_steps
        for stepped in steps(W, V[tokens], Phi[tokens], D, eta):
            W = stepped
        return W

    shuffled = predict_after(W_0, rng.permutation(N))
    yield compare("the order does not matter", impl.predict(shuffled, x.phi_q), final, both)

    shards = np.array_split(rng.permutation(N), 3)
    total = W_0 + sum(predict_after(0 * W_0, shard) for shard in shards)
    yield compare("shards are added", impl.predict(total, x.phi_q), final, both)

    W = W_0
    for part in (0.5, 0.2, 0.3):
        slope = impl.gradient(V, Phi, D, _ETA)
        W = impl.gradient_step(W, slope, part * _ETA)
    yield compare("eta can be split", impl.predict(W, x.phi_q), final, both)


def _skips_first(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float = 1.0
) -> Iterator[Array]:
    for i, stepped in enumerate(dual.gradient_steps(W, values, features, D, eta)):
        yield W if i == 0 else W + stepped - _first(W, values, features, D, eta)


def _first(W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float) -> Array:
    return next(dual.gradient_steps(W, values, features, D, eta))


def _last_twice(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float = 1.0
) -> Iterator[Array]:
    previous = W
    for i, stepped in enumerate(dual.gradient_steps(W, values, features, D, eta)):
        yield stepped + (stepped - previous) if i == len(values) - 1 else stepped
        previous = stepped


def _momentum(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float = 1.0
) -> Iterator[Array]:
    previous, velocity = W, 0 * W
    for stepped in dual.gradient_steps(W, values, features, D, eta):
        velocity = 0.1 * velocity + (stepped - previous)
        previous = stepped
        W = W + velocity
        yield W


def _decays_weights(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float = 1.0
) -> Iterator[Array]:
    previous = W
    for stepped in dual.gradient_steps(W, values, features, D, eta):
        W = 0.99 * W + (stepped - previous)
        previous = stepped
        yield W


def _decays_rate(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float = 1.0
) -> Iterator[Array]:
    previous = W
    for i, stepped in enumerate(dual.gradient_steps(W, values, features, D, eta)):
        W = W + (stepped - previous) / (i + 1)
        previous = stepped
        yield W


def _least_squares(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float = 1.0
) -> Iterator[Array]:
    """Steps on sum_i |v_i - W phi_i|^2 / 2: the residual depends on W, so the order matters."""
    previous = W
    for i, stepped in enumerate(dual.gradient_steps(W, values, features, D, eta)):
        phi = features[i]
        W = W + (stepped - previous) - (W @ phi)[..., None] * phi / np.asarray(D)[..., None, None]
        previous = stepped
        yield W


def _running_normalizer(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float = 1.0
) -> Iterator[Array]:
    """Each step divides by the part of D of the tokens seen so far."""
    for i in range(len(values)):
        share = (i + 1) / len(values)
        one = slice(i, i + 1)
        W = dual.gradient_step(
            W, dual.gradient(values[one], features[one], np.asarray(D) * share, eta), eta
        )
        yield W


def _forgets_initial_weights(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float = 1.0
) -> Iterator[Array]:
    yield from dual.gradient_steps(0 * W, values, features, D, eta)


def _float32(
    W: Array, values: Array, features: Array, D: npt.ArrayLike, eta: float = 1.0
) -> Iterator[Array]:
    for stepped in dual.gradient_steps(W, values, features, D, eta):
        yield stepped.astype(np.float32).astype(stepped.dtype)


def _mutant(name: str, defect: str, steps: Any) -> Mutant:
    return Mutant(name, defect, {"gradient_steps": steps})


claim = Claim(
    stem="demonstrations_as_steps",
    statement="One demonstration a step, in any order, any split of eta and any sharding whose "
    "sums are added, gives the same W_1; after t of N steps exactly sum_{i>t} p_i v_i is missing.",
    kind=Kind.EXACT,
    needs=("attention", "GramFeatures", "gradient_steps"),
    check=check,
    mutants=(
        _mutant("skips_first", "the first demonstration is not used", _skips_first),
        _mutant("last_twice", "the last demonstration is used twice", _last_twice),
        _mutant("momentum", "steps carry a momentum of 0.1", _momentum),
        _mutant("decays_weights", "weights decay by 1 % a step", _decays_weights),
        _mutant("decays_rate", "the learning rate falls as 1/t", _decays_rate),
        _mutant("least_squares", "steps on the squared error: they do not commute", _least_squares),
        _mutant("running_normalizer", "each step divides by a running D", _running_normalizer),
        _mutant("forgets_W_0", "the steps start from zero", _forgets_initial_weights),
        _mutant("float32_weights", "weights are kept in float32", _float32),
    ),
    assumptions="As one_gradient_step; the gradient does not depend on W, so steps commute. The "
    "error after t steps is not monotone in t.",
    budget="the dual's budget of one_gradient_step: it holds for every subset of the tokens.",
    code="equivalence/dual.py",
    on_heads=True,
)
