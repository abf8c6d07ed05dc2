"""The proof's own expressions against the code."""

import numpy as np
import pytest

from equivalence import attention, attention_weights
from equivalence.verify.budgets import Budget, attention_budget, weights_budget
from equivalence.verify.cases import make_case
from equivalence.verify.compare import compare
from proofs import load

PROOF = load("softmax_is_kernel_smoothing")


@pytest.mark.parametrize("sizes", [{"n": 1, "d": 1, "c": 1}, {"n": 4, "d": 3, "c": 2}])
def test_the_code_computes_the_expressions_of_the_proof(sizes: dict[str, int]) -> None:
    case = make_case(2, n_q=1, scale=1.0, **sizes)
    o, p = (
        attention(case.Q, case.K, case.V, scale=1.0),
        attention_weights(case.Q, case.K, scale=1.0),
    )
    K, V, q = case.K.tolist(), case.V.tolist(), case.Q[0].tolist()
    want = [PROOF.evaluate("p_j", {"K": K, "q": q, "j": j + 1}) for j in range(sizes["n"])]
    compare("p_j", p[0], want, weights_budget(case.Q, case.K, 1.0, case.u)[0]).require()
    budget = attention_budget(case.Q, case.K, case.V, 1.0, case.u)[0]
    outputs = [PROOF.evaluate("o", {"K": K, "q": q, "v": V, "r": r + 1}) for r in range(sizes["c"])]
    compare("o", o[0], outputs, budget).require()


def test_the_objective_of_the_proof_is_least_at_the_output() -> None:
    case = make_case(6, n_q=1, n=5, d=2, c=1, scale=1.0)
    o = float(attention(case.Q, case.K, case.V, scale=1.0).item())

    K, V, q = case.K.tolist(), case.V.tolist(), case.Q[0].tolist()

    def J(h: float) -> float:
        J: float = PROOF.evaluate("objective", {"K": K, "q": q, "v": V, "a": [o + h]})
        return J

    below, above = [J(-h) for h in (1e-3, 0.1, 1.0)], [J(h) for h in (1e-3, 0.1, 1.0)]
    assert J(0.0) < below[0] < below[1] < below[2]
    assert J(0.0) < above[0] < above[1] < above[2]


def test_a_token_of_weight_two_is_a_token_twice() -> None:
    case = make_case(8, n_q=1, n=3, d=2, c=1, scale=1.0)
    K, V = np.concatenate([case.K, case.K[-1:]]), np.concatenate([case.V, case.V[-1:]])
    got = attention(case.Q, K, V, scale=1.0)
    budget = attention_budget(case.Q, K, V, 1.0, case.u)
    again = attention(case.Q, case.K, case.V, scale=1.0, mask=np.log([[1.0, 1.0, 2.0]]))
    masked = attention_budget(case.Q, case.K, case.V, 1.0, case.u, np.log([[1.0, 1.0, 2.0]]))
    # log 2 itself is rounded: one unit roundoff in the exponent moves the output by 2u max |v|.
    rounded = Budget(np.full((1, 1), 4 * case.u * abs(V).max()), "log 2 is rounded", case.u)
    compare("twice", got, again, budget + masked + rounded).require()
