"""A real S3-compatible object store: versitygw, in the version that docker-compose.yaml has.

Where it is not on the PATH it is built once, with Go, and kept where Horovod's wheels are.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.horovod_build.__main__ import cache_folder
from tests import compose_file
from tests.integration import daemons

BUCKET = "hydrogen"
START_TIMEOUT_S = 60.0
BUILD_TIMEOUT_S = 900.0  # one to four minutes
_MODULE = "github.com/versity/versitygw/cmd/versitygw"
_HOST = "127.0.0.1"
_web = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def store_program() -> Path:
    """The program, found or built.

    Raises:
        LookupError: there is none and none can be built, with the reason.
    """
    if found := shutil.which("versitygw"):
        return Path(found)
    image = compose_file.services()["object-store"].document["image"]
    version = image.rpartition(":")[2]
    program = cache_folder() / "bin" / f"versitygw-{version}"
    if program.exists():
        return program
    go = shutil.which("go")
    if go is None:
        raise LookupError("neither versitygw is installed nor Go, which could build it")
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        built = subprocess.run(
            [go, "install", f"{_MODULE}@{version}"],
            env={**os.environ, "GOBIN": folder},
            capture_output=True,
            text=True,
            check=False,
            timeout=BUILD_TIMEOUT_S,
        )
        if built.returncode:
            raise LookupError(f"versitygw {version} cannot be built here: {built.stderr.strip()[-500:]}")
        Path(folder, "versitygw").replace(program)
    return program


@dataclass
class ObjectStore:
    """A store with one bucket.

    Attributes:
        folder: its objects.
        port: on this machine.
        environment: variables with which its clients find it.
    """

    program: Path
    folder: Path
    port: int
    environment: dict[str, str]
    process: subprocess.Popen[bytes] = field(init=False)

    @property
    def access(self) -> S3Access:
        """What its Airflow connection `lake` says."""
        return S3Access(
            conn_id="lake",
            access_key=self.environment["AWS_ACCESS_KEY_ID"],
            secret_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=self.environment["AWS_ENDPOINT_URL"],
        )

    def connection(self, **other: str) -> str:
        """An Airflow connection to it, as the text of a variable."""
        access = self.access
        return json.dumps(
            {
                "conn_type": "aws",
                "login": access.access_key,
                "password": access.secret_key,
                "extra": {"endpoint_url": access.endpoint_url},
                **other,
            }
        )

    def start(self) -> None:
        """Start it, with the objects that it had."""
        self.process = subprocess.Popen(
            [self.program, "--port", f"{_HOST}:{self.port}", "--health", "/health", "posix", self.folder],
            env={
                **os.environ,
                "ROOT_ACCESS_KEY_ID": self.environment["AWS_ACCESS_KEY_ID"],
                "ROOT_SECRET_ACCESS_KEY": self.environment["AWS_SECRET_ACCESS_KEY"],
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            assert self.process.poll() is None, "versitygw has ended"
            assert time.monotonic() < deadline, f"versitygw does not answer after {START_TIMEOUT_S} s"
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL it: its clients find nobody there."""
        daemons.end(self.process, signal.SIGKILL)

    def _answers(self) -> bool:
        try:
            with _web.open(f"http://{_HOST}:{self.port}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False


@contextmanager
def object_store(folder: Path) -> Iterator[ObjectStore]:
    """Start a store whose objects lie in a folder, and make its bucket as the composition does.

    The test is skipped, with the reason, where there is no such program.
    """
    try:
        program = store_program()
    except LookupError as missing:
        pytest.skip(str(missing))
    port = daemons.free_port(_HOST)
    environment = {
        "AWS_ENDPOINT_URL": f"http://{_HOST}:{port}",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "somebodys-secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    store = ObjectStore(program, folder, port, environment)
    store.start()
    try:
        make_bucket = compose_file.ROOT / "docker" / "make_bucket.py"
        subprocess.run([sys.executable, make_bucket, BUCKET], env={**os.environ, **environment}, check=True)
        yield store
    finally:
        store.kill()
