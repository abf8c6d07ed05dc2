"""Hypothesis strategies: small labelled sizes; the numbers come from a drawn seed."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from equivalence.verify.cases import Case, make_case
from equivalence.verify.profiles import Profile


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[str, ...] = ("float64", "float32")) -> Case:
    """A problem of at most 8 keys in at most 5 dimensions, any split into demonstrations."""
    n = draw(st.integers(1, 8), label="n")
    return make_case(
        draw(st.integers(0, 2**32 - 1), label="seed"),
        n_q=draw(st.integers(1, 4), label="n_q"),
        n=n,
        d=draw(st.integers(1, 5), label="d"),
        c=draw(st.integers(1, 4), label="c"),
        N=draw(st.integers(0, n), label="N"),
        dtype=draw(st.sampled_from(dtypes), label="dtype"),
        spread=draw(st.sampled_from([0.1, 0.5, 1.0]), label="spread"),
        scale=draw(st.sampled_from([None, 0.25, 1.0]), label="scale"),
        twins=draw(st.booleans(), label="twins"),
    )


def settings_of(profile: Profile) -> settings:
    """The profile's Hypothesis settings: no deadline, and the quick one, the gate, derandomised."""
    return settings(
        max_examples=profile.examples,
        deadline=None,
        database=None,
        derandomize=profile.name == "quick",
        report_multiple_bugs=False,
        print_blob=True,
    )
