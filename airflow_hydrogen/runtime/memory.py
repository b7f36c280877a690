"""What the C library does with memory that a process has freed; nothing where it is not glibc."""

from __future__ import annotations

import ctypes
import os
from typing import Any

# With which whoever runs a process says it himself.
_SAID = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_KEPT_BYTES = 2**27
_LARGEST_KEPT_BYTES = 2**25  # more is refused


def give_back() -> None:
    """Return to the system what has been freed so far: else it is kept, as it may be wanted again."""
    if (trim := _function("malloc_trim")) is not None:
        trim(0)


def keep_freed() -> None:
    """Keep from now on what is freed, up to 128 MB at the end of the heap, for the next that asks for it.

    Blocks of 32 MB and more still go back at once. Where variables of the environment tell glibc what to do
    they count.

    A process that makes and drops matrices of some MB again and again else may get each of them from the
    system anew, page by page, which takes longer than to fill it: glibc finds thresholds by what was freed
    before, and returns the end of its heap whenever that is free.
    """
    if not any(name in os.environ for name in _SAID) and (set_option := _function("mallopt")) is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        set_option(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def _function(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)
