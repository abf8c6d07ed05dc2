"""Claims as pytest parameters, for somebody else's test suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from equivalence.verify.claim import Claim
from equivalence.verify.protocol import adapt, check_implementation, concerned
from equivalence.verify.registry import load, load_all
from equivalence.verify.report import Report


def parametrize_with_claims(
    targets: Sequence[Any],
    *,
    part: str | None = None,
    known_failures: Mapping[str, str] | None = None,
) -> Any:
    """A pytest decorator: the test gets `target` and `check`, once for each claim that concerns it.

    `check(target)` raises AssertionError with the report if the claim does not hold. A claim in
    `known_failures` (stem to reason) must fail. `part` says what the targets stand for, as in
    `check_implementation`.

    Raises TypeError for a target that is no attention, feature map or regressor, and ValueError
    for an unknown part, and an unknown stem in `known_failures`.

    Examples
    --------
    In a test module, with an attention of one's own in the list:

    >>> from equivalence import attention
    >>> @parametrize_with_claims([attention])
    ... def test_attention(target, check):
    ...     check(target)
    """
    import pytest

    for stem in known_failures or {}:
        load(stem)
    pairs = [
        pytest.param(
            target, _check(claim, part, known_failures or {}), id=f"{_name(target)}-{claim.stem}"
        )
        for target in targets
        for claim in concerned(load_all(), adapt(target, part)[0])
    ]
    return pytest.mark.parametrize(("target", "check"), pairs)


def _check(
    claim: Claim, part: str | None, known_failures: Mapping[str, str]
) -> Callable[[Any], Report]:
    known = {stem: why for stem, why in known_failures.items() if stem == claim.stem}

    def check(target: Any) -> Report:
        report = check_implementation(target, part=part, only=[claim.stem], known_failures=known)
        if report.run.interrupted:
            raise KeyboardInterrupt
        assert report.verdict == "HOLDS", report.text()
        return report

    return check


def _name(target: Any) -> str:
    if isinstance(target, str):
        return target
    return str(getattr(target, "__name__", type(target).__name__))
