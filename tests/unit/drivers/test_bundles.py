"""The first code of a driver on a worker: a real Python runs a bundle, whose runtime only looks around."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_hydrogen.drivers.bundle_server import KEY_VARIABLE, BundleServer
from airflow_hydrogen.drivers.bundles import pack_bundle

DRIVER = "driver-20260101000000-0000"

LOOKING_AROUND = """
import json, os, sys
from pathlib import Path

def run_bundle(folder, job_file, settings):
    print(json.dumps({
        "job": job_file.read_text(),
        "modes": [oct(path.stat().st_mode & 0o777) for path in (folder, folder / "job.json")],
        "cwd": os.listdir(),
        "path": [Path(name).name for name in sys.path[:2]],
        "key": os.environ.get("AIRFLOW_HYDROGEN_JOB_KEY"),
        "argv": sys.argv[1:],
    }))
"""


@pytest.fixture
def server() -> Iterator[BundleServer]:
    with BundleServer(("127.0.0.1", 7077)) as serving:
        yield serving


def deploy(tmp_path: Path, server: BundleServer, *, supervise: bool = False) -> Path:
    """Put a bundle where a worker would: in the driver's folder."""
    runtime = tmp_path / "airflow_hydrogen_runtime.zip"
    with zipfile.ZipFile(runtime, "w") as archive:
        for package in ("airflow_hydrogen", "airflow_hydrogen/runtime"):
            archive.writestr(f"{package}/__init__.py", "")
        archive.writestr("airflow_hydrogen/runtime/bundle.py", LOOKING_AROUND)
    (tmp_path / "train.py").write_text("")
    packed = pack_bundle(
        tmp_path,
        server.job_url,
        [runtime],
        [tmp_path / "train.py"],
        py_files=None,
        files=None,
        spark_archives=None,
        supervise=supervise,
    )
    server.offer(packed, b"the job")
    folder = tmp_path / "work" / DRIVER
    folder.mkdir(parents=True)
    return packed.rename(folder / packed.name)


def start(bundle: Path, key: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(bundle)],
        cwd=bundle.parent,
        env={**os.environ, KEY_VARIABLE: key, "http_proxy": "http://no.such.proxy.invalid"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_driver_finds_its_job_its_code_and_its_scripts(tmp_path: Path, server: BundleServer) -> None:
    bundle = deploy(tmp_path, server)
    server.release(DRIVER)
    done = start(bundle, server.key)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen == {
        "job": "the job",
        "modes": ["0o700", "0o600"],
        "cwd": ["train.py"],
        "path": ["airflow_hydrogen_runtime.zip", seen["path"][1]],
        "key": None,
        "argv": [],
    }


def test_a_driver_that_is_started_again_reads_the_job_that_it_has(
    tmp_path: Path, server: BundleServer
) -> None:
    bundle = deploy(tmp_path, server)
    server.release(DRIVER)
    first = start(bundle, server.key)
    second = start(bundle, server.key)  # the server gives nothing any more
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout


@pytest.mark.parametrize(("supervise", "code"), [(False, 1), (True, 0)])
def test_a_driver_without_a_job_ends(
    tmp_path: Path, server: BundleServer, supervise: bool, code: int
) -> None:
    """Spark would start a supervised one again for ever."""
    bundle = deploy(tmp_path, server, supervise=supervise)
    server.release("driver-of-another-submission")
    done = start(bundle, server.key)
    assert done.returncode == code
    assert "airflow-hydrogen: there is no job for this driver: the Airflow worker says: 409" in done.stdout
    assert done.stderr == ""
