"""Whether a job runs on the Spark Connect server that tasks of this machine share, and how it gets there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from airflow.providers.common.compat.sdk import conf

from airflow_hydrogen.contract import connect_limits, uris
from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.contract.errors import ApplicationError, InvalidJobError, NotOnConnectError
from airflow_hydrogen.contract.jobs import InferenceJob, Job, TrainJob
from airflow_hydrogen.contract.python_workers import READ_AT_IMPORT
from airflow_hydrogen.drivers.zips import read_bytes
from airflow_hydrogen.hooks import connectors
from airflow_hydrogen.hooks.local_servers.joining import joined
from airflow_hydrogen.hooks.local_servers.settings import IDLE_S, ServerSettings

_SECTION, _OPTION = "airflow_hydrogen", "local_sessions"
_WAYS = ("auto", "true", "false")
NOWHERE = ConnectAccess(conn_id="", host="localhost")
"""Stands for the server, to find out what it cannot do before it is started."""

# Those that run all tasks where Airflow itself runs.
_OF_ONE_MACHINE = {"LocalExecutor", "SequentialExecutor"}
# Of a session without SparkContext, to code that takes one.
_MISSING = ("PySparkAttributeError", "PySparkNotImplementedError", "NotOnConnectError")
_OF_CATALOGS = ("table", "hive")


def are_wanted(master: str) -> bool:
    """Whether tasks on a master are to share a server of this machine.

    Raises:
        InvalidJobError: the setting is none of those that are known.
    """
    way = conf.get(_SECTION, _OPTION, fallback="auto").lower()
    if way not in _WAYS:
        raise InvalidJobError(f"[{_SECTION}] {_OPTION} must be one of {', '.join(_WAYS)}, found {way!r}")
    is_here = master == "local" or master.startswith("local[")
    if way == "auto":
        executors = {name.strip() for name in conf.get("core", "executor", fallback="").split(",")}
        return is_here and executors <= _OF_ONE_MACHINE
    return is_here and way == "true"


def require_possible(job: Job, env_vars: Mapping[str, object] | None, code: Iterable[Path] = ()) -> None:
    """Raise NotOnConnectError where a job takes an application of its own.

    Args:
        job: what is to run.
        env_vars: the task's own.
        code: files of the project's that the job needs.
    """
    connect_limits.require_possible(job)
    if env_vars:
        raise NotOnConnectError(f"env_vars {sorted(env_vars)}", "workers have their server's environment")
    if isinstance(job, InferenceJob):  # ranks are forked from what is started for them
        for file in code:
            if found := READ_AT_IMPORT.search(read_bytes(file).decode(errors="replace")):
                raise NotOnConnectError(
                    f"a job whose code has {found[0]} in it ({file.name})",
                    "the server has imported frameworks already, which read that when they are imported",
                )
    for source in job.sources:
        if source.kind in _OF_CATALOGS or (source.kind == "sql" and not source.tables):
            raise NotOnConnectError(f"source {source}", "catalogs are an application's")
    if needed := connectors.needed(job.places, {}):
        raise NotOnConnectError(f"a job with {needed[0].jar} jars", "the server has none")
    for place in (job.model_uri, *(source.uri for source in job.sources), *_written(job)):
        if place is not None and uris.local_path(place) is None:
            raise NotOnConnectError(f"{place!r}", "the server has no credentials of the task's environment")


def _written(job: Job) -> tuple[str | None, ...]:
    return () if isinstance(job, TrainJob) else (job.sink.uri, job.quarantine_uri)


@contextmanager
def joining(master: str, say: Callable[[str], None]) -> Iterator[ConnectAccess]:
    """The server of this machine, as long as the block lasts.

    Args:
        master: `local[...]`.
        say: called with lines for the log.

    Raises:
        LauncherError: there is none, and none can be started.
    """
    idle_s = conf.getfloat(_SECTION, "session_idle_s", fallback=IDLE_S)
    with joined(ServerSettings.find(os.environ, master=master, idle_s=idle_s), say) as server:
        port = urlsplit(server.url).port
        assert port is not None
        yield ConnectAccess(conn_id="", host="localhost", port=port, token=server.token)


def takes_application(error: ApplicationError) -> bool:
    """Whether a job has failed of what a session without SparkContext does not have, or may not set."""
    return (error.error_type or "").rpartition(".")[2] in _MISSING
