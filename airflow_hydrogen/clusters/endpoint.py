"""Where a cluster manager answers and with which credentials: what a Spark connection says about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from airflow_hydrogen.contract.errors import InvalidJobError

EMBEDDED_MASTER = "local[*]"
DEFAULT_CONN_ID = "spark_default"


class Connection(Protocol):
    """The part of an Airflow connection that is used."""

    conn_type: Any
    host: Any
    port: Any
    login: Any
    password: Any

    @property
    def extra_dejson(self) -> dict[str, Any]:
        """The extra field."""


@dataclass(frozen=True)
class ClusterEndpoint:
    """A cluster manager's addresses and how to speak to them. Endpoints that are equal share one poll.

    Attributes:
        master: Spark's master URL.
        urls: of the manager's web service, in the order in which they are asked; none for this machine.
        login: for basic authentication, with `password`.
        password: never in `repr`.
        token: bearer token, never in `repr`.
        token_file: a file with a bearer token, read before each poll, because such tokens are renewed.
        ca_file: certificates that a TLS server is checked against; None: those of this machine.
        verify: check the server's certificate.
        client_cert: certificate of this side, with its key in the same file or in `client_key`.
        client_key: its key.
        tolerated_taints: Kubernetes taints by key that the application's pods tolerate.
        proxy: address of the proxy that requests go through, never in `repr`; None: none. Those of the
            environment are not asked: over plain HTTP they would see credentials that are for the cluster.
    """

    master: str
    urls: tuple[str, ...] = ()
    login: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    token_file: str | None = None
    ca_file: str | None = None
    verify: bool = True
    client_cert: str | None = None
    client_key: str | None = None
    tolerated_taints: tuple[str, ...] = ()
    proxy: str | None = field(default=None, repr=False)

    @classmethod
    def create(
        cls, master: str, urls: tuple[str, ...], connection: Connection, conn_id: str
    ) -> ClusterEndpoint:
        """The endpoint of a connection.

        Raises:
            InvalidJobError: credentials that contradict each other, or that stand in an address.
        """
        extra = connection.extra_dejson
        for url in urls:
            if "@" in urlsplit(url).netloc:
                raise InvalidJobError(
                    f"connection {conn_id!r}: credentials stand in an address, which is logged; write them "
                    "as the connection's login and password"
                )
        token, token_file = _text(extra, "token"), _text(extra, "token-file")
        ways = [
            name
            for name, value in (
                ("login and password", connection.login),
                ("token", token),
                ("token-file", token_file),
            )
            if value
        ]
        if len(ways) > 1:
            raise InvalidJobError(f"connection {conn_id!r} has {' and '.join(ways)}; leave one way")
        return cls(
            master=master,
            urls=urls,
            login=connection.login or None,
            password=connection.password or None,
            token=token,
            token_file=token_file,
            ca_file=_text(extra, "ca-file"),
            verify=_boolean(extra, "verify", conn_id),
            client_cert=_text(extra, "client-cert"),
            client_key=_text(extra, "client-key"),
            tolerated_taints=tuple(split_list(_text(extra, "tolerated-taints") or "")),
            proxy=_proxy(extra, conn_id),
        )


def master_of(connection: Connection, conn_id: str) -> str:
    """Spark's master URL of a connection, put together as the Spark provider's hook does.

    Raises:
        InvalidJobError: it has no host.
    """
    host = connection.host or ""
    if not host:
        raise InvalidJobError(
            f"connection {conn_id!r} has no host; expected a master such as 'local[*]', "
            "'spark://host:7077', 'yarn' or 'k8s://https://host:port'"
        )
    is_master = connection.conn_type == "spark" and ("://" in host or not connection.port)
    master = host if is_master else f"{connection.conn_type}://{host}"
    return f"{master}:{connection.port}" if connection.port else master


def scheme_of(master: str) -> str:
    """What kind of master it is: `spark`, `local`, `yarn` or `k8s`; whatever else stands there."""
    match = re.match(r"[a-z0-9]+", master)
    return match[0] if match else ""


def without_connection(conn_id: str, environ: Mapping[str, str]) -> ClusterEndpoint:
    """This machine, as for the operators: there is no Spark connection of that name.

    Raises:
        InvalidJobError: there should be one.
    """
    variable = f"AIRFLOW_CONN_{conn_id.upper()}"
    if variable in environ:
        raise InvalidJobError(
            f"{variable} is set but cannot be read as a connection; in a URI the brackets of local[2] "
            "must be encoded, spark://local%5B2%5D, or write it as JSON: "
            '{"conn_type": "spark", "host": "local[2]"}'
        )
    if conn_id != DEFAULT_CONN_ID:
        raise InvalidJobError(
            f"there is no connection {conn_id!r}; create it, or leave conn_id out to run on this machine"
        )
    return ClusterEndpoint(EMBEDDED_MASTER)


def split_list(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _text(extra: Mapping[str, Any], name: str) -> str | None:
    value = extra.get(name)
    return str(value) if value not in (None, "") else None


def _proxy(extra: Mapping[str, Any], conn_id: str) -> str | None:
    proxy = _text(extra, "proxy")
    if proxy is not None and not re.match(r"https?://[^/]", proxy):
        # What was found is not shown: it may hold a password.
        raise InvalidJobError(
            f"connection {conn_id!r}: proxy must be an address that begins with http:// or https://, such as "
            "'http://proxy:3128'"
        )
    return proxy


def _boolean(extra: Mapping[str, Any], name: str, conn_id: str) -> bool:
    value = str(extra.get(name, True)).lower()
    if value not in ("true", "false"):
        raise InvalidJobError(f"connection {conn_id!r}: {name} must be true or false, found {value!r}")
    return value == "true"
