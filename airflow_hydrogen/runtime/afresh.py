"""A function in a fresh process: on the CPU, with nothing of what the process that calls it has imported.

What it does there cannot hurt the caller: neither a crash nor memory that is never given back.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

TIMEOUT_S = 600.0
"""How long a fresh process may take, in seconds."""

_PR_SET_PDEATHSIG = 1
_CALL, _ANSWER, _OUTPUT = "call", "answer", "output"
_TAIL_LINES = 10

_Argument = TypeVar("_Argument")
_Value = TypeVar("_Value")


class FreshProcessError(Exception):
    """The process gave no answer: in time, or before it ended."""


def call(function: Callable[[_Argument], _Value], argument: _Argument, folder: Path | None = None) -> _Value:
    """Call a function of a module in a fresh process, which is killed at its caller's end.

    Args:
        function: of a module's top level; what it prints is shown where it gives no answer alone.
        argument: its argument; like the answer it has to be picklable.
        folder: where both are exchanged; None: in the temporary folder.

    Raises:
        FreshProcessError: no answer, with the last lines of what the process has printed.
    """
    with tempfile.TemporaryDirectory(prefix="airflow-hydrogen-", dir=folder) as name:
        exchange = Path(name)
        (exchange / _CALL).write_bytes(pickle.dumps((function, argument)))
        with (exchange / _OUTPUT).open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(exchange), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    "CUDA_VISIBLE_DEVICES": "-1",
                    "KERAS_BACKEND": "tensorflow",
                    "TF_CPP_MIN_LOG_LEVEL": "3",
                    "TMPDIR": name,  # what it leaves there, killed, is removed with it
                },
            )
        try:
            code = process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise FreshProcessError(f"a fresh process did not end within {TIMEOUT_S:g} s") from None
        finally:
            process.kill()
            process.wait()
        if code == 0:
            answer: _Value = pickle.loads((exchange / _ANSWER).read_bytes())
            return answer
        lines = (exchange / _OUTPUT).read_text(errors="replace").splitlines()[-_TAIL_LINES:]
        raise FreshProcessError("\n".join([f"a fresh process ended with exit code {code} over it", *lines]))


def main(exchange: Path, parent: int) -> int:
    """The fresh process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        return 1
    function, argument = pickle.loads((exchange / _CALL).read_bytes())
    (exchange / _ANSWER).write_bytes(pickle.dumps(function(argument)))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
