"""A process that watches a job on a Spark Connect server, and ends what is left there of one that died.

The server goes on with what it was told, whatever becomes of who told it. The guard is in a session of its
own, so that it outlives a job whose processes are killed, and reads from a pipe that the kernel closes.
"""

from __future__ import annotations

import json
import signal
import sys

from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.runtime.connect.guarding import DONE


def main() -> None:
    """Wait for the end of the job, and interrupt what it has left on the server."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    line = sys.stdin.readline()
    if not line or sys.stdin.readline().strip() == DONE:
        return
    job = json.loads(line)
    from airflow_hydrogen.runtime.connect.sessions import interrupt

    interrupt(ConnectAccess.from_dict(job["access"]), job["session_id"])


if __name__ == "__main__":
    main()
