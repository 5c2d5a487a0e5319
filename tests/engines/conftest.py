import ctypes
import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def _released_memory() -> Iterator[None]:
    """Gives the memory of a module's engines back: the process runs those of many modules."""
    yield
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of glibc
        trim(0)
