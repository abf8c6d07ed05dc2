"""Somebody else's code is recognised, called as it wants to be, and judged."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import equivalence
from equivalence import OneStepRegressor, attention, check_implementation
from equivalence._arrays import Array
from equivalence.features import (
    Features,
    GramFeatures,
    PositiveFeatures,
    TrigonometricFeatures,
    sample_projections,
)
from equivalence.verify import heads, registry, runner
from equivalence.verify.compare import Disagreement
from equivalence.verify.profiles import PROFILES, Profile
from equivalence.verify.protocol import adapt, name_of
from equivalence.verify.registry import load_all
from equivalence.verify.report import Report
from equivalence.verify.symbolic import Proofs

pytest_plugins = ["pytester"]

ATTENTION = "softmax_is_kernel_smoothing"
REASON = "proofs are tested elsewhere"


@pytest.fixture(autouse=True)
def _swift(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less of what takes long and does not depend on the target: proofs, mutants, repetition."""
    monkeypatch.setitem(PROFILES, "quick", Profile("quick", repeats=1, examples=3))
    monkeypatch.setattr(runner, "rejects", lambda *_: "tested elsewhere")
    real = runner.head_cases
    for module in (runner, heads):
        monkeypatch.setattr(module, "head_cases", lambda *a: islice(real(*a), 2))
    monkeypatch.setattr(Proofs, "start", classmethod(lambda cls, stems: cls(None, REASON)))


def plain(query: Array, key: Array, value: Array) -> Array:
    """Attention as a textbook has it, with no options at all."""
    scores = query @ key.swapaxes(-1, -2) * query.dtype.type(1 / math.sqrt(query.shape[-1]))
    kappa = np.exp(scores - scores.max(axis=-1, keepdims=True))
    output: Array = (kappa @ value) / kappa.sum(axis=-1, keepdims=True)
    return output


def any_keyword(query: Array, key: Array, value: Array, **options: Any) -> Array:
    return attention(query, key, value, **options)


def only_masks(query: Array, key: Array, value: Array, mask: Any = None) -> Array:
    return attention(query, key, value, mask=mask)


def a_list(query: Array, key: Array, value: Array) -> list[Any]:
    return plain(query, key, value).tolist()


class Module:
    """As a neural network's layer: an instance that is called."""

    def __call__(self, query: Array, key: Array, value: Array, *, causal: bool = False) -> Array:
        return attention(query, key, value, causal=causal)


def not_run(report: Report) -> set[str]:
    return {why for claim in report.run.claims for r in claim.rungs.values() for why in r.not_run}


@pytest.mark.parametrize(
    ("target", "missing"),
    [
        (attention, set()),
        (any_keyword, set()),
        (functools.partial(attention, causal=False), set()),
        (plain, {"mask", "causal"}),
        (only_masks, {"causal"}),
        (Module(), {"mask"}),
    ],
)
def test_an_attention_is_checked_with_the_keywords_that_it_takes(
    target: Callable[..., Any], missing: set[str]
) -> None:
    report = check_implementation(target, only=[ATTENTION])
    assert report.verdict == "HOLDS", report.text()
    assert not_run(report) == {f"the target takes no `{name}`" for name in missing}
    for name in missing:
        assert (
            f"did not run: some comparisons on 4 rungs, because the target takes no `{name}`"
            in report.text()
        )


def one_percent_more(query: Array, key: Array, value: Array) -> Array:
    return 1.01 * plain(query, key, value)


def in_float32(query: Array, key: Array, value: Array) -> Array:
    single = (x.astype(np.float32) for x in (query, key, value))
    return plain(*single).astype(value.dtype)


def rounded_by_float32(query: Array, key: Array, value: Array) -> Array:
    return plain(query, key, value).astype(np.float32).astype(value.dtype)


def transposed(query: Array, key: Array, value: Array) -> Array:
    return plain(query, key, value).T


def raises(query: Array, key: Array, value: Array) -> Array:
    raise RuntimeError("out of\nmemory")


def nothing(query: Array, key: Array, value: Array) -> None:
    return None


def complex_output(query: Array, key: Array, value: Array) -> Any:
    return plain(query, key, value) + 0.001j


def uniform(query: Array, key: Array, value: Array) -> Array:
    return np.broadcast_to(value.mean(axis=-2), (*query.shape[:-1], value.shape[-1]))


