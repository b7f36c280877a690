"""Models that break the hosts that score with them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

FATAL = -1.0
"""A feature on which `kills_its_executor` does, the first time it sees it."""


def kills_its_executor(path: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A predictor that doubles `a`; the model is a file that names the folder of the test."""
    folder = Path(Path(path).read_text())

    def predict(arrays: dict[str, Any]) -> dict[str, Any]:
        if (arrays["a"] == FATAL).any():
            begun = {str(file): file.stat().st_size for file in folder.rglob("part-*.parquet")}
            try:
                with (folder / "died").open("x") as died:
                    json.dump(begun, died)
            except FileExistsError:
                return {"p": arrays["a"] * 2}
            for parent in psutil.Process().parents():
                if any("CoarseGrainedExecutorBackend" in argument for argument in parent.cmdline()):
                    parent.kill()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"p": arrays["a"] * 2}

    return predict
