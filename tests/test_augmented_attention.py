"""The proof's own expressions against the code, the maps, and what a map may and may not do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from equivalence import OneStepRegressor, attention, dual
from equivalence.modifications import augmented_attention, augmented_pairs, linear, mlp, residual
from equivalence.verify.budgets import Budget, attention_budget, sum_budget
from equivalence.verify.cases import Case, make_case
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import see_dual
from equivalence.verify.implementation import OURS
from equivalence.verify.strategies import cases
from proofs import load

U = 2.0**-53
PROOF = load("augmented_attention")


def evaluated(name: str, arrays: dict[str, Any]) -> np.ndarray:
    given = {key: np.asarray(value).tolist() for key, value in arrays.items()}
    return np.array(PROOF.evaluate(name, {key: given[key] for key in PROOF.arguments(name)}), float)


def test_the_code_computes_the_expressions_of_the_proof() -> None:
    rng, eta, N, T, c, m = np.random.default_rng(0), 0.3, 3, 2, 2, 4
    V, K, W = (rng.standard_normal(shape) for shape in ((N + T, c), (N + T, m), (c, m)))
    phi_q = rng.random(m) + 0.5
    # Any feature map will do: here a positive one, of the mapped keys.
    Psi, G = augmented_pairs(K, V, key_map=lambda k: np.exp(k / 4), value_map=lambda v: v**3)
    D = dual.normalizer(Psi, phi_q[None])[0]
    slope = dual.gradient(G[:N], Psi[:N], D, eta)
    W_1 = dual.gradient_step(dual.initial_weights(G[N:], Psi[N:], D), slope, eta)
    x = {
        "G_N": G[:N], "G_T": G[N:], "Psi_N": Psi[:N], "Psi_T": Psi[N:], "phi_q": phi_q, "W": W,
        "eta": eta, "S_N": Psi[:N], "S_T": Psi[N:], "kappa_q": phi_q,
    }  # fmt: skip
    size = abs(G).T @ Psi / D
    depth = 2 * (N + T + m + c) + 8
    weights, output = sum_budget(size[..., None], depth, U), sum_budget(size * phi_q, depth, U)
    prediction = dual.predict(W_1, phi_q)
    for name, got, budget in (
        ("D", D, sum_budget(Psi * phi_q, depth, U, axis=(0, 1))),
        ("L", dual.loss(W, G[:N], Psi[:N], D, eta),
         sum_budget((size * abs(W) / eta).reshape(-1), depth, U)),
        ("gradient", slope, weights.times(1 / eta)),
        ("W_1", W_1, weights),
        ("prediction", prediction, output),
        ("o_kernel", prediction, output),
    ):  # fmt: skip
        compare(name, got, evaluated(name, x), budget).require()


def test_the_layer_computes_the_sums_of_the_proof() -> None:
    case = make_case(3, n_q=1, n=4, d=2, c=2, scale=1.0)
    rng = np.random.default_rng(1)
    A, a, H = (rng.standard_normal(shape) for shape in ((2, 2), 2, (4, 2)))
    x = {"K": case.K, "H": H, "q": case.Q[0], "v": case.V, "A": A, "a": a}
    inner = residual(lambda _: H)
    # Keys k + h and values A v + a are rounded once or thrice more than attention's own inputs.
    keys, values = abs(case.K) + abs(H), abs(case.V) @ abs(A).T + abs(a)
    moved = np.expm1(8 * U * (abs(case.Q) @ keys.T).max()) + 8 * U
    for name, maps, size in (
        ("o", {}, abs(case.V)),
        ("o_residual", {"key_map": inner}, abs(case.V)),
        ("o_affine", {"key_map": inner, "value_map": linear(A, a)}, values),
    ):
        layer = augmented_attention(case.Q, case.K, case.V, scale=1.0, **maps)
        want = [float(evaluated(name, x | {"r": r + 1})) for r in range(2)]
        budget = attention_budget(case.Q, keys * np.sign(case.K + H), size, 1.0, U)[0]
        own = Budget(moved * size.max(axis=0), "keys and values are rounded", U)
        compare(name, layer[0], want, budget.times(2) + own).require()


def test_kernels_of_mapped_keys_are_those_of_the_proof() -> None:
    rng = np.random.default_rng(2)
    K, H, q, B = (rng.standard_normal(shape) for shape in ((3, 2), (3, 2), 2, (2, 2)))
    x = {"K": K, "H": H, "q": q, "B": B}
    for name, key_map, size in (
        ("kappa_linear", linear(B), abs(K) @ abs(B).T @ abs(q)),
        ("kappa_residual", residual(lambda _: H), (abs(K) + abs(H)) @ abs(q)),
    ):
        mapped, _ = augmented_pairs(K, K, key_map=key_map)
        got, want = mapped @ q, [np.log(evaluated(name, x | {"j": j + 1})) for j in range(3)]
        # The proof's exponential is rounded, and its logarithm.
        budget = sum_budget(size[:, None], 8, U) + Budget(np.full(3, 4 * U), "exp and log", U)
        compare(name, got, want, budget).require()


@given(case=cases())
def test_the_regressor_fitted_to_augmented_pairs_predicts_the_layer(case: Case) -> None:
    maps: dict[str, Any] = {"key_map": np.tanh, "value_map": lambda v: np.maximum(v, 0) + v}
    K, V = augmented_pairs(case.K, case.V, **maps)
    model = OneStepRegressor(scale=case.scale).fit(K, V, n_demonstrations=case.N)
    layer = augmented_attention(case.Q, case.K, case.V, scale=case.scale, **maps)
    pairs = Case(case.label, case.seed, case.Q, K, V, case.N, case.scale)
    budget = attention_budget(case.Q, K, V, case.s, case.u) + see_dual(OURS, pairs).budget
    compare("one step on augmented pairs", model.predict(case.Q), layer, budget).require()


def test_identity_maps_and_none_give_attention() -> None:
    case = make_case(4)
    o = attention(case.Q, case.K, case.V)
    identity = linear(np.eye(3)), linear(np.eye(2))
    for key_map, value_map in ((None, None), identity, (lambda k: k, lambda v: v)):
        layer = augmented_attention(case.Q, case.K, case.V, key_map=key_map, value_map=value_map)
        assert np.array_equal(layer, o)


def test_maps_may_change_both_dimensions() -> None:
    case = make_case(4)
    key, value = case.K[:, :1], np.zeros((5, 0))
    layer = augmented_attention(
        case.Q, key, value, key_map=lambda k: k * [1.0, 2.0, 3.0],
        value_map=lambda v: np.ones((len(v), 4)),
    )  # fmt: skip
    assert layer.shape == (3, 4)
    assert (abs(layer - 1) <= attention_budget(case.Q, case.K, np.ones((5, 4)), 1, U).bound).all()


def test_one_vector_added_by_the_key_map_changes_nothing() -> None:
    Q, K, V = np.ones((1, 1)), np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]])
    moved = augmented_attention(Q, K, V, key_map=lambda k: k + 4)
    assert np.array_equal(moved, attention(Q, K, V))


def test_the_maps_by_hand() -> None:
    x = np.array([[1.0, 2.0], [-3.0, 0.5]])
    assert linear([[1.0, -1.0]])(x).tolist() == [[-1.0], [-3.5]]
    assert linear([[1.0, -1.0], [0.0, 2.0]], [10.0, 20.0])(x).tolist() == [[9.0, 24.0], [6.5, 21.0]]
    two_units = mlp([[1.0, 0.0], [-1.0, 0.0]], [0.0, -1.0], [[2.0, 5.0]], [0.5])
    assert two_units(x).tolist() == [[2.5], [10.5]]
    assert residual(linear([[0.0, 1.0], [1.0, 0.0]]))(x).tolist() == [[3.0, 3.0], [-2.5, -2.5]]
    assert residual(lambda y: (2 * y).tolist())(x).tolist() == (3 * x).tolist()


def test_the_maps_compute_in_the_dtype_of_their_argument() -> None:
    weights = [np.ones((2, 1)), np.ones(2), np.ones((1, 2)), np.ones(1)]
    for dtype, computed in (("float64", "float64"), ("float32", "float32"), ("float16", "float32")):
        x = np.ones((3, 1), dtype)
        assert linear(*weights[:2])(x).dtype == computed
        assert mlp(*weights)(x).dtype == computed
        assert residual(mlp(*weights))(x).dtype == computed


def test_a_map_sees_float16_as_float32_and_the_layer_returns_float16() -> None:
    seen = []

    def note(x: np.ndarray) -> np.ndarray:
        seen.append(x.dtype)
        return x.astype(np.float64)

    half = np.ones((2, 1), np.float16)
    layer = augmented_attention(half, half, half, key_map=note, value_map=note)
    assert seen == [np.float32, np.float32]
    assert layer.dtype == np.float16


def test_a_map_cannot_write_into_the_inputs() -> None:
    def writes(x: np.ndarray) -> np.ndarray:
        x += 1
        return x

    V = np.ones((2, 1))
    with pytest.raises(ValueError, match="read-only"):
        augmented_attention(V, V, V, value_map=writes)
    assert (V == 1).all()
    assert V.flags.writeable


ONE = np.ones((1, 1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"value_map": 2}, TypeError, "value_map is 2; expected a callable, or None"),
        ({"key_map": "k"}, TypeError, "key_map is 'k'; expected a callable"),
        (
            {"value_map": lambda v: v[0]},
            ValueError,
            r"value_map\(value\) has shape \(1,\); expected",
        ),
        ({"key_map": lambda k: k[:0]}, ValueError, r"key_map\(key\) has shape \(0, 1\); expected"),
        ({"key_map": lambda k: k * 1j}, TypeError, r"key_map\(key\) has dtype complex128"),
        ({"value_map": lambda v: [[1.0], [2.0, 3.0]]}, ValueError, r"value_map\(value\) is no arr"),
        ({"key_map": lambda k: np.ones((1, 2))}, ValueError, "key has shape"),
        ({"key": [[1.0], [2.0]]}, ValueError, "value has shape"),
        ({"value": [1.0]}, ValueError, "value has shape"),
        ({"key": [1.0]}, ValueError, "key has shape"),
    ],
)
def test_bad_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    options = {"query": ONE, "key": ONE, "value": ONE} | arguments
    with pytest.raises(error, match=message):
        augmented_attention(**options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: linear([1.0]), ValueError, "A has shape"),
        (lambda: linear([["x"]]), TypeError, "A has dtype"),
        (
            lambda: linear(np.ones((2, 1)), [1.0]),
            ValueError,
            r"a has shape \(1,\); expected \(2,\)",
        ),
        (lambda: linear(np.ones((2, 1)), np.ones((2, 2))), ValueError, "a has shape"),
        (lambda: linear(np.ones((2, 1)))(np.ones((3, 2))), ValueError, "x has shape"),
        (lambda: mlp(ONE, 0.0, np.ones((1, 2)))(ONE), ValueError, "x has shape"),
    ],
)
def test_bad_arguments_of_the_maps_are_named(
    make: Callable[[], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()