def centres_in_place(query: Array, key: Array, value: Array) -> Array:
    """Right for the values that it leaves behind: only a copy of them shows the error."""
    value -= value.mean(axis=-2, keepdims=True)
    return plain(query, key, value)


def without_causality(query: Array, key: Array, value: Array, causal: bool = False) -> Array:
    return plain(query, key, value)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (one_percent_more, "o = sum_j kappa_j v_j / sum_j kappa_j"),
        (in_float32, "x the allowed"),
        (rounded_by_float32, "x the allowed"),
        (transposed, "shape (2, 3) where the theorem gives (3, 2)"),
        (raises, "RuntimeError: out of"),
        (nothing, "shape () where the theorem gives (3, 2)"),
        (complex_output, "complex"),
        (uniform, "where the theorem gives"),
        (centres_in_place, "the target writes into its value; inputs are never modified"),
        (without_causality, "with causal, only the attended keys count"),
    ],
)
def test_a_wrong_attention_fails_readably(target: Callable[..., Any], said: str) -> None:
    report = check_implementation(target, only=[ATTENTION], seed=7)
    (result,) = report.run.claims
    assert (report.verdict, report.exit_code) == ("FAILED", 1)
    assert said in result.failure
    assert result.failure in report.text()
    assert result.failure.startswith(f"claim {ATTENTION} fails: ")
    given, redo = result.failure.splitlines()[-2:]
    assert given.startswith("  given    n_q=3 n=5 d=3 c=2 N=4 dtype=float64 spread=1 seed=7 ")
    assert redo.startswith("  redo     equivalence check ")
    assert redo.endswith(f":{target.__name__} --only {ATTENTION} --seed 7")


def test_an_output_that_the_target_writes_into_again_is_kept() -> None:
    buffers: dict[tuple[int, ...], Array] = {}

    def reuses(query: Array, key: Array, value: Array) -> Array:
        output = plain(query, key, value)
        buffer = buffers.setdefault((*output.shape, output.itemsize), np.empty_like(output))
        np.copyto(buffer, output)
        return buffer

    assert check_implementation(reuses, only=[ATTENTION]).verdict == "HOLDS"


def test_a_target_that_modifies_its_inputs_does_not_touch_ours() -> None:
    _, implementation = adapt(centres_in_place)
    V = np.array([[1.0], [3.0]])
    with pytest.raises(Disagreement, match="writes into its value"):
        implementation.attention(np.ones((1, 1)), np.ones((2, 1)), V)
    np.testing.assert_array_equal(V, [[1.0], [3.0]])


def test_a_scale_is_brought_to_an_attention_that_takes_none() -> None:
    Q, K, V = np.random.default_rng(0).normal(size=(3, 4, 4))
    _, implementation = adapt(plain)
    got = implementation.attention(Q, K, V, scale=0.25)
    # The scale of plain is 1/2, so that the query is halved without rounding.
    np.testing.assert_array_equal(got, plain(Q / 2, K, V))


def test_the_weights_are_the_attention_of_one_hot_values() -> None:
    _, implementation = adapt(plain)
    p = implementation.attention_weights(np.ones((1, 1)), np.zeros((4, 1)))
    np.testing.assert_array_equal(p, np.full((1, 4), 0.25))


def test_a_compiled_function_need_not_say_what_it_takes() -> None:
    # No signature can be read from dict, which here stands for any such function.
    _, implementation = adapt(types.SimpleNamespace(f=max).f)
    assert implementation.keywords == frozenset()


class Uniform(PositiveFeatures):
    @classmethod
    def sample(cls, dim: int, n_features: int, *, rng: np.random.Generator) -> PositiveFeatures:
        return cls(rng.uniform(-math.sqrt(3), math.sqrt(3), (n_features, dim)))


class Unscaled(GramFeatures):
    def __call__(self, x: npt.ArrayLike) -> Features:
        features, log_scale = super().__call__(x)
        return Features(features, 0 * log_scale)


class Shifted(OneStepRegressor):
    def predict(self, queries: npt.ArrayLike) -> Array:
        return super().predict(queries) + 1e-12


