"""The proof's own expressions against the code, and the error that is not monotone."""

import numpy as np

from equivalence import attention, dual
from equivalence.verify.budgets import attention_budget, sum_budget
from equivalence.verify.cases import make_case
from equivalence.verify.compare import compare
from equivalence.verify.dual_case import see_dual
from equivalence.verify.implementation import OURS
from proofs import load

U = 2.0**-53
PROOF = load("demonstrations_as_steps")


def test_the_code_computes_the_expressions_of_the_proof() -> None:
    rng = np.random.default_rng(0)
    t, r, T, c, m = 2, 3, 2, 2, 4
    V, Phi = rng.standard_normal((t + r + T, c)), rng.random((t + r + T, m)) + 0.5
    phi_q = rng.random(m) + 0.5
    seen, rest, given = slice(0, t), slice(t, t + r), slice(t + r, None)
    D = dual.normalizer(Phi, phi_q[None])[0]
    W_0 = dual.initial_weights(V[given], Phi[given], D)
    steps = list(dual.gradient_steps(W_0, V[: t + r], Phi[: t + r], D, 0.3))
    arrays = {
        "V_t": V[seen], "V_r": V[rest], "V_T": V[given],
        "Phi_t": Phi[seen], "Phi_r": Phi[rest], "Phi_T": Phi[given], "phi_q": phi_q,
    }  # fmt: skip
    lists = {name: array.tolist() for name, array in arrays.items()}
    size = abs(V).T @ Phi / D
    depth = 2 * (len(V) + m) + 8
    weights, output = sum_budget(size[..., None], depth, U), sum_budget(size * phi_q, depth, U)
    o = dual.predict(steps[-1], phi_q)
    for name, got, budget in (
        ("W_t", steps[t - 1], weights),
        ("W_1", steps[-1], weights),
        ("o", o, output),
        ("error", o - dual.predict(steps[t - 1], phi_q), output.times(2)),
    ):
        needed = {key: lists[key] for key in PROOF.arguments(name) if key in lists}
        compare(name, got, np.array(PROOF.evaluate(name, needed)), budget).require()


def test_the_remaining_error_of_the_proof_is_what_the_weights_miss() -> None:
    case = make_case(4, n_q=1, n=6, d=3, c=2, N=6)
    x = see_dual(OURS, case)
    steps = list(dual.gradient_steps(np.zeros((1, 2, x.Phi.shape[1])), case.V, x.Phi, x.D))
    p = OURS.attention_weights(case.Q, case.K)[0]
    o = attention(case.Q, case.K, case.V)[0]
    t = 2
    remaining = PROOF.evaluate(
        "remaining_error", {"p": p.tolist(), "v": case.V[:, 0].tolist(), "t": t, "r": 4}
    )
    budget = attention_budget(case.Q, case.K, case.V, case.s, case.u)[0] + x.budget[0]
    got = o - dual.predict(steps[t - 1][0], x.phi_q[0])
    compare("sum_{i>t} p_i v_i", got[:1], [remaining], budget[:1].times(2)).require()


def test_the_error_after_t_steps_is_not_monotone() -> None:
    """Two opposite values: seeing one demonstration leaves more error than seeing none."""
    K, V, q = np.zeros((2, 1)), np.array([[1.0], [-1.0]]), np.zeros((1, 1))
    Phi = np.ones((2, 1))
    steps = [np.zeros((1, 1)), *dual.gradient_steps(np.zeros((1, 1)), V, Phi, 2.0)]
    errors = [abs(attention(q, K, V)[0] - dual.predict(W, np.ones(1)))[0] for W in steps]
    assert errors == [0.0, 0.5, 0.0]
