"""Run a command that does not outlive the process that started it.

`python exec_with_parent.py PARENT_PID COMMAND...` asks the kernel to send SIGTERM to itself when its parent
dies, then becomes the command. spark-submit is a shell script that becomes the JVM, so the JVM inherits the
wish. A `preexec_fn` would do the same, but is not safe in a process that has threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the kernel knew
        sys.exit(f"process {parent} that started {command[0]} is gone")
    os.execvp(command[0], command)