@pytest.mark.parametrize(
    ("right", "wrong", "part", "stem"),
    [
        (PositiveFeatures, Uniform, "PositiveFeatures", "positive_features"),
        (GramFeatures, Unscaled, "GramFeatures", "gram_features"),
        (OneStepRegressor, Shifted, "OneStepRegressor", "one_gradient_step"),
    ],
)
def test_a_class_is_recognised_by_its_methods_and_judged(
    right: type, wrong: type, part: str, stem: str
) -> None:
    assert adapt(right)[0] == adapt(wrong)[0] == part
    for target, verdict in ((right, "HOLDS"), (wrong, "FAILED")):
        report = check_implementation(target, only=[stem])
        assert report.verdict == verdict, report.text()


class TwiceAsFar(TrigonometricFeatures):
    def __init__(self, projections: npt.ArrayLike) -> None:
        super().__init__(2 * np.asarray(projections))


def norms_of_a_block(n: int, d: int, **options: Any) -> Array:
    W = sample_projections(n, d, **options)
    return W * np.sqrt(d) / np.linalg.norm(W, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("right", "wrong", "part", "stem"),
    [
        (TrigonometricFeatures, TwiceAsFar, "TrigonometricFeatures", "trigonometric_features"),
        (sample_projections, norms_of_a_block, "sample_projections", "orthogonal_features"),
        (attention, one_percent_more, "attention", ATTENTION),
    ],
)
def test_what_a_target_stands_for_can_be_said(right: Any, wrong: Any, part: str, stem: str) -> None:
    for target, verdict in ((right, "HOLDS"), (wrong, "FAILED")):
        report = check_implementation(target, part=part, only=[stem])
        assert report.verdict == verdict, report.text()
        assert f"--part {part} --only {stem}" in report.run.claims[0].redo


