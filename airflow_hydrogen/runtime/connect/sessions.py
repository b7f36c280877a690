"""Sessions of a Spark Connect server: joined by one job, left as they were found for the next one."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.contract.errors import (
    ConnectRefusedError,
    ConnectServerError,
    GangError,
    HydrogenError,
    NotOnConnectError,
)
from airflow_hydrogen.runtime.connect.guarding import guarded
from airflow_hydrogen.runtime.connect.leases import Lease, leased
from airflow_hydrogen.runtime.connect.reach import require_reachable
from airflow_hydrogen.runtime.spark_errors import spark_errors

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

MODE = "SPARK_CONNECT_MODE_ENABLED"
"""Of the environment: whether `pyspark.sql` makes things of Spark Connect's client."""

_REMOTE = "SPARK_REMOTE"
_TOKEN = "SPARK_CONNECT_AUTHENTICATE_TOKEN"
# A setting that the server does not know: whoever finds it has joined the session that was made for it.
_MARK = "spark.airflow_hydrogen.code"
_OLDEST = (4, 0)
# Waits of 0.05, 0.2, 0.8, 3.2 and 12.8 s, and some more: a network that is back within that time is forgiven.
_RETRIES = 5
_INTERRUPT_RETRIES = 2

_CANCELLED = "OPERATION_CANCELED"
# Whether it is there is asked of a server that hangs, or to which the way is cut. It does not let itself be
# asked twice in five minutes.
_ALIVE = {
    "grpc.keepalive_time_ms": 320_000,
    "grpc.keepalive_timeout_ms": 30_000,
    "grpc.http2.max_pings_without_data": 0,
}
_HERE = ("localhost", "127.0.0.1", "::1")
_GONE = {
    "SESSION_CLOSED": "has closed the session, because nothing happened in it or it was told to",
    "SESSION_CHANGED": "was started anew meanwhile, and knows nothing of the session",
    "SESSION_NOT_FOUND": "has lost the session",
    "OPERATION_NOT_FOUND": "has lost the operation: it was started anew, or has no memory left for it",
    "OPERATION_ABANDONED": "has given the operation up, because nobody asked for its results",
    _CANCELLED: "has cancelled the operation, because somebody told it to",
}
_REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED", "UNIMPLEMENTED")
_UNREACHABLE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED")

# As Spark finds settings that it does not show.
_SECRET = re.compile("(?i)secret|password|passphrase|token|credential|access[.]?key")

_open: _Joined | None = None


class _UncleanError(Exception):
    """A session cannot be made what it was."""


class _Joined:
    """A session that is joined when it is first asked for, and left at the block's end."""

    def __init__(self, access: ConnectAccess, stack: ExitStack) -> None:
        self.access, self._stack = access, stack
        self._spark: SparkSession | None = None
        self.secret = ""

    def spark(self, *, touched: bool) -> SparkSession:
        if self._spark is None:
            lease = self._stack.enter_context(leased(self.access))
            self._spark = self._join(lease, touched)
        return self._spark

    def _join(self, lease: Lease, touched: bool) -> SparkSession:
        access = self.access
        require_reachable(access)
        if lease.is_used:  # by a job that died: what it has left there is not known
            _end(access, lease.session_id)
            lease.renew()
        lease.is_used = True  # before there is a guard, which ends what runs in it
        lease.keep()
        spark, is_new = _ready(access, lease)
        self._stack.callback(spark.client.close)
        lease.is_touched = touched
        lease.keep()
        self.secret = lease.session_id
        self._stack.push(partial(_leave, access, spark, lease))
        self._stack.enter_context(guarded(access, lease.session_id))
        _set(spark, access.settings)
        print(
            f"airflow-hydrogen: {'opened' if is_new else 'joined'} session {lease.session_id[:8]} of Spark "
            f"{spark.version} at {access.url}",
            flush=True,
        )
        return spark


@contextmanager
def joining(access: ConnectAccess | None) -> Iterator[None]:
    """Have `session` give a session of a server in the block; of no server there is none."""
    global _open
    if access is None:
        yield
        return
    with ExitStack() as stack:
        _open = _Joined(access, stack)
        stack.callback(_forget)
        try:
            yield
        except Exception as error:
            explained = _explained(access, error)
            if explained is error:
                raise
            raise explained from error


def session(access: ConnectAccess, *, touched: bool) -> SparkSession:
    """The session of this job; see `joining`.

    Args:
        access: the server.
        touched: code of the user's will have it, which may leave views, functions and settings.

    Raises:
        ConnectServerError: it does not answer.
        ConnectRefusedError: it does not let this client in.
    """
    assert _open is not None and _open.access == access
    return _open.spark(touched=touched)


