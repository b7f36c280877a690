"""The server of bundle and job, asked over HTTP on this machine as a worker and a driver ask it."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

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


def port_of(server: BundleServer) -> int:
    return urlsplit(server.bundle_url).port or 0


def test_a_worker_gets_the_bundle_and_the_driver_its_job(server: BundleServer, tmp_path: Path) -> None:
    assert server.bundle_url.startswith("http://127.0.0.1:")
    assert get(server.bundle_url) == b"code"
    server.release(DRIVER)
    assert not server.job_fetched
    assert bootstrap.fetch_job(server.job_url, server.key, DRIVER, tmp_path / "job.json") is None
    assert (tmp_path / "job.json").read_bytes() == b"the job"
    assert (tmp_path / "job.json").stat().st_mode & 0o777 == 0o600
    assert server._fetched.wait(10)
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


def test_silent_connections_cost_no_threads_and_hold_nobody_up(server: BundleServer) -> None:
    port = port_of(server)
    threads = threading.active_count()
    with contextlib.ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in range(100)
        ]
        half = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        half.sendall(b"GET /slow")  # and nothing more
        # Connections are accepted in their order: all of them have been by now.
        assert get(server.bundle_url) == b"code"
        assert threading.active_count() == threads
        assert silent[0].recv(1) == b""  # of too many the oldest are closed at once
        silent[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[-1].recv(1)


def test_a_connection_that_stays_silent_is_closed(
    server: BundleServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_server, "_HEAD_TIMEOUT_S", 0.1)
    port = port_of(server)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
        assert silent.recv(1) == b""


@pytest.mark.parametrize(
    "request_", [b"\x16\x03\x01 hello\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n", b"x" * 100_000]
)
def test_what_is_no_request_is_turned_away(server: BundleServer, request_: bytes) -> None:
    port = port_of(server)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request_)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100).partition(b"\r\n")[0] in (b"", b"HTTP/1.1 405 Method Not Allowed")
    assert get(server.bundle_url) == b"code"


def test_closing_does_not_wait_for_those_who_are_connected(tmp_path: Path) -> None:
    with BundleServer(("127.0.0.1", 7077)) as server:
        port = port_of(server)
        silent = socket.create_connection(("127.0.0.1", port), timeout=10)

        def ask() -> None:
            with contextlib.suppress(OSError):
                get(server.job_url, Authorization=f"Bearer {server.key}")

        waits = threading.Thread(target=ask)
        waits.start()
        silent.sendall(b"GET")
    with silent, contextlib.suppress(ConnectionResetError):
        assert silent.recv(1) == b""
    waits.join(10)
    assert not waits.is_alive()


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
