"""The environment of the systems that score beside ours, and of what draws: kept in the cache, made once.

It has versions that ours cannot have (Daft wants an older pyarrow), and nothing of ours: what runs in it has
the modules of `bench` on its path.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from airflow_hydrogen.horovod_build.__main__ import cache_folder

ROOT = Path(__file__).resolve().parent.parent
_PINS = ROOT / "requirements" / "peers.txt"


def peers_python() -> str:
    """Its interpreter, after making it where there is none, which takes a minute and 2 GB.

    Raises:
        subprocess.CalledProcessError: it cannot be made here, for a reason that has been printed.
    """
    made_of = hashlib.sha256(_PINS.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = cache_folder() / "peers" / made_of
    subprocess.run(
        [ROOT / "scripts" / "setup.sh", "--for", "peers"],
        env={**os.environ, "VENV": str(folder), "PYTHON": sys.executable},
        stdin=subprocess.DEVNULL,
        check=True,
    )
    return str(folder / "bin" / "python")
