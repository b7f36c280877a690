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


def require_reachable(access: ConnectAccess) -> None:
    """Look whether a server listens, and speaks TLS where the client will.

    Raises:
        ConnectServerError: nobody answers.
        ConnectRefusedError: the client would speak TLS, and whoever answers does not.
    """
    try:
        with socket.create_connection((access.host, access.port), _TIMEOUT_S) as connection:
            if access.speaks_tls:
                _require_tls(access, connection)
    except OSError as error:
        raise ConnectServerError(
            access.url, f"does not answer ({error}); is it started, and is that its host and port?"
        ) from error


def local_address(access: ConnectAccess) -> str:
    """The address of this machine on the way to a server, where its executors reach this process."""
    with socket.create_connection((access.host, access.port), _TIMEOUT_S) as connection:
        return str(connection.getsockname()[0])


def _require_tls(access: ConnectAccess, connection: socket.socket) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the client checks them
    context.set_alpn_protocols(["h2"])
    try:
        with context.wrap_socket(connection, server_hostname=access.host):
            return
    except (ssl.SSLError, ConnectionResetError, TimeoutError) as error:
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
