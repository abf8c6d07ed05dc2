"""The first step on InfoNCE with in-batch negatives is centred attention.

Expressions, with f (n, m) the features of the keys, g (m) those of the query, v (n, c), w (c, m)
the weights, the temperature tau; r (from 1) is an output, s a feature:

- `loss` InfoNCE at w (f, v, w, tau) and `gradient`, its entry r, s (f, v, w, tau, r, s)
- `gradient_at_zero` (f, v, tau, r, s) and `paper_gradient`, that of the loss without negatives
- `stepped`, entry r, s of W after a step from 0 with rate tau/D (f, g, v, r, s), and `centred`,
  output r of what it predicts (f, g, v, r)
"""

from sympy import IndexedBase, Integer, Sum, exp, log, symbols

from .derivation import Derivation, Differentiate, Expand, Proof, Substitute

n, c, m = symbols("n c m", integer=True, positive=True)
i, j, l, a, b, r, s = symbols("i j l a b r s", integer=True, positive=True)  # noqa: E741
tau = symbols("tau", positive=True)

f = IndexedBase("f", shape=(n, m), real=True)
g = IndexedBase("g", shape=(m,), real=True)
v = IndexedBase("v", shape=(n, c), real=True)
w = IndexedBase("w", shape=(c, m), real=True)


def logit(token, candidate):
    """z_ij = v_j^T W f_i / tau: how well value j fits what the model predicts for token i."""
    return Sum(v[candidate, a] * w[a, b] * f[token, b], (a, 1, c), (b, 1, m)) / tau


def over(body, token=i):
    return Sum(body, (token, 1, n))


partition = Sum(exp(logit(i, j)), (j, 1, n))
loss = over(log(partition) - logit(i, i))
negatives = Sum(exp(logit(i, j)) * v[j, r], (j, 1, n)) / partition
gradient = -over((v[i, r] - negatives) * f[i, s]) / tau

vbar = Sum(v[j, r], (j, 1, n)) / n
at_zero = Substitute({w[a, b]: 0})
gradient_at_zero = -over((v[i, r] - vbar) * f[i, s]) / tau
paper_loss = -over(logit(i, i))
paper_gradient = -over(v[i, r] * f[i, s]) / tau

kappa_i = Sum(f[i, b] * g[b], (b, 1, m))
D = over(kappa_i.subs(i, j), j)
p_i = kappa_i / D
stepped = over((v[i, r] - vbar) * f[i, s]) / D
prediction = Sum(stepped * g[s], (s, 1, m))
centred = over(p_i * v[i, r]) - vbar

# the other direction: token i is to be found among all tokens, given the value j
other_partition = Sum(exp(logit(i, j)), (i, 1, n))
other_loss = Sum(log(other_partition) - logit(j, j), (j, 1, n))
anchors = Sum(exp(logit(i, j)) * f[i, s], (i, 1, n)) / other_partition
other_gradient = -Sum(v[j, r] * (f[j, s] - anchors), (j, 1, n)) / tau


