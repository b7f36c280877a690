from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.contract.errors import ConnectRefusedError, ConnectServerError
from airflow_hydrogen.runtime.connect.reach import local_address, require_reachable


@pytest.fixture
def port() -> Iterator[int]:
    """Of somebody who takes what is said for nonsense, and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_a_token_for_another_host_than_localhost_needs_tls(port: int) -> None:
    require_reachable(ConnectAccess(conn_id="s", host="localhost", port=port, token="hush"))
    require_reachable(ConnectAccess(conn_id="s", host="127.0.0.1", port=port))
    with pytest.raises(ConnectRefusedError, match="not in TLS.*write localhost as the host") as error:
        require_reachable(ConnectAccess(conn_id="s", host="127.0.0.1", port=port, token="hush"))
    assert "hush" not in str(error.value)


def test_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        access = ConnectAccess(conn_id="s", host="127.0.0.1", port=free.getsockname()[1])
        with pytest.raises(ConnectServerError, match="does not answer"):
            require_reachable(access)


def test_executors_of_this_machine_find_this_process_on_this_machine(port: int) -> None:
    assert local_address(ConnectAccess(conn_id="s", host="127.0.0.1", port=port)) == "127.0.0.1"
