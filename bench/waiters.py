"""A process that waits for a master, and tells what that costs it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from typing import Any

from bench.masters import PageMaster
from bench.measure import ROOT

_MARK = "bench: "


def start(module: str, mode: str, master: PageMaster, seconds: float) -> subprocess.Popen[str]:
    """Start `python -m MODULE MODE SECONDS` with a connection to the master."""
    return subprocess.Popen(
        [sys.executable, "-m", module, mode, str(seconds)],
        env={**os.environ, "AIRFLOW_CONN_SPARK_DEFAULT": master.connection},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen[str]) -> Any:
    """What the process says next; Airflow's log is on the same stream."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(_MARK):
            return json.loads(line.removeprefix(_MARK))
    raise RuntimeError(f"the process ended with {process.wait()}")


def measured(process: subprocess.Popen[str], master: PageMaster, seconds: float) -> tuple[Any, float]:
    """Let the process measure itself, once it waits; its answer, and the requests a second meanwhile."""
    assert process.stdin is not None
    assert answer(process) == "waiting"
    before = master.requests
    process.stdin.write("measure\n")
    process.stdin.flush()
    return answer(process), round((master.requests - before) / seconds, 2)


def say(text: Any) -> None:
    """In the process: an answer."""
    print(_MARK + json.dumps(text), flush=True)


async def cpu_seconds(seconds: float) -> float:
    """In the process: CPU seconds while nothing but the waiters runs, once it is told to measure."""
    say("waiting")
    await asyncio.to_thread(sys.stdin.readline)
    before = time.process_time()
    await asyncio.sleep(seconds)
    return time.process_time() - before
