"""The instrument: claims, budgets, exact laws, mutants, and the report."""

from equivalence.verify.plugin import parametrize_with_claims
from equivalence.verify.protocol import check_implementation
from equivalence.verify.report import Report

__all__ = ["Report", "check_implementation", "parametrize_with_claims"]
