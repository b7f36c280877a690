"""The server of bundle and job, asked over HTTP on this machine as a worker and a driver ask it."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_hydrogen.contract.errors import BundleServerError
from airflow_hydrogen.drivers import bundle_server
from airflow_hydrogen.drivers.bundle_server import BundleServer
from airflow_hydrogen.runtime import bootstrap

DRIVER = "driver-20260101000000-0000"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[BundleServer]:
    bundle = tmp_path / "bundle.zip"
    bundle.write_bytes(b"code")
    with BundleServer(("127.0.0.1", 7077)) as serving:
        serving.offer(bundle, b"the job")
        yield serving


def get(url: str, **headers: str) -> bytes:
    request = urllib.request.Request(url, headers={name.replace("_", "-"): headers[name] for name in headers})
    with urllib.request.urlopen(request, timeout=10) as answer:
        body: bytes = answer.read()
        return body


def status(url: str, **headers: str) -> int:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(url, **headers)
    with caught.value:
        return caught.value.code


def test_a_worker_gets_the_bundle_and_the_driver_its_job(server: BundleServer, tmp_path: Path) -> None:
    assert server.bundle_url.startswith("http://127.0.0.1:")
    assert get(server.bundle_url) == b"code"
    server.release(DRIVER)
    assert not server.job_fetched
    assert bootstrap.fetch_job(server.job_url, server.key, DRIVER, tmp_path / "job.json") is None
    assert (tmp_path / "job.json").read_bytes() == b"the job"
    assert (tmp_path / "job.json").stat().st_mode & 0o777 == 0o600
    assert server.job_fetched


def test_the_job_is_given_once_and_then_nothing_is(server: BundleServer, tmp_path: Path) -> None:
    server.release(DRIVER)
    assert bootstrap.fetch_job(server.job_url, server.key, DRIVER, tmp_path / "job.json") is None
    problem = bootstrap.fetch_job(server.job_url, server.key, DRIVER, tmp_path / "again.json")
    assert problem == "the Airflow worker says: 410 the job was given away already"
    assert status(server.bundle_url) == 410


def test_the_job_needs_the_key(server: BundleServer) -> None:
    server.release(DRIVER)
    assert status(server.job_url, X_Spark_Driver=DRIVER) == 404
    assert status(server.job_url, X_Spark_Driver=DRIVER, Authorization="Bearer guessed") == 404
    assert not server.job_fetched


def test_the_job_is_for_the_driver_that_was_submitted(server: BundleServer, tmp_path: Path) -> None:
    server.release(DRIVER)
    problem = bootstrap.fetch_job(server.job_url, server.key, "driver-2", tmp_path / "job.json")
    assert problem == f"the Airflow worker says: 409 the job is for {DRIVER}, not for driver-2"


def test_the_job_waits_until_its_driver_is_noted(server: BundleServer, tmp_path: Path) -> None:
    problems: list[str | None] = []
    asking = threading.Thread(
        target=lambda: problems.append(
            bootstrap.fetch_job(server.job_url, server.key, DRIVER, tmp_path / "job.json")
        )
    )
    asking.start()
    asking.join(0.3)
    assert asking.is_alive()
    server.release(DRIVER)
    asking.join(10)
    assert problems == [None]


def test_a_guessed_address_finds_nothing(server: BundleServer) -> None:
    base = server.bundle_url.partition(server.token)[0]
    assert status(base) == 404
    assert status(f"{base}guess/airflow_hydrogen_application.jar") == 404


def test_addresses_lead_nowhere_once_it_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_ATTEMPTS", 1)
    with BundleServer(("127.0.0.1", 7077)) as server:
        pass
    problem = bootstrap.fetch_job(server.job_url, server.key, DRIVER, tmp_path / "job.json")
    assert problem is not None
    assert problem.startswith("the Airflow worker that submitted it does not answer: ")
    assert not list(tmp_path.iterdir())


def test_advertised_name_and_port_are_the_connections(tmp_path: Path) -> None:
    with BundleServer(("127.0.0.1", 7077), "airflow.example.com") as server:
        assert server.bundle_url.startswith("http://airflow.example.com:")
        port = int(server.bundle_url.split(":")[2].partition("/")[0])
        with pytest.raises(BundleServerError, match=f"127.0.0.1:{port}: .*bundle-host and bundle-port"):
            BundleServer(("127.0.0.1", 7077), port=port)


def test_master_without_an_address_is_an_error() -> None:
    with pytest.raises(BundleServerError, match="the address that leads to no.such.host.invalid"):
        BundleServer(("no.such.host.invalid", 7077))


def test_both_sides_speak_of_the_same() -> None:
    assert bootstrap.KEY_VARIABLE == bundle_server.KEY_VARIABLE
    assert bootstrap.DRIVER_HEADER == bundle_server.DRIVER_HEADER
