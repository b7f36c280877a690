"""The line between the driver and the tasks of a gang: logs and failures up, the order to stop down.

Here the tasks meet too, each told what all have offered. Spark's `allGather` does the same, and looks for the
answer once a second.

One TCP connection a task, JSON lines. The first line must hold the gang's random token; a connection
without it is closed before anything else of it is read. A task whose connection breaks stops its rank:
no rank outlives its driver. Lines of output go through a bounded queue: no rank waits for the driver's log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import json
import queue
import secrets
import socket
import socketserver
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from airflow_hydrogen.runtime.gang import network
from airflow_hydrogen.runtime.gang.logs import LineQueue
from airflow_hydrogen.runtime.progress import Beat
from airflow_hydrogen.runtime.rank.failures import RankFailure

_HELLO_TIMEOUT_S = 10.0
_MAX_HELLO_BYTES = 1024
_MAX_LINE_CHARS = 8192
_FLUSH_S = 0.1
_LAST_LINES_S = 2.0
_STOP = b"stop\n"


@dataclass(frozen=True)
class ChannelAddress:
    """Where the driver listens, and the token that opens the line."""

    host: str
    port: int
    token: str

    def __repr__(self) -> str:
        return f"ChannelAddress(host={self.host!r}, port={self.port}, token='***')"


class Receiver(Protocol):
    """Who is told what the ranks say: the gang's monitor."""

    def started(self, rank: int, host: str) -> None:
        """A task has begun, and has what the others need to know of it."""

    def line(self, rank: int, text: str) -> None:
        """A line of output."""

    def report(self, rank: int, metrics: Mapping[str, float], seconds_left: float | None) -> None:
        """A line of history."""

    def beat(self, rank: int, beat: Beat) -> None:
        """A sign of life."""

    def returned(self, rank: int) -> None:
        """`main` has returned."""

    def failed(self, failure: RankFailure) -> None:
        """The rank has failed."""


