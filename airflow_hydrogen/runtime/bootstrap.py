"""What Python runs first of a bundle on a worker of a standalone cluster: `__main__.py` of that zip.

It fetches the job from the machine that submitted the driver, unpacks the bundle beside it and hands over to
the packed runtime. Nothing but the standard library is there when it runs. A driver that Spark starts again
finds what the first start left in its folder.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

KEY_VARIABLE = "AIRFLOW_HYDROGEN_JOB_KEY"
DRIVER_HEADER = "X-Spark-Driver"
SETTINGS, JOB, FILES = "bundle.json", "job.json", "files"
FOLDER = "airflow-hydrogen"

_PR_SET_PDEATHSIG = 1
_TIMEOUT_S = 90.0  # longer than the submitter lets a request wait
_ATTEMPTS = 3


def main() -> None:
    """Unpack, fetch, run. The exit code is the application's."""
    if sys.platform == "linux":
        # The JVM that the worker watches is the parent; a driver must not outlive it.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    key = os.environ.pop(KEY_VARIABLE, "")
    bundle = Path(sys.argv[0]).resolve()
    folder = bundle.parent / FOLDER
    settings = unpack(bundle, folder)
    if not (folder / JOB).exists():
        # Spark names a driver's folder after the driver.
        problem = fetch_job(settings["job_url"], key, bundle.parent.name, folder / JOB)
        if problem is not None:
            print(f"airflow-hydrogen: there is no job for this driver: {problem}", flush=True)
            # Spark starts a supervised driver again for ever, until it ends with 0.
            raise SystemExit(0 if settings["supervise"] else 1)
    os.chdir(folder / FILES)
    sys.path[:1] = [str(folder / name) for name in settings["archives"]]
    from airflow_hydrogen.runtime.bundle import run_bundle

    run_bundle(folder, folder / JOB, settings)


def unpack(bundle: Path, folder: Path) -> dict[str, Any]:
    """Unpack a bundle where only this user can read it; again is no harm. Returns its settings."""
    folder.mkdir(mode=0o700, exist_ok=True)
    (folder / FILES).mkdir(exist_ok=True)
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(folder)
        settings: dict[str, Any] = json.loads(archive.read(SETTINGS))
    return settings


def fetch_job(url: str, key: str, driver_id: str, target: Path) -> str | None:
    """Write the job to a file that only this user can read. Returns what went wrong, if something did."""
    request = urllib.request.Request(
        url, headers={"Authorization": f"Bearer {key}", DRIVER_HEADER: driver_id}
    )
    # The proxies of this host's environment are for other places.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    problem = ""
    for attempt in range(_ATTEMPTS):
        time.sleep(attempt)
        try:
            with opener.open(request, timeout=_TIMEOUT_S) as answer:
                job = answer.read()
        except urllib.error.HTTPError as error:
            return f"the Airflow worker says: {error.code} {error.read().decode(errors='replace')}".strip()
        except OSError as error:
            problem = f"the Airflow worker that submitted it does not answer: {error}"
            continue
        new = target.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            stream.write(job)
        new.rename(target)
        return None
    return problem


if __name__ == "__main__":
    main()