@pytest.mark.parametrize(
    ("target", "part", "error", "message"),
    [
        (attention, "atention", ValueError, "part is 'atention'; expected a name of ours"),
        (attention, "keywords", ValueError, "part is 'keywords'"),
        (3, "rotary", TypeError, "target is 3; expected a rotary"),
    ],
)
def test_a_part_that_there_is_not_is_refused(
    target: Any, part: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_implementation(target, part=part)


class Neither:
    """No method that the protocol knows."""


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (3, "3"),
        (None, "None"),
        (Neither, "Neither"),
        (Neither(), "Neither"),
        (np.eye(2), "array"),
        (equivalence, "module"),
        (GramFeatures(), "GramFeatures"),
        (OneStepRegressor(), "OneStepRegressor"),
        (PositiveFeatures([[1.0]]), "PositiveFeatures"),
    ],
)
def test_what_is_none_of_them_is_refused_by_name(target: Any, named: str) -> None:
    with pytest.raises(TypeError, match=r"^target is ") as refusal:
        check_implementation(target)
    assert named in str(refusal.value)
    assert "expected an attention function, a feature map class" in str(refusal.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"profile": "thorough"}, "profile is 'thorough'; expected one of quick, full, nightly"),
        ({"seed": -1}, "seed is -1; expected at least 0"),
        ({"only": ["one_gradent_step"]}, "such as one_gradient_step"),
        ({"known_failures": {"one_gradent_step": "x"}}, "such as one_gradient_step"),
        ({"only": ["positive_features"]}, "target stands for attention; expected a part that"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_implementation(attention, **options)


def test_without_only_all_claims_that_concern_the_target_are_checked() -> None:
    _, implementation = adapt(PositiveFeatures)
    assert implementation.PositiveFeatures is PositiveFeatures
    report = check_implementation(PositiveFeatures)
    stems = [claim.claim.stem for claim in report.run.claims]
    assert stems == ["positive_features", "antithetic_features"]


def test_a_target_is_redone_under_a_name_that_another_process_finds() -> None:
    assert name_of(attention) == "equivalence.attention:attention"
    assert name_of(GramFeatures) == "equivalence.features.gram:GramFeatures"
    assert name_of(PositiveFeatures.sample) == ""
    assert name_of(lambda: None) == name_of(Module()) == name_of(functools.partial(plain)) == ""


def test_a_target_without_a_name_is_redone_in_python() -> None:
    report = check_implementation(
        lambda query, key, value: 2 * plain(query, key, value), only=[ATTENTION], seed=3
    )
    assert report.run.claims[0].redo == (
        f"check_implementation(target, only=['{ATTENTION}'], profile='quick', seed=3)"
    )
    report = check_implementation(lambda *_: 0, part="rotary", only=["positions"])
    assert "check_implementation(target, part='rotary', only=['positions']" in (
        report.run.claims[0].redo
    )


def test_known_failures_pass_through() -> None:
    report = check_implementation(
        transposed, only=[ATTENTION], known_failures={ATTENTION: "issue 7"}
    )
    assert (report.verdict, report.exit_code) == ("HOLDS", 0)
    report = check_implementation(plain, only=[ATTENTION], known_failures={ATTENTION: "issue 7"})
    assert report.verdict == "FAILED"


SUITE = """
from equivalence import attention, parametrize_with_claims
from equivalence.features import PositiveFeatures
from equivalence.verify.registry import load_all

def half(query, key, value):
    return attention(query, key, value) / 2

KNOWN = {claim.stem: "half of it" for claim in load_all() if "attention" in claim.needs}

@parametrize_with_claims([PositiveFeatures])
def test_right(target, check):
    assert check(target).verdict == "HOLDS"

@parametrize_with_claims([half])
def test_wrong(target, check):
    check(target)

@parametrize_with_claims([half], known_failures=KNOWN)
def test_known(target, check):
    check(target)

@parametrize_with_claims([PositiveFeatures], known_failures={"positive_features": "but it holds"})
def test_known_though_right(target, check):
    check(target)
"""


def test_claims_become_the_parameters_of_somebody_elses_tests(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Four claims show what all of them do, and stay four when there are more.
    stems = ("softmax_is_kernel_smoothing", "positive_features", "one_gradient_step",
             "demonstrations_as_steps")  # fmt: skip
    monkeypatch.setattr(registry, "STEMS", stems)
    pytester.makepyfile(test_suite=SUITE)
    outcome = pytester.runpytest_inprocess("-v", "-p", "no:cacheprovider")
    concern_attention = sum("attention" in claim.needs for claim in load_all())
    outcome.assert_outcomes(passed=1 + concern_attention, failed=concern_attention + 1)
    outcome.stdout.fnmatch_lines(
        [
            "*::test_right?PositiveFeatures-positive_features? PASSED*",
            "*::test_wrong?half-softmax_is_kernel_smoothing? FAILED*",
            "*::test_wrong?half-one_gradient_step? FAILED*",
            "*::test_wrong?half-demonstrations_as_steps? FAILED*",
            "*::test_known?half-softmax_is_kernel_smoothing? PASSED*",
            "*::test_known_though_right?PositiveFeatures-positive_features? FAILED*",
            "*claim softmax_is_kernel_smoothing fails: *where the theorem gives*",
            "*error *= * x the allowed *",
            "*redo     equivalence check test_suite:half --only softmax_is_kernel_smoothing*",
            "*holds, but is declared a known failure (but it holds)*",
        ],
    )


@pytest.mark.parametrize(
    ("decoration", "said"),
    [
        ("[3]", "TypeError: target is 3; expected an attention function"),
        ("[attention], known_failures={'one_gradent_step': 'x'}", "such as one_gradient_step"),
        ("['no_such_module:attention']", "TARGET 'no_such_module:attention' cannot be imported"),
    ],
)
def test_a_mistake_in_the_decorator_is_an_error_of_the_module(
    pytester: pytest.Pytester, decoration: str, said: str
) -> None:
    pytester.makepyfile(
        test_suite=f"""
        from equivalence import attention, parametrize_with_claims

        @parametrize_with_claims({decoration})
        def test_it(target, check):
            check(target)
        """
    )
    outcome = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    outcome.assert_outcomes(errors=1)
    assert said in outcome.stdout.str()


def test_a_target_may_be_named_instead_of_imported(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_suite="""
        from equivalence import parametrize_with_claims

        @parametrize_with_claims(["equivalence.features:PositiveFeatures"])
        def test_it(target, check):
            check(target)
        """
    )
    outcome = pytester.runpytest_inprocess("-v", "-p", "no:cacheprovider")
    outcome.assert_outcomes(passed=2)
    outcome.stdout.fnmatch_lines(["*?equivalence.features:PositiveFeatures-positive_features?*"])


def test_an_interruption_ends_the_session_and_not_only_the_test(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_suite="""
        from equivalence import parametrize_with_claims

        def interrupted(query, key, value):
            raise KeyboardInterrupt

        @parametrize_with_claims([interrupted])
        def test_it(target, check):
            check(target)
        """
    )
    outcome = pytester.runpytest_inprocess("-p", "no:cacheprovider", no_reraise_ctrlc=True)
    assert outcome.ret == pytest.ExitCode.INTERRUPTED
