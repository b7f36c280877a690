"""The line between the driver and the tasks of a gang: logs and failures up, the order to stop down.

One TCP connection a task, JSON lines. The first line must hold the gang's random token; a connection
without it is closed before anything else of it is read. A task whose connection breaks stops its rank:
no rank outlives its driver.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import json
import secrets
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_hydrogen.runtime.process import RankFailure

_HELLO_TIMEOUT_S = 10.0
_MAX_HELLO_BYTES = 1024
_MAX_LINE_CHARS = 8192


@dataclass(frozen=True)
class ChannelAddress:
    """Where the driver listens, and the token that opens the line."""

    host: str
    port: int
    token: str

    def __repr__(self) -> str:
        return f"ChannelAddress(host={self.host!r}, port={self.port}, token='***')"


class DriverChannel:
    """The driver's end.

    Args:
        host: the name under which the tasks reach the driver.
        bind: the address to listen on.
        on_line: called with (rank, line) for each line of a rank's output.
        on_report: called with (rank, metrics) for each `report`.
    """

    def __init__(
        self,
        host: str,
        bind: str,
        *,
        on_line: Callable[[int, str], None],
        on_report: Callable[[int, Mapping[str, float]], None],
    ) -> None:
        self._token = secrets.token_hex(32)
        self._on_line, self._on_report = on_line, on_report
        self._failures: list[RankFailure] = []
        self._connections: set[socket.socket] = set()
        self._changed = threading.Condition()
        channel = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                channel._serve(self.connection, self.rfile)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 512

        self._server = Server((bind, 0), Handler)
        self.address = ChannelAddress(host, self._server.server_address[1], self._token)
        threading.Thread(target=self._server.serve_forever, name="gang-channel", daemon=True).start()

    def __enter__(self) -> DriverChannel:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and hang up: tasks that still run stop their ranks."""
        self._server.shutdown()
        self._server.server_close()
        with self._changed:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def failure(self, wait_s: float) -> RankFailure | None:
        """The failure that came first and is not another's consequence.

        Args:
            wait_s: how long to wait for one, and for the cause behind a consequence, in seconds.
        """
        deadline = time.monotonic() + wait_s
        with self._changed:
            while not any(not failure.secondary for failure in self._failures):
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            primary = [failure for failure in self._failures if not failure.secondary]
            return next(iter(primary or self._failures), None)

    def _serve(self, connection: socket.socket, stream: Any) -> None:
        connection.settimeout(_HELLO_TIMEOUT_S)
        try:
            hello = json.loads(stream.readline(_MAX_HELLO_BYTES))
            if not hmac.compare_digest(str(hello["token"]), self._token):
                return
            rank = int(hello["rank"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        connection.settimeout(None)
        with self._changed:
            self._connections.add(connection)
        try:
            for line in stream:
                self._receive(rank, json.loads(line))
        except (OSError, ValueError):
            return  # the task is gone, mid-line or not: Spark reports that
        finally:
            with self._changed:
                self._connections.discard(connection)

    def _receive(self, rank: int, message: Mapping[str, Any]) -> None:
        if message["kind"] == "line":
            self._on_line(rank, message["text"])
        elif message["kind"] == "report":
            self._on_report(rank, message["metrics"])
        elif message["kind"] == "failed":
            failure = dict(message["failure"])
            with self._changed:
                self._failures.append(RankFailure(**{**failure, "log_tail": tuple(failure["log_tail"])}))
                self._changed.notify_all()
                for connection in self._connections:
                    with contextlib.suppress(OSError):
                        connection.sendall(b"stop\n")


class TaskChannel:
    """A task's end. `stopped()` turns True on the driver's order and when the line breaks."""

    def __init__(self, address: ChannelAddress, rank: int) -> None:
        self._socket = socket.create_connection((address.host, address.port), timeout=_HELLO_TIMEOUT_S)
        self._socket.settimeout(None)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._send({"token": address.token, "rank": rank})
        threading.Thread(target=self._listen, name="gang-channel", daemon=True).start()

    def stopped(self) -> bool:
        """Whether the rank has to end."""
        return self._stopped.is_set()

    def line(self, text: str) -> None:
        """Send one line of output. Blocks while the driver is behind, and so slows the rank's output down."""
        self._send({"kind": "line", "text": text[:_MAX_LINE_CHARS]})

    def report(self, metrics: Mapping[str, float]) -> None:
        """Send one line of history."""
        self._send({"kind": "report", "metrics": dict(metrics)})

    def failed(self, failure: RankFailure) -> None:
        """Say why the rank failed."""
        self._send({"kind": "failed", "failure": dataclasses.asdict(failure)})

    def close(self) -> None:
        """Hang up, after what was sent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._socket.close()

    def _send(self, message: Mapping[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self._socket.sendall(data)
        except OSError:
            self._stopped.set()

    def _listen(self) -> None:
        # The driver sends one word, ever: any byte, or the end of the line, means stop.
        with contextlib.suppress(OSError):
            self._socket.recv(1)
        self._stopped.set()
