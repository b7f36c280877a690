from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.contract.errors import ConnectRefusedError, ConnectServerError
from airflow_hydrogen.runtime.connect import reach
from airflow_hydrogen.runtime.connect.reach import local_address, require_reachable

SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
Somebody = Callable[[bytes | None], int]


@pytest.fixture
def somebody() -> Iterator[Somebody]:
    """Listens, and gives one answer to all that is said; the port. None: says nothing and stays."""
    servers: list[socket.socket] = []
    silent: list[socket.socket] = []

    def listens(answer: bytes | None) -> int:
        server = socket.create_server(("127.0.0.1", 0))
        servers.append(server)

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                if answer is None:
                    silent.append(connection)
                    continue
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return int(server.getsockname()[1])

    yield listens
    for server in servers:
        server.shutdown(socket.SHUT_RDWR)
    for opened in (*servers, *silent):
        opened.close()


def access(port: int, host: str = "127.0.0.1", **more: Any) -> ConnectAccess:
    return ConnectAccess(conn_id="s", host=host, port=port, **more)


def test_a_token_for_another_host_than_localhost_needs_tls(somebody: Somebody) -> None:
    port = somebody(SETTINGS)
    require_reachable(access(port, "localhost", token="hush"))
    require_reachable(access(port))
    with pytest.raises(ConnectRefusedError, match="not in TLS.*write localhost as the host") as error:
        require_reachable(access(port, token="hush"))
    assert "hush" not in str(error.value)


def test_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectServerError, match="does not answer"):
            require_reachable(access(free.getsockname()[1]))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"\x15\x03\x03\x00\x02\x02\x46\x00\x00", "speaks TLS.*set use_ssl"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is not gRPC: is that the port"),
    ],
)
def test_somebody_else_listens_there(somebody: Somebody, answer: bytes, said: str) -> None:
    with pytest.raises(ConnectRefusedError, match=said):
        require_reachable(access(somebody(answer)))


@pytest.mark.parametrize("use_ssl", [True, False])
def test_a_server_that_takes_connections_and_says_nothing_may_say_something_later(
    somebody: Somebody, monkeypatch: pytest.MonkeyPatch, use_ssl: bool
) -> None:
    monkeypatch.setattr(reach, "_TIMEOUT_S", 0.2)
    with pytest.raises(ConnectServerError, match="does not answer .*timed out"):
        require_reachable(access(somebody(None), use_ssl=use_ssl))
    with pytest.raises(ConnectServerError, match="hangs up"):
        require_reachable(access(somebody(b"")))


def test_executors_of_this_machine_find_this_process_on_this_machine(somebody: Somebody) -> None:
    assert local_address(access(somebody(SETTINGS))) == "127.0.0.1"
