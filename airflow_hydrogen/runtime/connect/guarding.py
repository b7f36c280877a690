"""Starting what watches a job on a Spark Connect server; see `guard`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import airflow_hydrogen
from airflow_hydrogen.contract.connect import ConnectAccess

_GUARD = "airflow_hydrogen.runtime.connect.guard"


@contextmanager
def guarded(access: ConnectAccess, session_id: str) -> Iterator[None]:
    """Have what runs in a session ended, should this process die in the block.

    Args:
        access: the server.
        session_id: nobody else's.
    """
    root = str(Path(airflow_hydrogen.__file__).parents[1])
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    guard = subprocess.Popen(
        [sys.executable, "-m", _GUARD],
        stdin=subprocess.PIPE,
        # Whoever reads what this process says waits until nobody holds the other end.
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        bufsize=0,
        env=environ,
        start_new_session=True,
    )
    assert guard.stdin is not None
    try:
        with suppress(BrokenPipeError):  # it has been killed
            line = json.dumps({"access": access.to_dict(), "session_id": session_id})
            guard.stdin.write(f"{line}\n".encode())
        yield
    finally:
        guard.kill()
        guard.wait()
        guard.stdin.close()
