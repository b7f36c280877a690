"""Jobs on a Spark Connect server: the application is a process of the task, and there is no JVM here."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from airflow_hydrogen.clusters.endpoint import Connection
from airflow_hydrogen.contract.connect import DEFAULT_PORT, ConnectAccess
from airflow_hydrogen.contract.errors import InvalidJobError, LauncherError, NotOnConnectError
from airflow_hydrogen.hooks.class_archives import ClassArchive
from airflow_hydrogen.hooks.launchers import worker_environment
from airflow_hydrogen.hooks.spark_submit import EXEC_WITH_PARENT, HydrogenSparkSubmitHook

CONN_TYPE = "spark_connect"
"""Of the Spark provider's own connections to Spark Connect, with a form of their own."""
SCHEME = "sc://"

_SQL = "spark.sql."
# Options of the operator that are about an application of its own -> how DAGs call them.
_OF_APPLICATIONS = {
    "_packages": "packages",
    "_jars": "jars",
    "_exclude_packages": "exclude_packages",
    "_repositories": "repositories",
    "_driver_class_path": "driver_class_path",
    "_total_executor_cores": "total_executor_cores",
    "_executor_cores": "executor_cores",
    "_executor_memory": "executor_memory",
    "_driver_memory": "driver_memory",
    "_num_executors": "num_executors",
    "_keytab": "keytab",
    "_principal": "principal",
    "_proxy_user": "proxy_user",
    "_properties_file": "properties_file",
    "_yarn_queue": "yarn_queue",
    "_spark_binary": "spark_binary",
}


def is_connect(connection: Connection) -> bool:
    """Whether a connection is to a Spark Connect server."""
    return connection.conn_type == CONN_TYPE or str(connection.host or "").startswith(SCHEME)


def access_of(conn_id: str, connection: Connection) -> ConnectAccess:
    """What a connection says of its server.

    Args:
        conn_id: its name.
        connection: of type `spark_connect`, or of type `spark` with `sc://...` as its host. The login is the
            user, the password the token, `use_ssl` stands in the extra field.

    Raises:
        InvalidJobError: no host, or an address that cannot be read or that has the token in it.
    """
    given = str(connection.host or "")
    address = urlsplit(given if given.startswith(SCHEME) else f"{SCHEME}{given}")
    path, _, parameters = address.path.partition(";")
    try:
        host, port = address.hostname, connection.port or address.port or DEFAULT_PORT
    except ValueError:
        host, port = None, 0
    if not host or path not in ("", "/") or address.query or address.fragment:
        raise InvalidJobError(
            f"connection {conn_id!r} has the host {address.hostname or ''!r}, which is no address of a Spark "
            "Connect server; expected a name such as 'spark.example.org', or 'sc://spark.example.org:15002'"
        )
    pairs = [pair.partition("=") for pair in parameters.split(";") if pair]
    found = {name: unquote(value) for name, _, value in pairs}
    if "@" in address.netloc or "token" in found:
        raise InvalidJobError(
            f"connection {conn_id!r}: credentials stand in an address, which is logged; write the token as "
            "the connection's password"
        )
    if "session_id" in found:
        raise InvalidJobError(f"connection {conn_id!r} names a session_id: leave it out, sessions are found")
    use_ssl = str(connection.extra_dejson.get("use_ssl", found.pop("use_ssl", False))).lower()
    if use_ssl not in ("true", "false"):
        raise InvalidJobError(f"connection {conn_id!r}: use_ssl must be true or false, found {use_ssl!r}")
    user = found.pop("user_id", None)
    return ConnectAccess(
        conn_id=conn_id,
        host=host,
        port=int(port),
        token=connection.password or None,
        use_ssl=use_ssl == "true",
        user_id=connection.login or user,
        headers=found,
    )