class DriverChannel:
    """The driver's end.

    Args:
        host: the name under which the tasks reach the driver.
        bind: the address to listen on.
        size: tasks of the gang.
        ports: those that may be used; None leaves the choice to the system.

    Raises:
        PortRangeError: all of them are taken.
    """

    def __init__(self, host: str, bind: str, size: int, ports: range | None = None) -> None:
        self._size = size
        self._token = secrets.token_hex(32)
        self._receiver: Receiver | None = None
        self._connections: set[socket.socket] = set()
        self._offers: dict[int, tuple[socket.socket, Any]] = {}
        self._lock = threading.Lock()
        self._stopping = False
        channel = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                channel._serve(self.connection, self.rfile)

        class Server(socketserver.ThreadingTCPServer):
            address_family = socket.AF_INET6 if ":" in bind else socket.AF_INET
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 512

        self._server = network.bind_in(ports, lambda port: Server((bind, port), Handler))
        self.address = ChannelAddress(host, self._server.server_address[1], self._token)
        self._thread = threading.Thread(target=self._server.serve_forever, name="gang-channel", daemon=True)

    def open(self, receiver: Receiver) -> None:
        """Start to listen."""
        self._receiver = receiver
        self._thread.start()

    def stop_ranks(self) -> None:
        """Tell every task to end its rank, those that come later too."""
        with self._lock:
            self._stopping = True
            for connection in self._connections:
                self._send_stop(connection)

    def close(self) -> None:
        """Stop listening and hang up: tasks that still run stop their ranks."""
        if self._receiver is not None:
            network.stop_serving(self._server)
        self._server.server_close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _serve(self, connection: socket.socket, stream: Any) -> None:
        connection.settimeout(_HELLO_TIMEOUT_S)
        try:
            hello = json.loads(stream.readline(_MAX_HELLO_BYTES))
            if not hmac.compare_digest(str(hello["token"]), self._token):
                return
            rank, host = int(hello["rank"]), str(hello["host"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        connection.settimeout(None)
        assert self._receiver is not None  # open() has started this
        with self._lock:
            self._connections.add(connection)
            if self._stopping:
                self._send_stop(connection)
        try:
            for line in stream:
                message = json.loads(line)
                if message["kind"] == "offer":
                    self._meet(self._receiver, connection, rank, host, message["offer"])
                else:
                    self._receive(self._receiver, rank, message)
        except (OSError, ValueError):
            return  # the task is gone, mid-line or not: Spark reports that
        finally:
            with self._lock:
                self._connections.discard(connection)
                if self._offers.get(rank, (None,))[0] is connection:
                    del self._offers[rank]

    def _meet(self, receiver: Receiver, connection: socket.socket, rank: int, host: str, offer: Any) -> None:
        """Note what a task offers; tell all once the last has come."""
        with self._lock:
            is_second = rank in self._offers
            self._offers[rank] = (connection, offer)
            offers = dict(self._offers)
        if is_second:
            # Spark tries a stage again by itself. Tasks of two tries are no gang.
            receiver.failed(RankFailure(rank, host, "peer", "Spark has lost a task, and starts all anew"))
            return
        receiver.started(rank, host)
        if len(offers) < self._size:
            return
        data = json.dumps([offers[other][1] for other in sorted(offers)]).encode() + b"\n"
        for waiting, _ in offers.values():
            with contextlib.suppress(OSError):  # it is gone, which Spark reports
                waiting.sendall(data)

    @staticmethod
    def _receive(receiver: Receiver, rank: int, message: Mapping[str, Any]) -> None:
        kind = message["kind"]
        if kind == "lines":
            for text in message["lines"]:
                receiver.line(rank, text)
        elif kind == "report":
            receiver.report(rank, message["metrics"], message["seconds_left"])
        elif kind == "beat":
            receiver.beat(rank, Beat(**{**message["beat"], "stack": tuple(message["beat"]["stack"])}))
        elif kind == "returned":
            receiver.returned(rank)
        elif kind == "failed":
            failure = dict(message["failure"])
            receiver.failed(RankFailure(**{**failure, "log_tail": tuple(failure["log_tail"])}))

    @staticmethod
    def _send_stop(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.sendall(_STOP)


class TaskChannel:
    """A task's end. `stopped()` turns True on the driver's order and when the line breaks."""

    def __init__(self, address: ChannelAddress, rank: int, host: str) -> None:
        self._socket = socket.create_connection((address.host, address.port), timeout=_HELLO_TIMEOUT_S)
        self._socket.settimeout(None)
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._ordered = threading.Event()
        self._closing = threading.Event()
        self._answers = queue.SimpleQueue[list[Any] | None]()
        self._lines = LineQueue()
        self._has_lines = threading.Event()
        self._send({"token": address.token, "rank": rank, "host": host})
        threading.Thread(target=self._listen, name="gang-channel", daemon=True).start()
        self._sender = threading.Thread(target=self._send_lines, name="gang-lines", daemon=True)
        self._sender.start()

    def stopped(self) -> bool:
        """Whether the rank has to end."""
        return self._stopped.is_set()

    def is_ordered(self) -> bool:
        """Whether it is the driver that wants the rank to end, and not a line that broke."""
        return self._ordered.is_set()

    def meet(self, offer: Any) -> Sequence[Any] | None:
        """Wait for the other tasks.

        Args:
            offer: what the others have to know of this one; JSON.

        Returns:
            What all offer, by rank; None where this one has to end instead.
        """
        self._send({"kind": "offer", "offer": offer})
        return self._answers.get()

    def line(self, text: str) -> None:
        """Send one line of output soon, or count it where there are too many. Never waits."""
        self._lines.put(text[:_MAX_LINE_CHARS])
        self._has_lines.set()

    def report(self, metrics: Mapping[str, float], seconds_left: float | None) -> None:
        """Send one line of history."""
        self._send({"kind": "report", "metrics": dict(metrics), "seconds_left": seconds_left})

    def beat(self, beat: Beat) -> None:
        """Send a sign of life."""
        self._send({"kind": "beat", "beat": dataclasses.asdict(beat)})

    def returned(self) -> None:
        """Say that `main` has returned."""
        self._send({"kind": "returned"})

    def failed(self, failure: RankFailure) -> bool:
        """Say why the rank failed. Returns False where that cannot be said any more."""
        return self._send({"kind": "failed", "failure": dataclasses.asdict(failure)})

    def close(self) -> None:
        """Hang up, after what was sent."""
        self._closing.set()
        self._has_lines.set()
        self._sender.join(_LAST_LINES_S)  # longer, and it is the driver that does not read
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        self._socket.close()

    def _send_lines(self) -> None:
        last = False
        while not last:
            self._has_lines.wait()  # without a limit: a rank that says nothing takes nothing of its core
            self._has_lines.clear()
            last = self._closing.wait(_FLUSH_S)
            if lines := self._lines.take(last=last):
                self._send({"kind": "lines", "lines": lines})

    def _send(self, message: Mapping[str, Any]) -> bool:
        data = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self._socket.sendall(data)
        except OSError:
            self._stopped.set()
            return False
        return True

    def _listen(self) -> None:
        # The driver says two things: what all offer, once, and stop, as does the end of the line.
        with contextlib.suppress(OSError, ValueError), self._socket.makefile("rb") as stream:
            for line in stream:
                if line == _STOP:
                    self._ordered.set()
                    break
                self._answers.put(json.loads(line))
        self._stopped.set()
        self._answers.put(None)
