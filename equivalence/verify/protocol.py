"""Pointing the suite at somebody's own code: which part it replaces, and how it is called."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from equivalence._arrays import Array
from equivalence.verify.claim import Claim
from equivalence.verify.compare import Disagreement
from equivalence.verify.implementation import OURS, Implementation
from equivalence.verify.profiles import PROFILES
from equivalence.verify.registry import load, load_all
from equivalence.verify.report import Report
from equivalence.verify.runner import run

PARTS = tuple(field.name for field in fields(Implementation) if field.name != "keywords")


def check_implementation(
    target: Any,
    *,
    part: str | None = None,
    only: Sequence[str] = (),
    profile: str = "quick",
    seed: int = 0,
    known_failures: Mapping[str, str] | None = None,
) -> Report:
    """Check an implementation against every claim that concerns it.

    Parameters
    ----------
    target : callable, class, or "module:name"
        An attention `f(query, key, value)`, optionally with keywords `scale`, `mask`, `causal`;
        a class of random features with `.sample`; of data-aware features with `.fit` and
        `__call__`; or a regressor with `.fit` and `.predict`. With `part`, anything that is called
        as our own is.
    part : str, optional
        Which of our names the target stands for, a field of `verify.implementation.Implementation`,
        such as "TrigonometricFeatures" or "sample_projections". Without it, what the methods say:
        a class with `.sample` stands for PositiveFeatures.
    only : sequence of stems
        Restricts the claims.
    profile : "quick", "full" or "nightly"
    seed : int
    known_failures : mapping of stem to reason, optional
        Claims that are known to fail; one that holds all the same is a failure.

    Raises
    ------
    ValueError
        An unknown stem, part, profile, or a target that concerns no claim.
    TypeError
        A target that is none of the above.

    Examples
    --------
    >>> from equivalence import attention
    >>> report = check_implementation(attention, only=["softmax_is_kernel_smoothing"])
    >>> report.verdict
    'HOLDS'
    """
    if profile not in PROFILES:
        raise ValueError(f"profile is {profile!r}; expected one of {', '.join(PROFILES)}")
    if seed < 0:
        raise ValueError(f"seed is {seed}; expected at least 0")
    for stem in known_failures or {}:
        load(stem)
    stands_for, implementation = adapt(target, part)
    claims = concerned([load(stem) for stem in only] or load_all(), stands_for)
    outcome = run(
        claims,
        PROFILES[profile],
        seed,
        implementation=implementation,
        target=target if isinstance(target, str) else name_of(target),
        part=part or "",
        known_failures=known_failures,
    )
    return Report(outcome)


def concerned(claims: Sequence[Claim], part: str) -> list[Claim]:
    """The claims whose check uses that part; ValueError if none does."""
    mine = [claim for claim in claims if part in claim.needs]
    if not mine:
        stems = ", ".join(claim.stem for claim in claims)
        raise ValueError(f"target stands for {part}; expected a part that {stems} is about")
    return mine


def import_target(name: str) -> Any:
    """The object that "module:name" names, the current directory included in the search.

    Raises ValueError, with the cause and what to do, if there is none.
    """
    module, colon, attribute = name.partition(":")
    if not (module and colon and attribute):
        raise ValueError(f"TARGET is {name!r}; expected module:name, such as mymodel:attention")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"TARGET {name!r} cannot be imported ({type(error).__name__}: {error}); expected "
            "module:name, importable from the current directory or PYTHONPATH"
        ) from error
    for step in attribute.split("."):
        if not hasattr(found, step):
            raise ValueError(
                f"TARGET {name!r}: module {module} has no {attribute}; expected a name "
                "that it defines"
            )
        found = getattr(found, step)
    return found


def name_of(target: Any) -> str:
    """The "module:name" under which another process finds the target, or nothing."""
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", None)
    if module == "__main__" or not isinstance(module, str) or not isinstance(name, str):
        return ""
    found: Any = sys.modules.get(module)
    for step in name.split("."):
        found = getattr(found, step, None)
    return f"{module}:{name}" if found is target else ""


def adapt(target: Any, part: str | None = None) -> tuple[str, Implementation]:
    """Which part the target is, said or guessed, and our implementation with it replaced."""
    if isinstance(target, str):
        target = import_target(target)
    part = _guess(target) if part is None else part
    if part not in PARTS:
        near = difflib.get_close_matches(part, PARTS) or PARTS
        raise ValueError(
            f"part is {part!r}; expected a name of ours that a claim is about, such as "
            f"{', '.join(near[:3])}"
        )
    if not callable(target):
        raise TypeError(f"target is {target!r}; expected a {part}, which is callable")
    if part != "attention":
        return part, replace(OURS, **{part: target})
    own = _Attention(target)
    return part, replace(OURS, attention=own, attention_weights=own.weights, keywords=own.keywords)


def _guess(target: Any) -> str:
    fits, predicts, samples = (hasattr(target, name) for name in ("fit", "predict", "sample"))
    if inspect.isclass(target):
        if samples:
            return "PositiveFeatures"
        if fits and predicts:
            return "OneStepRegressor"
        if fits:
            return "GramFeatures"
    if not callable(target) or inspect.isclass(target) or fits or samples:
        raise TypeError(
            f"target is {target!r}; expected an attention function, a feature map class with "
            "`sample` or `fit`, or a regressor class with `fit` and `predict`"
        )
    return "attention"


class _Attention:
    """Somebody's attention, called with the keywords it takes."""

    def __init__(self, target: Any) -> None:
        self._target = target
        try:
            parameters = list(inspect.signature(target).parameters.values())
        except ValueError:  # a compiled function need not say what it takes
            parameters = []
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        self._own_scale = takes_any or "scale" in names
        self.keywords = OURS.keywords if takes_any else OURS.keywords & names

    def __call__(
        self,
        query: npt.ArrayLike,
        key: npt.ArrayLike,
        value: npt.ArrayLike,
        *,
        scale: float | None = None,
        **options: Any,
    ) -> Array:
        Q, K, V = np.asarray(query), np.asarray(key), np.asarray(value)
        if scale is not None:
            if self._own_scale:
                options["scale"] = scale
            else:  # the default 1/sqrt(d) is the target's: bring the query to it
                Q = Q * Q.dtype.type(scale * np.sqrt(Q.shape[-1]))
        # Copies on both ways: a target may write into its inputs, or reuse its output.
        copies = Q.copy(), K.copy(), V.copy()
        output = np.array(self._target(*copies, **options))
        for name, copy, given in zip(("query", "key", "value"), copies, (Q, K, V), strict=True):
            if not np.array_equal(copy, given, equal_nan=True):
                raise Disagreement(f"the target writes into its {name}; inputs are never modified")
        batch = np.broadcast_shapes(Q.shape[:-2], K.shape[:-2], V.shape[:-2])
        expected = (*batch, Q.shape[-2], V.shape[-1])
        if output.shape != expected:
            raise Disagreement(f"shape {output.shape} where the theorem gives {expected}")
        return output

    def weights(self, query: npt.ArrayLike, key: npt.ArrayLike, **options: Any) -> Array:
        """The attention of one-hot values is the weights."""
        K = np.asarray(key)
        return self(query, key, np.eye(K.shape[-2], dtype=K.dtype), **options)