def secret_of_session() -> str:
    """The word by which templates know who may ask, for the session's next job too; empty without one."""
    return "" if _open is None else _open.secret


def access_of_job() -> ConnectAccess:
    """The server of this job."""
    assert _open is not None
    return _open.access


def is_connect(thing: SparkSession | DataFrame) -> bool:
    """Whether a session, or a frame's, is one of Spark Connect's, without a SparkContext."""
    return type(thing).__module__.startswith("pyspark.sql.connect")


def interrupt(access: ConnectAccess, session_id: str) -> None:
    """End all that runs in a session, whose job has died."""
    spark = _client(access, session_id, _INTERRUPT_RETRIES)
    try:
        spark.interruptAll()
    finally:
        spark.client.close()


def _forget() -> None:
    global _open
    _open = None


def _leave(access: ConnectAccess, spark: SparkSession, lease: Lease, *failure: Any) -> None:
    """Give a session back with nothing that runs in it; where that is not known, the next job closes it."""
    error = failure[1]
    if error is not None:
        if not isinstance(error, Exception) or isinstance(_explained(access, error), ConnectServerError):
            return
        try:
            spark.interruptAll()
        except spark_errors():
            return
    lease.is_used = False
    lease.keep()


def _ready(access: ConnectAccess, lease: Lease) -> tuple[SparkSession, bool]:
    """A client in a session that has the job's code and nothing else, and whether the session is new."""
    spark, found = _connected(access, lease)
    is_new = lease.settings is None or found.get(_MARK) != access.code
    faults: tuple[type[Exception], ...] = (*spark_errors(), _UncleanError)
    try:
        if is_new:
            _equip(spark, access)
            lease.settings = _remembered(lease.session_id, {**found, _MARK: access.code})
        else:
            _clean(spark, lease, found)
    except faults as error:
        spark.client.close()
        if is_new or _fault(access, error) is not None:
            raise
        print(f"airflow-hydrogen: a session is given up: {_first_line(str(error))}", flush=True)
        _end(access, lease.session_id)
        lease.renew()
        return _ready(access, lease)
    return spark, is_new


def _connected(access: ConnectAccess, lease: Lease) -> tuple[SparkSession, dict[str, str]]:
    """A client whose session is open, and the session's settings."""
    spark = _client(access, lease.session_id, _RETRIES)
    try:
        found = _settings(spark)
    except Exception as error:
        spark.client.close()
        if lease.settings is None or "SESSION_CLOSED" not in str(error):
            raise
        lease.renew()
        return _connected(access, lease)
    _require_version(access, spark)
    return spark, found


def _client(access: ConnectAccess, session_id: str, retries: int) -> SparkSession:
    from pyspark.sql.connect.client.core import DefaultChannelBuilder
    from pyspark.sql.connect.client.retries import DefaultPolicy
    from pyspark.sql.connect.session import SparkSession

    os.environ[MODE] = "1"
    os.environ[_REMOTE] = access.url  # else `SparkSession.builder.getOrCreate()` looks for no session
    os.environ.pop(_TOKEN, None)  # it would be sent to whatever server
    builder = DefaultChannelBuilder(access.url)
    for option, chosen in _ALIVE.items():
        builder.setChannelOption(option, chosen)
    if access.host in _HERE:
        builder.setChannelOption("grpc.enable_http_proxy", 0)  # it would be asked for this machine too
    for name, value in access.headers.items():
        builder.set(name, value)
    builder.set("session_id", session_id)
    if access.token is not None:
        builder.set("token", access.token)
    if access.use_ssl:
        builder.set("use_ssl", "true")
    if access.user_id is not None:
        builder.set("user_id", access.user_id)
    _number_plans_anew()
    spark: Any = SparkSession(builder)
    spark.client.set_retry_policies([DefaultPolicy(max_retries=retries)])
    SparkSession._set_default_and_active_session(spark)
    return spark  # type: ignore[no-any-return]


def _number_plans_anew() -> None:
    """Have a plan of this job be none that its session knows.

    A server keeps the plans of a session, with the files that it has found for them, by their numbers, and
    each client counts from 0: it would read the files that the job before has read.
    """
    from pyspark.sql.connect.plan import LogicalPlan

    LogicalPlan._nextPlanId += secrets.randbits(48)


def _settings(spark: SparkSession) -> dict[str, str]:
    return {str(name): str(value) for name, value in spark.conf.getAll.items()}


