"""Hypothesis profiles for the whole suite; the gate runs the derandomised `quick` one."""

import gc
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context

# Before NumPy is loaded: on small problems a second BLAS thread only waits.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from equivalence.verify.profiles import PROFILES
from equivalence.verify.strategies import settings_of
from tests.proving import Examined, examine

# SymPy keeps what it has made: looking through all of it for cycles, again and again, takes time.
gc.set_threshold(100_000, 50, 100)

for _profile in PROFILES.values():
    settings.register_profile(_profile.name, settings_of(_profile))
settings.load_profile("quick")


@pytest.fixture(scope="session", autouse=True)
def examined(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Examined]]:
    """The proof of a stem; a second process makes those of the session while other tests run."""
    wanted = [item for item in request.session.items if item.path.stem == "test_proofs"]
    params = [item.callspec.params for item in wanted if hasattr(item, "callspec")]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        stems = dict.fromkeys(given["stem"] for given in params if "stem" in given)
        coming = {stem: pool.submit(examine, stem) for stem in stems}
        yield cache(lambda stem: coming[stem].result() if stem in coming else examine(stem))
        pool.shutdown(cancel_futures=True)
