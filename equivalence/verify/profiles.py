"""How much is tried: one table for the command line and for Hypothesis alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """How often the list of generated cases runs, and how many examples Hypothesis draws."""

    name: str
    repeats: int
    examples: int


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("quick", repeats=1, examples=15),
        Profile("full", repeats=20, examples=400),
        Profile("nightly", repeats=200, examples=5000),
    )
}
