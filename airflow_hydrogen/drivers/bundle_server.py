"""Hand a bundle to the worker of a standalone cluster that will run the driver, and the job to the driver.

Nothing that the cluster shows or logs is worth keeping secret: the address of the bundle stands on command
lines and in logs of Spark's daemons, but the bundle holds code alone. The job, which may hold anything, is
given once, to the driver that was submitted, for a key that travels in its environment.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any

from airflow_hydrogen.contract.errors import BundleServerError

KEY_VARIABLE = "AIRFLOW_HYDROGEN_JOB_KEY"
"""In the driver's environment: the key for which the job is given."""

DRIVER_HEADER = "X-Spark-Driver"
BUNDLE_NAME = "airflow_hydrogen_application.jar"
"""Spark submits nothing that is not called so; Python does not mind."""

_RELEASE_TIMEOUT_S = 60.0
_SOCKET_TIMEOUT_S = 60.0


class BundleServer:
    """Serves until the job has been fetched, or until it is closed.

    Args:
        route_to: host and port of the master: the address of this machine that leads there is served.
        advertised_host: the name or address by which workers reach this machine, where that is another one.
        port: a fixed port; 0: any that is free.

    Attributes:
        key: for `KEY_VARIABLE`.
        token: the part of the addresses that nobody can guess.

    Raises:
        BundleServerError: nothing can be served there.
    """

    def __init__(self, route_to: tuple[str, int], advertised_host: str | None = None, port: int = 0) -> None:
        self.key = secrets.token_urlsafe(32)
        self.token = secrets.token_urlsafe(32)
        self._bundle = b""
        self._job = b""  # never the same object as another body
        self._driver_id: str | None = None
        self._lock = threading.Lock()
        self._released = threading.Event()
        self._given = False
        self._fetched = threading.Event()
        family, address = _local_address(route_to)
        # By another name the workers may come in by another address.
        bind = address if advertised_host is None else ("::" if family == socket.AF_INET6 else "")
        server = type("Server", (_Server,), {"address_family": family})
        try:
            self._server: _Server = server((bind, port), _Handler)
        except OSError as error:
            raise BundleServerError(f"{address}:{port}", error.strerror or str(error)) from None
        self._server.owner = self
        host = advertised_host or address
        authority = f"[{host}]" if ":" in host else host
        self._base = f"http://{authority}:{self._server.server_address[1]}/{self.token}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)

    @property
    def bundle_url(self) -> str:
        """Where the worker gets the bundle."""
        return f"{self._base}/{BUNDLE_NAME}"

    @property
    def job_url(self) -> str:
        """Where the driver gets the job."""
        return f"{self._base}/job"

    @property
    def job_fetched(self) -> bool:
        """The driver has its job: it needs this machine no more."""
        return self._fetched.is_set()

    def __enter__(self) -> BundleServer:
        """Start to serve."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop: the addresses lead nowhere from now on."""
        self._released.set()  # nobody waits any longer; without a driver there is no job
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def offer(self, bundle: Path, job: bytes) -> None:
        """What is served."""
        self._bundle, self._job = bundle.read_bytes(), job

    def release(self, driver_id: str) -> None:
        """Let this driver have the job, and no other.

        Until then its request waits. A task that dies before it has noted the driver's id leaves no training
        behind that nobody knows of.
        """
        self._driver_id = driver_id
        self._released.set()

    def answer(self, path: str, key: str, driver_id: str) -> tuple[int, bytes]:
        """Status and body for a request."""
        if hmac.compare_digest(path.encode(), f"/{self.token}/{BUNDLE_NAME}".encode()):
            return (410, b"") if self._given else (200, self._bundle)
        asked_for_job = hmac.compare_digest(path.encode(), f"/{self.token}/job".encode())
        if not asked_for_job or not hmac.compare_digest(key.encode(), self.key.encode()):
            return 404, b""
        self._released.wait(_RELEASE_TIMEOUT_S)
        with self._lock:
            if self._given:
                return 410, b"the job was given away already"
            if self._driver_id != driver_id:
                return 409, f"the job is for {self._driver_id}, not for {driver_id}".encode()
            self._given = True
            return 200, self._job

    def sent(self, body: bytes) -> None:
        """A body has left: when it was the job, this machine may go."""
        if body is self._job:
            self._fetched.set()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    owner: BundleServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event; the default writes the request to stderr."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _SOCKET_TIMEOUT_S

    def do_GET(self) -> None:
        """Bundle or job."""
        key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        status, body = self.server.owner.answer(self.path, key, self.headers.get(DRIVER_HEADER, ""))
        self.send_response(status)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.server.owner.sent(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the token is in the path."""


def _local_address(route_to: tuple[str, int]) -> tuple[socket.AddressFamily, str]:
    """The address of this machine from which packets to a host would leave; none is sent."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(*route_to, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return family, str(probe.getsockname()[0])
    except OSError as error:
        raise BundleServerError(f"the address that leads to {route_to[0]}", str(error)) from None
