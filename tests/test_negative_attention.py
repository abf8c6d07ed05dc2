"""The proof's own expressions against the code; given sets, lowest scores, ties and jumps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equivalence import attention, attention_weights, dual
from equivalence.losses import info_nce_gradient
from equivalence.modifications import lowest_score_tokens, negative_attention, negative_labels
from equivalence.verify.budgets import attention_budget, gamma, sum_budget
from equivalence.verify.cases import Case, make_case
from equivalence.verify.compare import compare
from equivalence.verify.strategies import cases
from proofs import load

U = 2.0**-53
PROOF = load("negative_attention")


def evaluated(name: str, arrays: dict[str, np.ndarray], **numbers: float) -> np.ndarray:
    given = numbers | {key: value.tolist() for key, value in arrays.items()}
    return np.array(PROOF.evaluate(name, {key: given[key] for key in PROOF.arguments(name)}), float)


def some_sets(n: int) -> np.ndarray:
    """Sets of every size from 0 to n - 1, the smallest first."""
    return np.tri(n, n, -1, dtype=bool)


@pytest.mark.parametrize(("N", "T", "c", "m"), [(1, 1, 2, 3), (4, 2, 3, 2)])
def test_the_code_computes_the_expressions_of_the_proof(N: int, T: int, c: int, m: int) -> None:
    rng, eta, beta = np.random.default_rng([N, T, c, m]), 0.3, 0.4
    V, Phi = rng.standard_normal((N + T, c)), rng.random((N + T, m)) + 0.5
    W, phi_q = rng.standard_normal((c, m)), rng.random(m) + 0.5
    sets = some_sets(N)
    D = dual.normalizer(Phi, phi_q[None])[0]
    labels = negative_labels(V[:N], beta=beta, negatives=sets)
    slope = dual.gradient(labels, Phi[:N], D, eta)
    W_1 = dual.gradient_step(dual.initial_weights(V[N:], Phi[N:], D), slope, eta)
    x = {
        "V_N": V[:N], "V_T": V[N:], "Phi_N": Phi[:N], "Phi_T": Phi[N:], "phi_q": phi_q, "W": W,
        "M": sets / np.maximum(1, sets.sum(axis=1, keepdims=True)),
    }  # fmt: skip
    largest = abs(V) + beta * abs(V).max(axis=0)
    size = largest.T @ Phi / D
    # As in one_gradient_step, and the mean of N others; 1/|N(i)| is rounded on the other side too.
    depth = 2 * (N + T + m + c) + N + 12
    weights, output = sum_budget(size[..., None], depth, U), sum_budget(size * phi_q, depth, U)
    total = sum_budget((size * abs(W)).reshape(-1), depth, U).times(1 / eta)
    for name, got, budget in (
        ("labels", labels, sum_budget(largest[:N, :, None], depth, U)),
        ("L_beta", dual.loss(W, labels, Phi[:N], D, eta), total),
        ("gradient", slope, weights.times(1 / eta)),
        ("W_1", W_1, weights),
        ("prediction", dual.predict(W_1, phi_q), output),
    ):
        compare(name, got, evaluated(name, x, eta=eta, beta=beta), budget).require()


def test_the_layer_computes_the_sums_of_the_proof() -> None:
    case = make_case(3, n_q=1, n=6, d=3, c=1, N=6)
    sets, one = np.roll(some_sets(6), 1, axis=0) | np.eye(6, dtype=bool), np.arange(6) < 4
    kernel = np.exp(case.s * case.K @ case.Q[0])
    x = {
        "p": attention_weights(case.Q, case.K)[0], "kappa": kernel, "v": case.V[:, 0],
        "S": sets.astype(float), "s": one.astype(float),
    }  # fmt: skip
    size = abs(case.V) + abs(case.V).max()
    budget = attention_budget(case.Q, case.K, size, case.s, case.u)[0, 0].times(2)
    for name, beta, negatives in (
        ("o_sets", 0.4, sets),
        ("o_one_set", 0.4, one[None]),
        ("o_centred", 1.0, np.ones((1, 6), bool)),
        ("o", 0.0, sets),
    ):
        layer = negative_attention(case.Q, case.K, case.V, beta=beta, negatives=negatives)
        compare(name, layer.item(), evaluated(name, x, beta=beta), budget).require()


@pytest.mark.parametrize("lower", [0, 1, 2])
def test_the_output_jumps_where_scores_cross_by_what_the_proof_says(lower: int) -> None:
    """Scores x and -x cross at 0; some others are always lower, that of the last token is high."""
    K = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0], [0.0, -2.0]])[: 2 + lower]
    K = np.concatenate([K, [[0.0, 3.0]]])
    V = np.array([[2.0], [5.0], [11.0], [-7.0], [3.0]])[: len(K)]
    N, r, tiny = 2 + lower, lower + 1, 2.0**-60
    Q = np.array([[-tiny, 1.0], [0.0, 1.0], [tiny, 1.0]])
    before, at, after = negative_attention(
        Q, K, V, beta=0.5, n_negatives=r, n_demonstrations=N, scale=1.0
    )
    # The tie goes to the earlier token 0: the output is continuous from the left.
    size = abs(V) + abs(V).max()
    budget = attention_budget(Q, K, size, 1.0, U)[1]
    compare("up to the tie", at, before, budget.times(2)).require()
    p_D = float(attention_weights(Q, K, scale=1.0)[1, :N].sum())
    jump = PROOF.evaluate("jump", {"beta": 0.5, "p_D": p_D, "v_a": 2.0, "v_b": 5.0, "r": r})
    compare("behind the tie", after - at, [jump], budget.times(4)).require()
    assert abs(after - at) > 0.1 / r


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_of_equal_keys_the_first_are_the_lowest_at_every_size(dtype: str) -> None:
    """A matrix product would sum some columns in another order than others."""
    rng = np.random.default_rng(0)
    for d in (1, 3, 16, 33):
        for n in (2, 5, 7, 37):
            Q, k = rng.standard_normal((3, d)).astype(dtype), rng.standard_normal(d).astype(dtype)
            lowest = lowest_score_tokens(Q, np.tile(k, (n, 1)), n // 2)
            assert lowest[:, : n // 2].all(), (d, n)
            assert not lowest[:, n // 2 :].any(), (d, n)


def test_zeros_of_both_signs_tie() -> None:
    assert lowest_score_tokens([[1.0]], [[0.0], [-0.0]], 1).tolist() == [[True, False]]


@given(case=cases(), factor=st.sampled_from([0.5, 2.0, 1024.0]))
def test_the_set_does_not_depend_on_the_length_of_the_query(case: Case, factor: float) -> None:
    r = (case.N + 1) // 2
    options = {"n_demonstrations": case.N, "scale": case.scale}
    lowest = lowest_score_tokens(case.Q, case.K, r, **options)
    scaled = (case.Q * factor).astype(case.Q.dtype)
    assert np.array_equal(lowest_score_tokens(scaled, case.K, r, **options), lowest)


@given(case=cases())
def test_negatives_given_as_the_lowest_scores_give_the_same_layer(case: Case) -> None:
    """One batch entry for each query, with a set of its own."""
    r, N = (case.N + 1) // 2, case.N
    given = {"beta": 0.4, "n_demonstrations": N, "scale": case.scale}
    sets = lowest_score_tokens(case.Q, case.K, r, n_demonstrations=N, scale=case.scale)[:, :N]
    each = negative_attention(case.Q[:, None], case.K, case.V, negatives=sets[:, None], **given)[
        :, 0
    ]
    together = negative_attention(case.Q, case.K, case.V, n_negatives=r, **given)
    size = abs(case.V) + abs(case.V).max(axis=0)
    budget = attention_budget(case.Q, case.K, size, case.s, case.u)
    compare("given or chosen", together, each, budget.times(4)).require()


def test_the_lowest_are_chosen_among_the_attended_demonstrations() -> None:
    Q, K = np.ones((4, 1)), np.array([[3.0], [1.0], [2.0], [0.0]])
    causal = lowest_score_tokens(Q, K, 2, n_demonstrations=3, causal=True)
    assert causal.astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]]
    masked = lowest_score_tokens(Q, K, 1, mask=np.array([True, False, True, False]))
    assert masked.astype(int).tolist() == [[0, 0, 1, 0]] * 4
    nothing = lowest_score_tokens(Q, K, 1, mask=np.zeros(4, bool))
    assert not nothing.any()
    raised = lowest_score_tokens(Q, K, 1, mask=np.array([-5.0, 0.0, -np.inf, 0.0]))
    assert raised.astype(int).tolist() == [[1, 0, 0, 0]] * 4


def test_without_negatives_it_is_attention() -> None:
    case = make_case(4, n=5)
    o = attention(case.Q, case.K, case.V)
    none = np.zeros((1, 5), bool)
    for options in (
        {"beta": 0.7, "negatives": none},
        {"beta": 0.7, "n_negatives": 0},
        {"beta": 0.0, "negatives": ~none},
        {"beta": 0.0, "n_negatives": 5},
    ):
        assert np.array_equal(negative_attention(case.Q, case.K, case.V, **options), o)


def test_where_all_negatives_are_the_token_itself_beta_one_leaves_nothing() -> None:
    case = make_case(4, n=5)
    layer = negative_attention(case.Q, case.K, case.V, beta=1.0, negatives=np.eye(5, dtype=bool))
    assert np.array_equal(layer, np.zeros_like(layer))


def test_with_all_as_negatives_and_beta_one_the_loss_is_info_nce_s_at_zero() -> None:
    rng, tau = np.random.default_rng(0), 0.3
    V, Phi = rng.standard_normal((5, 2)), rng.random((5, 3))
    labels = negative_labels(V, beta=1.0, negatives=np.ones((1, 5), bool))
    size = (abs(V) + abs(V).max(axis=0)).T @ Phi / tau
    got = dual.gradient(labels, Phi, D=1.0, learning_rate=tau)
    want = info_nce_gradient(np.zeros((2, 3)), V, Phi, tau)
    compare("centred labels", got, want, sum_budget(size[..., None], 32, U)).require()


def test_query_side_tokens_keep_their_values() -> None:
    Q, K, V = np.zeros((1, 1)), np.zeros((4, 1)), np.array([[1.0], [3.0], [8.0], [4.0]])
    layer = negative_attention(Q, K, V, beta=1.0, negatives=[[True, True]], n_demonstrations=2)
    assert layer == (1 - 2 + 3 - 2 + 8 + 4) / 4
    assert negative_attention(Q, K, V, beta=1.0, n_negatives=2, n_demonstrations=2) == layer


def test_a_row_that_attends_to_query_side_tokens_alone_loses_nothing() -> None:
    Q, K, V = np.zeros((1, 1)), np.zeros((2, 1)), np.array([[1.0], [3.0]])
    given = {"beta": 1.0, "n_negatives": 1, "n_demonstrations": 1}
    assert negative_attention(Q, K, V, mask=np.array([False, True]), **given) == 3.0


def test_a_causal_layer_with_sets_of_earlier_tokens_does_not_see_later_ones() -> None:
    case = make_case(5, n_q=5, n=5)
    changed = case.V.copy()
    changed[4] += 100
    for options in ({"negatives": some_sets(5)}, {"n_negatives": 2}):
        layers = [
            negative_attention(case.Q, case.K, V, beta=0.5, causal=True, **options)
            for V in (case.V, changed)
        ]
        assert np.array_equal(layers[0][:4], layers[1][:4])
        assert (layers[0][4] != layers[1][4]).all()


def test_a_value_that_is_not_finite_poisons_the_sets_that_have_it() -> None:
    Q, K, V = np.zeros((1, 1)), np.zeros((3, 1)), np.array([[1.0], [2.0], [np.inf]])
    attends = np.array([True, True, False])
    clean = negative_attention(Q, K, V, beta=1.0, negatives=np.eye(3, k=-1, dtype=bool),
                               mask=attends)  # fmt: skip
    assert clean == (1 + (2 - 1)) / 2
    poisoned = negative_attention(Q, K, V, beta=1.0, negatives=np.eye(3, k=1, dtype=bool),
                                  mask=attends)  # fmt: skip
    assert np.isnan(poisoned).all()
    assert negative_attention(Q, K, V, beta=1.0, n_negatives=2, mask=attends) == 0.0
    assert np.isnan(negative_attention(Q, K, V, beta=1.0, n_negatives=2)).all()


def test_labels_of_a_batch_of_sets() -> None:
    V = np.array([[1.0], [3.0]])
    sets = np.array([[[True, True]], [[False, True]]])
    labels = negative_labels(V, beta=1.0, negatives=sets)
    assert labels[..., 0].tolist() == [[-1.0, 1.0], [-2.0, 0.0]]


def test_labels_compute_float16_in_float32_and_take_integers() -> None:
    sets = np.ones((1, 2), bool)
    half = negative_labels(np.array([[1.0], [2.0]], np.float16), beta=1 / 3, negatives=sets)
    assert half.dtype == np.float32
    error = abs(half[:, 0] - np.array([0.5, 1.5]))
    assert (error <= gamma(6, 2.0**-24) * 2.5).all()
    assert negative_labels([[1], [2]], beta=1.0, negatives=sets).dtype == np.float64


ONE = [[1.0]]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "neither of negatives and n_negatives given; expected exactly one"),
        ({"negatives": [[True]], "n_negatives": 1}, ValueError, "both of negatives and n_negat"),
        ({"n_negatives": 2}, ValueError, "n_negatives is 2; expected 0 to 1"),
        ({"n_negatives": 1, "n_demonstrations": 0}, ValueError, "n_negatives is 1; expected 0 to"),
        ({"n_negatives": True}, TypeError, "n_negatives is True; expected an integer"),
        ({"n_negatives": 1, "n_demonstrations": 2}, ValueError, "n_demonstrations is 2"),
        ({"n_negatives": 1, "beta": np.nan}, ValueError, "beta is nan; expected a finite number"),
        ({"n_negatives": 1, "beta": "x"}, TypeError, "beta is 'x'; expected a finite number"),
        ({"negatives": [[1]]}, TypeError, "negatives has dtype int.*; expected booleans"),
        ({"negatives": [[True, False]]}, ValueError, r"negatives has shape \(1, 2\); expected"),
        ({"negatives": np.ones((2, 3, 1, 1), bool), "value": np.ones((2, 1, 1))}, ValueError,
         "negatives has shape"),
        ({"negatives": [[True], [True, False]]}, ValueError, "negatives is no array"),
        ({"n_negatives": 1, "value": [[1.0], [2.0]]}, ValueError, "value has shape"),
        ({"n_negatives": 1, "mask": [[1]]}, TypeError, "mask has dtype"),
        ({"n_negatives": 1, "causal": 1}, TypeError, "causal is 1"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named(
    arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    given: dict[str, object] = {"query": ONE, "key": ONE, "value": ONE, "beta": 0.5}
    with pytest.raises(error, match=message):
        negative_attention(**(given | arguments))  # type: ignore[arg-type]


def test_bad_arguments_of_the_selection_are_named() -> None:
    with pytest.raises(
        ValueError, match="n_negatives is 3; expected 0 to 2, the number of demonst"
    ):
        lowest_score_tokens(ONE, [[1.0], [2.0], [3.0]], 3, n_demonstrations=2)
    with pytest.raises(ValueError, match="n_demonstrations is 4; expected 0 to 3, the number of k"):
        lowest_score_tokens(ONE, [[1.0], [2.0], [3.0]], 1, n_demonstrations=4)
    with pytest.raises(ValueError, match="key has shape"):
        lowest_score_tokens(ONE, [[1.0, 2.0]], 1)
