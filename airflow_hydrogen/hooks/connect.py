"""Jobs on a Spark Connect server: the application is a process of the task, and there is no JVM here."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from airflow_hydrogen.clusters.endpoint import Connection, split_list
from airflow_hydrogen.contract.connect import DEFAULT_PORT, ConnectAccess
from airflow_hydrogen.contract.errors import InvalidJobError, LauncherError, NotOnConnectError
from airflow_hydrogen.hooks.class_archives import ClassArchive
from airflow_hydrogen.hooks.launchers import own_path, worker_environment
from airflow_hydrogen.hooks.spark_submit import EXEC_WITH_PARENT, HydrogenSparkSubmitHook

CONN_TYPE = "spark_connect"
"""Of the Spark provider's own connections to Spark Connect, with a form of their own."""
SCHEME = "sc://"

_SQL = "spark.sql."
_TOKEN = re.compile(r"[!-~]+")
# What Spark's client takes for one.
_ENDINGS = {
    "py_files": (".py", ".zip", ".egg", ".jar"),
    "archives": (".zip", ".jar", ".tar.gz", ".tgz", ".tar"),
    "files": ("",),
}
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
    "spark_binary": "spark_binary",
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
    if connection.password and not _TOKEN.fullmatch(connection.password):
        raise InvalidJobError(
            f"connection {conn_id!r}: its password, the token, has a blank, a line break or a letter that is "
            "not ASCII in it; write the token alone"
        )
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
            NotOnConnectError: files that are not on this machine, or that a session does not take.
        """
        settings = {name: str(value) for name, value in self._conf.items()}
        sent = {
            "py_files": [*_local("py_files", self._py_files), *map(str, code)],
            "archives": _local("archives", self._archives),
            "files": _local("files", self._files),
        }
        digest = hashlib.sha256()
        for option, named in sent.items():
            _require_names(option, named)
            for name in named:
                content = hashlib.sha256(_path(name).read_bytes()).hexdigest()
                digest.update(repr((option, Path(name).name, content)).encode())
        return dataclasses.replace(
            self.access,
            settings=settings,
            py_files=tuple(sent["py_files"]),
            archives=tuple(sent["archives"]),
            files=tuple(sent["files"]),
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
        folder = Path(application).parent  # the task's own
        paths = [*_importable(self._py_files, folder), *own_path(), environ.get("PYTHONPATH", "")]
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


def _local(option: str, named: str | None) -> list[str]:
    """Files of this machine that an option names; an archive may have `#`, and the folder it becomes."""
    names = split_list(named or "")
    for name in names:
        if not _path(name).is_file():
            raise NotOnConnectError(
                f"{option}={name!r}", "files are sent from this machine, and it has none there"
            )
        if not _path(name).name.endswith(_ENDINGS[option]):
            raise NotOnConnectError(
                f"{option}={name!r}", f"names of these end with {' or '.join(_ENDINGS[option])}"
            )
        if "#" in name and option != "archives":
            raise NotOnConnectError(f"{option}={name!r}", "only archives get another name")
    return names


def _require_names(option: str, named: Sequence[str]) -> None:
    found: dict[str, str] = {}
    for name in named:
        other = found.setdefault(_path(name).name, name)
        if other is not name:
            raise NotOnConnectError(f"{option}='{other},{name}'", "a session has one file of a name")


def _importable(py_files: str | None, folder: Path) -> list[str]:
    """What this machine's Python imports them from: a module is put into a folder."""
    names = split_list(py_files or "")
    modules = [name for name in names if name.endswith(".py")]
    for name in modules:
        shutil.copy(name, folder)
    return [*([str(folder)] if modules else []), *(name for name in names if name not in modules)]


def _path(name: str) -> Path:
    return Path(name.partition("#")[0])