def argument(proof: Proof) -> None:
    proof.step(
        "The gradient of InfoNCE, anywhere",
        loss,
        Differentiate(w[r, s]),
        gradient,
        because="log sum exp has the softmax as its slope: the negatives are an attention, whose "
        "query is W f_i / tau and whose keys and values are the values",
    )
    proof.step(
        "At W = 0 all candidates are equally likely",
        loss,
        at_zero,
        n * log(n),
        because="every logit is 0; the model is yet to learn which value belongs to which token",
    )
    proof.step(
        "At W = 0 the negatives are the mean of the values",
        gradient,
        at_zero,
        gradient_at_zero,
        because="exp(0) = 1, so the softmax is 1/n for each of the n candidates, its own included",
    )
    proof.step(
        "Without negatives, the loss of the paper",
        paper_loss,
        Differentiate(w[r, s]),
        paper_gradient,
        because="its loss only draws W f_i and v_i together",
    )
    proof.step(
        "What the negatives add",
        gradient_at_zero,
        Expand(),
        paper_gradient + vbar * over(f[i, s]) / tau,
        because="the mean of the values does not depend on the token: one outer product for all",
    )
    proof.step(
        "One step from 0 with rate tau/D",
        0 - (tau / D) * gradient_at_zero,
        Expand(),
        stepped,
        because="the temperature cancels: it is a learning rate here",
    )
    proof.step(
        "The weights of attention sum to one",
        over(p_i),
        Expand(),
        Integer(1),
        because="the batch is what the query attends to, so both sums run over the same tokens",
    )
    proof.step(
        "It predicts centred attention",
        prediction,
        Expand(),
        centred,
        because="every weight brings a part p_i of vbar along, and the parts make one: o - vbar",
    )
    proof.step(
        "The mean can be taken out of the features instead",
        gradient_at_zero,
        Expand(),
        -over(v[i, r] * (f[i, s] - Sum(f[j, s], (j, 1, n)) / n)) / tau,
        because="sum_i (v_i - vbar) f_i^T is a covariance, and centring one side is enough",
    )
    proof.step(
        "InfoNCE in the other direction, anywhere",
        other_loss,
        Differentiate(w[r, s]),
        other_gradient,
        because="now the softmax runs over the tokens that a value could belong to",
    )
    proof.step(
        "Both directions have the same first step",
        other_gradient,
        at_zero,
        gradient_at_zero,
        because="at W = 0 it takes out the mean of the features; so CLIP's symmetric loss, their "
        "mean, starts with centred attention too",
    )
    refuse_variants(proof)


def refuse_variants(proof: Proof) -> None:
    others = partition - exp(logit(i, i))
    proof.refuse(
        "a token's own value is left out of the denominator",
        over(log(others) - logit(i, i)),
        Differentiate(w[r, s]),
        gradient,
        because="the negatives would be the mean of the others, n/(n-1) (vbar - v_i/n) at W = 0",
    )
    proof.refuse(
        "the negatives are the mean of the values at every W",
        loss,
        Differentiate(w[r, s]),
        gradient_at_zero,
        because="a model that has learnt something looks hardest at the values it confuses",
    )
    proof.refuse(
        "both directions have the same gradient at every W",
        other_loss,
        Differentiate(w[r, s]),
        gradient,
        because="softmax by rows is not softmax by columns",
    )
    proof.refuse(
        "negatives change nothing",
        gradient,
        at_zero,
        paper_gradient,
        because="vbar is not 0",
    )
    proof.refuse(
        "the rate 1/D",
        -gradient_at_zero / D,
        Expand(),
        stepped,
        because="the gradient carries 1/tau",
    )
    proof.refuse(
        "the loss is a mean over the tokens",
        0 - (tau / D) * gradient_at_zero / n,
        Expand(),
        stepped,
        because="the rate would have to be n tau/D",
    )
    proof.refuse(
        "the step predicts attention itself",
        prediction,
        Expand(),
        over(p_i * v[i, r]),
        because="the mean of the values is missing: without negatives it would",
    )
    proof.refuse(
        "the mean is weighted by attention",
        prediction,
        Expand(),
        Integer(0),
        because="o - sum_i p_i v_i is 0; vbar weights all tokens alike",
    )


derivation = Derivation(
    title="The first contrastive step is centred attention",
    statement=(
        "InfoNCE lets every token pick its own value out of those of the batch, by the logits "
        "z_ij = v_j^T W phi(k_i)/tau. Its gradient at W = 0 is -(1/tau) sum_i (v_i - vbar) "
        "phi(k_i)^T, so one step with rate tau/D predicts o - vbar at every temperature: attention "
        "with every token as a negative example of every other, with weight 1. The paper's loss, "
        "which has no negatives, is the part without vbar."
    ),
    scope="every n, c, m",
    assumptions=(
        "D = sum_i phi(k_i).phi(q) is not zero, and sums over the tokens of the batch",
        "tau is positive; the negatives of a token are all values of the batch, its own included",
    ),
    sizes=(
        {"n": 2, "c": 1, "m": 3, "r": 1, "s": 2},
        {"n": 3, "c": 2, "m": 2, "r": 2, "s": 1},
        {"n": 3, "c": 2, "m": 5, "r": 1, "s": 4},
    ),
    expressions={
        "loss": loss,
        "gradient": gradient,
        "gradient_at_zero": gradient_at_zero,
        "paper_gradient": paper_gradient,
        "stepped": stepped,
        "centred": centred,
    },
    argument=argument,
)
