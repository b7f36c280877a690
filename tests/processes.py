"""Processes of this machine, as tests look for them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import psutil


def living(is_wanted: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """Those that are wanted and alive; one that ends meanwhile, or is not ours to see, is not among them."""
    found = []
    for process in psutil.process_iter():
        try:
            if is_wanted(process) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def reader_of_output() -> int:
    """The process that reads what this one prints: the parent of a rank, be the rank forked or not."""
    pipe = os.readlink("/proc/self/fd/1")
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # another user's, or gone
            for number in os.listdir(process / "fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(process / "fd" / number) == pipe:
                        return int(process.name)
    raise AssertionError("nobody reads the output of this process")
