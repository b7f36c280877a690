"""Whether a Spark Connect server answers, found out in a moment: Spark's client tries for ten minutes.

With a token the client speaks TLS to every host but `localhost`, whatever the server speaks, and takes a
failed handshake for a server that is not there yet. So `sc://127.0.0.1` with a token hangs.
"""

from __future__ import annotations

import socket
import ssl

from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.contract.errors import ConnectRefusedError, ConnectServerError

_TIMEOUT_S = 10.0
# How a client of HTTP/2 begins, and a frame without settings; a server answers with its own.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_FRAME_BYTES = 9
_SETTINGS = 4
_TLS_ALERT = 21


def require_reachable(access: ConnectAccess) -> None:
    """Look whether a server listens, speaks TLS where the client will, and answers as gRPC does.

    Raises:
        ConnectServerError: nobody answers.
        ConnectRefusedError: the client would speak TLS and whoever answers does not, or the other way round,
            or it is no server of that kind.
    """
    try:
        with socket.create_connection((access.host, access.port), _TIMEOUT_S) as connection:
            if access.speaks_tls:
                with _tls(access, connection) as secured:
                    _require_answer(access, secured)
            else:
                _require_answer(access, connection)
    except OSError as error:
        raise ConnectServerError(
            access.url, f"does not answer ({error}); is it started, and is that its host and port?"
        ) from error


def local_address(access: ConnectAccess) -> str:
    """The address of this machine on the way to a server, where its executors reach this process."""
    with socket.create_connection((access.host, access.port), _TIMEOUT_S) as connection:
        return str(connection.getsockname()[0])


def _require_answer(access: ConnectAccess, connection: socket.socket) -> None:
    connection.sendall(_HELLO)
    found = b""
    while len(found) < _FRAME_BYTES and (more := connection.recv(_FRAME_BYTES - len(found))):
        found += more
    if len(found) == _FRAME_BYTES and found[3] == _SETTINGS:
        return
    if not found:
        raise ConnectionError("it hangs up; does it speak TLS, for which use_ssl is to be set?")
    if found[0] == _TLS_ALERT:
        problem = "speaks TLS, which this client is not told to: set use_ssl in the connection's extra field"
    else:
        problem = f"answers {found!r}, which is not gRPC: is that the port of Spark Connect?"
    raise ConnectRefusedError(access.url, problem)


def _tls(access: ConnectAccess, connection: socket.socket) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the client checks them
    context.set_alpn_protocols(["h2"])
    try:
        return context.wrap_socket(connection, server_hostname=access.host)
    except (ssl.SSLError, ConnectionResetError) as error:
        why = (
            "use_ssl is set"
            if access.use_ssl
            else "with a token Spark's client speaks TLS to every host but 'localhost', and this is "
            f"{access.host!r}"
        )
        raise ConnectRefusedError(
            access.url,
            f"answers, but not in TLS ({getattr(error, 'reason', None) or error}), and {why}: "
            "let a proxy with TLS stand before the server and name it; on this machine write localhost as "
            "the host; or leave the token out",
        ) from error
