"""`python -m airflow_hydrogen.runtime.horovod_bridge script.py`: run a script with the bridge installed."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

from airflow_hydrogen.runtime.horovod_bridge import install

_USAGE = "usage: horovodrun -np N python -m airflow_hydrogen.runtime.horovod_bridge script.py [arguments]"


def main() -> int:
    """Run the script that the command line names, as `python script.py` would."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        print(_USAGE, file=sys.stderr)
        return 2
    script = Path(sys.argv[1])
    if not script.is_file():
        print(f"{_USAGE}\n{script} is no file", file=sys.stderr)
        return 2
    install()
    del sys.argv[0]
    if not getattr(sys.flags, "safe_path", False):  # Python 3.10 has none
        sys.path[0] = str(script.resolve().parent)
    runpy.run_path(os.path.abspath(script), run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
