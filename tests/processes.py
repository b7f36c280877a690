"""Processes of this machine, as tests look for them."""

from __future__ import annotations

from collections.abc import Callable

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
