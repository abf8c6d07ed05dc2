"""Softmax attention as one gradient step on a hidden linear model: both sides, and their checks."""

from typing import Any

from equivalence import features
from equivalence.attention import attention, attention_weights
from equivalence.backward import attention_backward
from equivalence.dual import OneStepRegressor

__all__ = [
    "OneStepRegressor",
    "attention",
    "attention_backward",
    "attention_weights",
    "check_implementation",
    "features",
    "parametrize_with_claims",
]


def __getattr__(name: str) -> Any:
    """The instrument is loaded when it is first asked for, so that the import stays light."""
    if name in ("check_implementation", "parametrize_with_claims"):
        from equivalence import verify

        return getattr(verify, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