def _require_version(access: ConnectAccess, spark: SparkSession) -> None:
    found = tuple(int(part) for part in spark.version.split(".")[:2])
    if found < _OLDEST:
        raise ConnectRefusedError(
            access.url, f"is Spark {spark.version}, and {'.'.join(map(str, _OLDEST))} or later is needed"
        )


def _equip(spark: SparkSession, access: ConnectAccess) -> None:
    """Give a new session the code of the job."""
    for files, kind in ((access.py_files, "pyfile"), (access.archives, "archive"), (access.files, "file")):
        if files:
            spark.addArtifacts(*map(_uri, files), **{kind: True})
    spark.conf.set(_MARK, access.code)


def _set(spark: SparkSession, settings: Mapping[str, str]) -> None:
    from pyspark.errors import AnalysisException, IllegalArgumentException

    for name, value in settings.items():
        try:
            spark.conf.set(name, value)
        except (AnalysisException, IllegalArgumentException) as error:
            raise NotOnConnectError(f"conf {name!r}", f"the server says {_first_line(str(error))}") from error


def _uri(name: str) -> str:
    """A file, and after `#` what it is to be called, as Spark's client takes any of them."""
    path, mark, alias = name.partition("#")
    return f"{Path(path).absolute().as_uri()}{mark}{alias}"


def _remembered(session_id: str, settings: Mapping[str, str]) -> dict[str, str]:
    """Settings as they are written down: of what may be a secret of the server's, whether it is the same."""

    def hidden(value: str) -> str:
        return hashlib.sha256(f"{session_id} {value}".encode()).hexdigest()

    return {name: hidden(value) if _SECRET.search(name) else value for name, value in settings.items()}


def _clean(spark: SparkSession, lease: Lease, found: Mapping[str, str]) -> None:
    """Leave nothing in a session of what the job before may have set or made."""
    before, now = lease.settings or {}, _remembered(lease.session_id, found)
    for name in now.keys() - before.keys():
        spark.conf.unset(name)
    for name, value in before.items():
        if now.get(name) == value:
            continue
        if _SECRET.search(name):
            raise _UncleanError(f"{name} is not what it was")
        spark.conf.set(name, value)
    if not lease.is_touched:
        return
    spark.catalog.setCurrentCatalog("spark_catalog")
    spark.catalog.setCurrentDatabase("default")
    for row in spark.sql("SHOW VIEWS").where("isTemporary").collect():
        if not row.namespace:  # else of all sessions
            spark.catalog.dropTempView(row.viewName)
    for row in spark.sql("SHOW USER FUNCTIONS").collect():
        if "." not in row.function:
            name = row.function.replace("`", "``")
            spark.sql(f"DROP TEMPORARY FUNCTION IF EXISTS `{name}`")


def _end(access: ConnectAccess, session_id: str) -> None:
    """Close a session, and end what runs in it. One that is closed already is as good."""
    from pyspark.errors import PySparkException

    spark = _client(access, session_id, _INTERRUPT_RETRIES)
    try:
        spark.interruptAll()
        spark.client.release_session()
    except PySparkException as error:
        if "SESSION_CLOSED" not in str(error):
            raise
    finally:
        spark.client.close()


def _explained(access: ConnectAccess, error: Exception) -> Exception:
    """The error of ours for one of Spark Connect's client that is about the server and not about the job."""
    cause: BaseException | None = error
    while cause is not None:  # what has failed of it may have been taken for a fault of the source's
        if (found := _fault(access, cause)) is not None:
            # What ranks did not do in time, this process has cancelled itself.
            return error if isinstance(error, GangError) and _CANCELLED in _said(cause) else found
        cause = cause.__cause__
    return error


def _fault(access: ConnectAccess, error: BaseException) -> HydrogenError | None:
    """What an error of the client's says of its server; None where it says nothing."""
    if not isinstance(error, spark_errors()):
        return None
    said, status = _said(error), _status(error)
    if status in _REFUSED:
        return ConnectRefusedError(access.url, f"refuses this client: {_first_line(said)}")
    for name, problem in _GONE.items():
        if name in said:
            return ConnectServerError(access.url, f"{problem}; the next try opens another session")
    if status in _UNREACHABLE:
        return ConnectServerError(access.url, f"is gone: {_first_line(said)}")
    return None


def _said(error: Any) -> str:
    """What an error says, without how gRPC prints it."""
    found = re.search(r'details = "(.*)"', str(error))
    return found.group(1) if found else str(error)


def _status(error: Any) -> str:
    """The name of gRPC's status code of an error; empty where it has none."""
    getter = getattr(error, "getGrpcStatusCode", None) or getattr(error, "code", None)
    found = getter() if callable(getter) else None
    return str(getattr(found, "name", ""))


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
