"""Hand a bundle to the worker of a standalone cluster that will run the driver, and the job to the driver.

Nothing that the cluster shows or logs is worth keeping secret: the address of the bundle stands on command
lines and in logs of Spark's daemons, but the bundle holds code alone. The job, which may hold anything, is
given once, to the driver that was submitted, for a key that travels in its environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http.client
import io
import secrets
import socket
import threading
from concurrent.futures import Future
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from types import TracebackType

from airflow_hydrogen.contract.errors import BundleServerError

KEY_VARIABLE = "AIRFLOW_HYDROGEN_JOB_KEY"
"""In the driver's environment: the key for which the job is given."""

DRIVER_HEADER = "X-Spark-Driver"
BUNDLE_NAME = "airflow_hydrogen_application.jar"
"""Spark submits nothing that is not called so; Python does not mind."""

_RELEASE_TIMEOUT_S = 60.0
_SEND_TIMEOUT_S = 60.0
_HEAD_TIMEOUT_S = 10.0
_HEAD_BYTES = 1 << 16
_MAX_SILENT = 64  # connections that have not said what they want; a worker's says so at once
# A client that went away, is slow, or does not speak HTTP.
_NO_EVENTS = (
    asyncio.TimeoutError,
    asyncio.IncompleteReadError,
    asyncio.LimitOverrunError,
    http.client.HTTPException,
    ValueError,
    OSError,
)


class BundleServer:
    """Serves until the job has been fetched, or until it is closed.

    One thread serves everybody, so that whoever connects costs no thread. A connection that has not sent its
    request after some seconds is closed; of too many such connections the oldest, at once.

    Args:
        route_to: host and port of the master: the address of this machine that leads there is served.
        advertised_host: the name or address by which workers reach this machine, where that is another one.
        port: a fixed port; 0: any that is free.

    Attributes:
        key: for `KEY_VARIABLE`.
        token: the part of the addresses that nobody can guess.
        authority: host and port at which it is reached.

    Raises:
        BundleServerError: nothing can be served there.
    """

    def __init__(self, route_to: tuple[str, int], advertised_host: str | None = None, port: int = 0) -> None:
        self.key = secrets.token_urlsafe(32)
        self.token = secrets.token_urlsafe(32)
        self._bundle = b""
        self._job = b""
        self._driver_id: str | None = None
        self._given = False
        self._fetched = threading.Event()
        self._started: Future[None] = Future()
        self._silent: dict[asyncio.Task[None], None] = {}  # in the order in which they came
        family, address = _local_address(route_to)
        # By another name the workers may come in by another address.
        bind = address if advertised_host is None else ("::" if family == socket.AF_INET6 else "")
        try:
            self._listener = socket.create_server(
                (bind, port),
                family=family,
                backlog=_MAX_SILENT,
                dualstack_ipv6=bind == "::" and socket.has_dualstack_ipv6(),
            )
        except OSError as error:
            raise BundleServerError(f"{address}:{port}", error.strerror or str(error)) from None
        host = advertised_host or address
        self.authority = f"[{host}]" if ":" in host else host
        self.authority += f":{self._listener.getsockname()[1]}"
        self._base = f"http://{self.authority}/{self.token}"
        self._thread = threading.Thread(target=self._run, daemon=True)

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
        try:
            self._started.result()
        except OSError as error:
            raise BundleServerError(self.authority, error.strerror or str(error)) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop: the addresses lead nowhere from now on."""
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def offer(self, bundle: Path, job: bytes) -> None:
        """What is served."""
        self._bundle, self._job = bundle.read_bytes(), job

    def release(self, driver_id: str) -> None:
        """Let this driver have the job, and no other.

        Until then its request waits. A task that dies before it has noted the driver's id leaves no training
        behind that nobody knows of.
        """
        self._driver_id = driver_id
        self._loop.call_soon_threadsafe(self._released.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing, self._released = asyncio.Event(), asyncio.Event()
        connections: dict[asyncio.Task[None], socket.socket] = {}

        # Not asyncio's server: one that is closed forgets connections that it is about to accept, open.
        def accept() -> None:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # a client that went away
            connection.setblocking(False)
            task = asyncio.create_task(self._serve_one(connection))
            connections[task] = connection
            task.add_done_callback(connections.pop)

        self._listener.setblocking(False)
        self._loop.add_reader(self._listener, accept)
        self._started.set_result(None)
        await self._closing.wait()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._released.set()  # nobody waits any longer; without a driver there is no job
        left = dict(connections)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for connection in left.values():
            connection.close()

    async def _serve_one(self, connection: socket.socket) -> None:
        with contextlib.suppress(*_NO_EVENTS):
            reader, writer = await asyncio.open_connection(sock=connection, limit=_HEAD_BYTES)
            # What is waited for below has left this process, which may end once the job has been sent.
            writer.transport.set_write_buffer_limits(0)
            try:
                method, path, headers = _parse(await self._read_head(reader))
                status, body = 405, b""
                if method == "GET":
                    key = headers.get("Authorization", "").removeprefix("Bearer ")
                    status, body = await self._answer(path, key, headers.get(DRIVER_HEADER, ""))
                writer.write(_head(status, len(body)) + body)
                await asyncio.wait_for(writer.drain(), _SEND_TIMEOUT_S)
                if self._given and body is self._job:
                    self._fetched.set()
            finally:
                writer.close()

    async def _read_head(self, reader: asyncio.StreamReader) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        self._silent[task] = None
        if len(self._silent) > _MAX_SILENT:
            next(iter(self._silent)).cancel()
        try:
            return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _HEAD_TIMEOUT_S)
        finally:
            del self._silent[task]

    async def _answer(self, path: str, key: str, driver_id: str) -> tuple[int, bytes]:
        """Status and body for a request."""
        if hmac.compare_digest(path.encode(), f"/{self.token}/{BUNDLE_NAME}".encode()):
            return (410, b"") if self._given else (200, self._bundle)
        asked_for_job = hmac.compare_digest(path.encode(), f"/{self.token}/job".encode())
        if not asked_for_job or not hmac.compare_digest(key.encode(), self.key.encode()):
            return 404, b""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._released.wait(), _RELEASE_TIMEOUT_S)
        if self._given:
            return 410, b"the job was given away already"
        if self._driver_id != driver_id:
            return 409, f"the job is for {self._driver_id}, not for {driver_id}".encode()
        self._given = True
        return 200, self._job


def _parse(head: bytes) -> tuple[str, str, Message]:
    """Method, path and headers of a request; ValueError where it is none."""
    request, _, fields = head.partition(b"\r\n")
    method, path, _version = request.decode("latin-1").split(" ")
    return method, path, http.client.parse_headers(io.BytesIO(fields))


def _head(status: int, length: int) -> bytes:
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    ).encode()


def _local_address(route_to: tuple[str, int]) -> tuple[socket.AddressFamily, str]:
    """The address of this machine from which packets to a host would leave; none is sent."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(*route_to, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return family, str(probe.getsockname()[0])
    except OSError as error:
        raise BundleServerError(f"the address that leads to {route_to[0]}", str(error)) from None
