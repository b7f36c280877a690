"""A process that watches a job on a Spark Connect server, and ends what is left there of one that died.

The server goes on with what it was told, whatever becomes of who told it. The guard is in a session of its
own, so that it outlives a job whose processes are killed, and reads from a pipe that the kernel closes.
"""

from __future__ import annotations

import json
import signal
import sys

from airflow_hydrogen.contract.connect import ConnectAccess

# Now, and not when it is needed: the archive that it is read from ends with the task.
from airflow_hydrogen.runtime.connect.sessions import interrupt

_DEADLINE_S = 60


def main() -> None:
    """Wait for the end of the job, and interrupt what it has left on the server."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    line = sys.stdin.readline()
    if not line:
        return
    sys.stdin.read()  # until the job has died: one that ends by itself ends its guard
    signal.alarm(_DEADLINE_S)  # a server that says nothing is waited for by nobody
    job = json.loads(line)
    interrupt(ConnectAccess.from_dict(job["access"]), job["session_id"])


if __name__ == "__main__":
    main()