class HydrogenConnectHook(HydrogenSparkSubmitHook):
    """Runs the application as a client of a Spark Connect server.

    What it starts ends with the task, as an application that is submitted does; the server lives on, and what
    the task had it do is interrupted.

    Args:
        access: the server; None: as the connection says.
        options: those of HydrogenSparkSubmitHook.

    Raises:
        InvalidJobError: the connection is none to a Spark Connect server.
    """

    def __init__(self, *, access: ConnectAccess | None = None, **options: Any) -> None:
        self._access = access
        super().__init__(**options)

    @property
    def access(self) -> ConnectAccess:
        """The server."""
        if self._access is None:
            self._access = access_of(self._conn_id, self.get_connection(self._conn_id))
        return self._access

    @property
    def settings(self) -> dict[str, str]:
        """Those of `conf`: what else there is, the server knows."""
        return {name: str(value) for name, value in self._conf.items()}

    def uses_this_interpreter(self) -> bool:
        """The application runs on this machine with the Python that runs this task."""
        return True

    def require_launcher(self) -> None:
        """Find out that Spark Connect's client is not here.

        Raises:
            LauncherError: it is not.
        """
        for module in ("pyspark.sql.connect", "grpc", "pandas", "pyarrow"):
            try:
                found = importlib.util.find_spec(module)
            except ModuleNotFoundError:
                found = None
            if found is None:
                raise LauncherError(
                    f"connection {self._conn_id!r} is to a Spark Connect server, and the Airflow worker has "
                    f"no module {module!r}: install pyspark-client there, or pyspark[connect]"
                )

    def with_code(self, code: list[Path]) -> ConnectAccess:
        """The server, and what a session there has to have.

        Args:
            code: zips of Python code that the job needs, besides the author's own.

        Raises:
            NotOnConnectError: files that are not on this machine.
        """
        settings = {name: str(value) for name, value in self._conf.items()}
        py_files = [*_local("py_files", self._py_files), *code]
        archives, files = _local("archives", self._archives), _local("files", self._files)
        digest = hashlib.sha256()
        for file in (*py_files, *archives, *files):
            digest.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
        return dataclasses.replace(
            self.access,
            settings=settings,
            py_files=tuple(map(str, py_files)),
            archives=tuple(map(str, archives)),
            files=tuple(map(str, files)),
            code=digest.hexdigest(),
        )

    def require_possible(self) -> None:
        """Raise NotOnConnectError for an option that would do nothing."""
        for attribute, option in _OF_APPLICATIONS.items():
            if getattr(self, attribute, None):
                raise NotOnConnectError(
                    f"{option}={getattr(self, attribute)!r}", "the application is the server's"
                )
        if others := [name for name in self._conf if not name.startswith(_SQL)]:
            raise NotOnConnectError(
                f"conf {', '.join(map(repr, others))}",
                f"a session has settings that begin with {_SQL!r} alone",
            )

    def _resolve_connection(self) -> dict[str, Any]:
        if self._given_connection is not None:
            return dict(self._given_connection)
        if self._deploy_mode not in (None, "client"):
            raise NotOnConnectError(f"deploy_mode={self._deploy_mode!r}", "the driver is the server's")
        return dict(connection_of(self.access))

    def _class_archive(self) -> ClassArchive | None:
        return None

    def _build_spark_submit_command(self, application: str) -> list[str]:
        environ = worker_environment(self._env_vars)
        paths = [*_split(self._py_files), environ.get("PYTHONPATH", "")]
        self._env = {
            **{name: str(value) for name, value in (self._env_vars or {}).items()},
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
            "PYTHONUNBUFFERED": "1",
        }
        start = [sys.executable, "-I", "-S", str(EXEC_WITH_PARENT), str(os.getpid())]
        return [*start, sys.executable, application, *map(str, self._application_args or ())]


def connection_of(access: ConnectAccess) -> Mapping[str, Any]:
    """What the Spark provider's hook keeps of a connection, for a server."""
    return {**_NO_CONNECTION, "master": access.url}


_NO_CONNECTION: Mapping[str, Any] = {
    "queue": None,
    "deploy_mode": "client",
    "spark_binary": None,
    "namespace": None,
    "principal": None,
    "keytab": None,
    "rest_scheme": "http",
    "rest_port": 6066,
    "rest_endpoint": None,
}


def _local(option: str, named: str | None) -> list[Path]:
    """Files of this machine that an option names."""
    files = [Path(name.partition("#")[0]) for name in _split(named)]
    for file in files:
        if not file.is_file():
            raise NotOnConnectError(
                f"{option}={str(file)!r}", "files are sent from this machine, and it has none there"
            )
    return files


def _split(named: str | None) -> list[str]:
    return [name.strip() for name in (named or "").split(",") if name.strip()]
