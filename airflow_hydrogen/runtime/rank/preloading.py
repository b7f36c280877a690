"""Frameworks imported in a process that others are forked from: what makes that safe, and the check of it.

A fork has one thread, whatever its parent had, and shares what its parent has opened. So nothing is forked
from a process whose imports have started threads or opened a device.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_DEVICES = ("/dev/nvidia", "/dev/kfd", "/dev/dri", "/dev/accel")
# jemalloc, which comes with Arrow, starts its own thread again in a forked process.
_KNOWN_THREADS = ("jemalloc_bg_thd",)


def preload(modules: Sequence[str], *, required: bool = False, ignore: int = 0) -> str | None:
    """Import modules.

    Args:
        modules: names, in order.
        required: take one that is not installed for a reason; else it is left out.
        ignore: a thread that the check does not count.

    Returns:
        Why this process may not be forked; None where it may.
    """
    known = {ignore}
    if modules:
        # Its math library starts threads at once, and takes care of forks.
        _import("numpy")
        known |= _threads().keys()
    for name in modules:
        try:
            _import(name, required)
        except Exception as error:
            return f"{name} cannot be imported beforehand ({type(error).__name__}: {error})"
        if problem := _unclean(known):
            return f"importing {name} {problem}"
    return None


def _import(name: str, required: bool = False) -> None:
    root = name.partition(".")[0]
    if required or importlib.util.find_spec(root) is not None:
        importlib.import_module(name)


def _unclean(known: set[int]) -> str | None:
    started = sorted(
        {name for number, name in _threads().items() if number not in known and name not in _KNOWN_THREADS}
    )
    if started:
        return f"has started threads, which a fork would lose ({', '.join(started)})"
    opened = sorted({name for name in _open_files() if name.startswith(_DEVICES)})
    if opened:
        return f"has opened {', '.join(opened)}"
    return None


def _threads() -> dict[int, str]:
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has just ended
            found[int(task.name)] = (task / "comm").read_text().strip()
    return found


def _open_files() -> list[str]:
    found = []
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of this listing
            found.append(str(file.readlink()))
    return found


def draw_seeds() -> None:
    """What is random in a fresh process and was copied by the fork. Python's `random` sees to itself."""
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "multiprocessing.process" in sys.modules:
        sys.modules["multiprocessing.process"].current_process().authkey = os.urandom(32)
