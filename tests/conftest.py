"""Hypothesis profiles for the whole suite; the gate runs the derandomised `quick` one."""

import gc
import os

# Before NumPy is loaded: on small problems a second BLAS thread only waits.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import settings

from equivalence.verify.profiles import PROFILES
from equivalence.verify.strategies import settings_of

# SymPy keeps what it has made: looking through all of it for cycles, again and again, takes time.
gc.set_threshold(100_000, 50, 100)

for _profile in PROFILES.values():
    settings.register_profile(_profile.name, settings_of(_profile))
settings.load_profile("quick")
