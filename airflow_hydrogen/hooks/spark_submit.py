"""spark-submit, with a default that needs no cluster and an end that leaves no process."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
from airflow.providers.common.compat.sdk import AirflowNotFoundException, conf

from airflow_hydrogen.clusters.endpoint import ClusterEndpoint, without_connection
from airflow_hydrogen.clusters.managers import endpoint_of
from airflow_hydrogen.contract import log_groups
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.hooks.class_archives import ClassArchive, find_class_archive
from airflow_hydrogen.hooks.launchers import (
    DEFAULT_SPARK_BINARY,
    default_settings,
    find_java,
    find_spark_submit,
    is_local,
    python_environment,
    read_properties,
    require_java,
    spark_home,
    worker_environment,
)
from airflow_hydrogen.hooks.sessions import end_session

SPARK_UI_LINE = "airflow-hydrogen: spark-ui "
"""The application prints this, and its Spark UI's address, once it has a Spark session."""

EXEC_WITH_PARENT = Path(__file__).with_name("exec_with_parent.py")
_KILL_GRACE_S = 3.0  # Airflow's supervisor kills a task 5 s after it asked it to end
_TAIL_LINES = 40


class HydrogenSparkSubmitHook(SparkSubmitHook):
    """The Spark provider's hook, and:

    - without any Spark connection it runs on this machine, `local[*]`, where the provider's takes YARN;
    - it finds the spark-submit of an installed pyspark, and this interpreter for Python;
    - what it starts ends with the task, and ends whole: JVM, driver, Python workers and ranks.

    Args:
        on_spark_ui: called with the address of the Spark UI as soon as the application tells it.
        on_submit: called right before spark-submit starts.
        connection: what `resolved_connection` of another hook with the same options says, instead of asking
            Airflow for the connection again.
        options: those of SparkSubmitHook.

    Raises:
        InvalidJobError: the connection names no usable master.
    """

    def __init__(
        self,
        *,
        on_spark_ui: Callable[[str], None] | None = None,
        on_submit: Callable[[], None] | None = None,
        connection: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._on_spark_ui = on_spark_ui
        self._on_submit = on_submit
        self._given_connection = connection
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self.killed = False
        self._session_ended = False
        self._in_group = False
        self._java_options = ""
        self._unwritten_archive: ClassArchive | None = None
        super().__init__(**options)

    @property
    def resolved_connection(self) -> dict[str, Any]:
        """Master, deploy mode, binary and credentials, as the Spark provider's hook keeps them."""
        return dict(self._connection)

    @property
    def master(self) -> str:
        """Spark's master URL."""
        return str(self._connection["master"])

    @property
    def is_local(self) -> bool:
        """Driver and executors are on this machine."""
        return is_local(self.master)

    @property
    def is_cluster_mode(self) -> bool:
        """The driver runs on the cluster, so that it cannot read this machine's files."""
        return bool(self._connection["deploy_mode"] == "cluster")

    @property
    def is_standalone_cluster(self) -> bool:
        """The driver runs on a worker of a standalone cluster."""
        return self.is_cluster_mode and self.master.startswith("spark://")

    @property
    def poll_interval_s(self) -> float:
        """How often a driver on the cluster is looked at."""
        return float(self._status_poll_interval)

    def cluster_endpoint(self) -> ClusterEndpoint:
        """Where the cluster manager answers.

        Raises:
            InvalidJobError: the connection does not say.
        """
        return endpoint_of(self._conn_id, self.get_connection(self._conn_id))

    def connection_extra(self) -> dict[str, Any]:
        """The connection's extra field; empty without a connection."""
        try:
            return dict(self.get_connection(self._conn_id).extra_dejson)
        except AirflowNotFoundException:
            return {}

    @property
    def submitted(self) -> bool:
        """spark-submit has been started."""
        return self._submit_sp is not None

    @property
    def log_tail(self) -> str:
        """The last lines of spark-submit and, in client mode, of the driver; secrets masked."""
        return "\n".join(self._mask_cmd([line]) for line in self._tail)

    @property
    def jars_folder(self) -> Path | None:
        """Where the jars of connectors lie, instead of packages from the network.

        The connection's extra `jars-folder`, or Airflow's `[airflow_hydrogen] jars_folder`.

        Raises:
            InvalidJobError: it is no folder.
        """
        named = self.connection_extra().get("jars-folder") or conf.get(
            "airflow_hydrogen", "jars_folder", fallback=""
        )
        if named and not Path(named).is_dir():
            raise InvalidJobError(f"jars_folder {named!r} is not a folder of this machine")
        return Path(named) if named else None

    @property
    def spark_home(self) -> Path | None:
        """The folder of the Spark that submits."""
        return spark_home(self._get_spark_binary_path()[0], self._launch_environment())

    @property
    def settings(self) -> dict[str, str]:
        """Spark's settings as the submission gives them: a file's, and those of `conf`."""
        given = self._properties_file
        defaults = (
            read_properties(Path(given))
            if given
            else default_settings(self.spark_home, self._launch_environment())
        )
        return {**defaults, **{name: str(value) for name, value in self._conf.items()}}

    def uses_this_interpreter(self) -> bool:
        """The application runs on this machine with the Python that runs this task."""
        environ = worker_environment(self._env_vars)
        chosen = python_environment(self.master, self._connection["deploy_mode"], environ)
        configured = {"spark.pyspark.python", "spark.pyspark.driver.python"} & set(self._conf)
        return self.is_local and chosen.get("PYSPARK_PYTHON") == sys.executable and not configured

    def require_launcher(self) -> None:
        """Find out that spark-submit cannot start before anything is prepared for it.

        Raises:
            SparkSubmitNotFoundError: no spark-submit.
            JavaNotFoundError: no Java.
        """
        self._get_spark_binary_path()
        require_java(self._launch_environment())

    def submit(self, application: str = "", **kwargs: Any) -> str | None:
        """Run spark-submit in a session of its own, bound to the life of this process."""
        if self._on_submit is not None:
            self._on_submit()
        kwargs.setdefault("start_new_session", True)
        self._mark(f"{log_groups.BEGIN}Submission")
        archive = self._class_archive()
        self._java_options = archive.begin() if archive is not None else ""
        if archive is not None and archive.writes:
            self.log.info("Keeping Spark's classes when the application ends: later ones start faster")
        try:
            driver_id: str | None = super().submit(application, **kwargs)
        finally:
            if self._submit_sp is not None and self._submit_sp.stdout is not None:
                self._submit_sp.stdout.close()  # the provider leaves it open
            self._end_session()  # a JVM that died may have left its driver
            self._session_ended = True
            if archive is not None:
                ended_well = self._submit_sp is not None and self._submit_sp.poll() == 0
                self._unwritten_archive = archive if archive.writes and not ended_well else None
                archive.finish(ended_well=ended_well)
            self._mark(log_groups.END)  # a driver that died has left its own open
        return driver_id

    def give_up_archive(self, reason: str) -> bool:
        """Whether it was over the archive of Spark's classes that spark-submit failed after a success.

        Args:
            reason: what it said; kept beside the archives, so that the next jobs write none.
        """
        if self._unwritten_archive is None:
            return False
        self._unwritten_archive.give_up(reason)
        return True

    def on_kill(self) -> None:
        """End the application: on the cluster as the provider does, and every process on this machine."""
        self.killed = True
        self.log.info("Ending the application and every process that spark-submit started")
        if self.is_cluster_mode:
            # The provider ends the application on the cluster only while spark-submit still runs.
            super().on_kill()
            self._end_session()
        else:
            self._end_session()
            super().on_kill()

    def _end_session(self) -> None:
        # Once it has ended, its number may be that of another session.
        if self._submit_sp is None or self._session_ended:
            return
        if killed := end_session(self._submit_sp, _KILL_GRACE_S):
            self.log.info("Killed %s processes that did not end within %s s", len(killed), _KILL_GRACE_S)

    def _resolve_connection(self) -> dict[str, Any]:
        if self._given_connection is not None:
            return dict(self._given_connection)
        try:
            self.get_connection(self._conn_id)
        except AirflowNotFoundException:
            return self._embedded_connection()
        connection: dict[str, Any] = super()._resolve_connection()
        master = connection["master"]
        if master.startswith("spark://local"):
            raise InvalidJobError(
                f"connection {self._conn_id!r} has the master {master!r}, which is the address of a host; "
                f"for Spark on this machine write {master.removeprefix('spark://')!r} as its host"
            )
        if master in ("spark://", ""):
            raise InvalidJobError(
                f"connection {self._conn_id!r} has no host; expected a master such as 'local[*]', "
                "'spark://host:7077', 'yarn' or 'k8s://https://host:port'"
            )
        return connection

    def _embedded_connection(self) -> dict[str, Any]:
        endpoint = without_connection(self._conn_id, os.environ)
        if self._deploy_mode == "cluster":
            raise InvalidJobError(
                f"deploy_mode='cluster' needs a cluster, but there is no connection {self._conn_id!r}"
            )
        self.log.info(
            "There is no Spark connection %r: running on this machine with master %s",
            self._conn_id,
            endpoint.master,
        )
        return {
            "master": endpoint.master,
            "queue": None,
            "deploy_mode": "client",
            "spark_binary": self.spark_binary or DEFAULT_SPARK_BINARY,
            "namespace": None,
            "principal": self._principal,
            "keytab": self._keytab,
            "rest_scheme": "http",
            "rest_port": 6066,
            "rest_endpoint": None,
        }

    def _get_spark_binary_path(self) -> list[str]:
        binary = self._connection["spark_binary"] or DEFAULT_SPARK_BINARY
        return [find_spark_submit(binary, self._launch_environment())]

    def _class_archive(self) -> ClassArchive | None:
        own_class_path = self._driver_class_path or "spark.driver.extraClassPath" in self._conf
        if self.is_cluster_mode or own_class_path:
            return None  # a driver elsewhere; classes of the user's in front of Spark's
        environ = self._launch_environment()
        return find_class_archive(self._get_spark_binary_path()[0], find_java(environ), environ)

    def _launch_environment(self) -> dict[str, str]:
        # A driver on a standalone cluster has the task's env_vars to itself.
        return worker_environment(None if self.is_standalone_cluster else self._env_vars)

    def _build_spark_submit_command(self, application: str) -> list[str]:
        command: list[str] = super()._build_spark_submit_command(application)
        environ = worker_environment(self._env_vars)
        # Not in env_vars: those become Spark settings on YARN and Kubernetes.
        defaults = python_environment(self.master, self._connection["deploy_mode"], environ)
        self._env = {**defaults, **(self._env or {})}
        if self._java_options:
            # For spark-submit's own JVM; the user's come last and win.
            given = environ.get("SPARK_SUBMIT_OPTS", "")
            self._env["SPARK_SUBMIT_OPTS"] = f"{self._java_options} {given}".rstrip()
        return [sys.executable, "-I", "-S", str(EXEC_WITH_PARENT), str(os.getpid()), *command]

    def _process_spark_submit_log(self, itr: Iterator[Any]) -> None:
        super()._process_spark_submit_log(self._watch(itr))

    def _mark(self, mark: str) -> None:
        """Begin or end a group of the task's log. They do not nest: one that begins ends the one before."""
        if self._in_group:
            self.log.info(log_groups.END)
        self._in_group = mark != log_groups.END
        if self._in_group:
            self.log.info("%s", mark)

    def _watch(self, lines: Iterator[Any]) -> Iterator[Any]:
        for line in lines:
            if log_groups.is_mark(line):  # kept out of the tail, which stands in error messages
                self._mark(line.strip())
                continue
            self._tail.append(line.rstrip())
            _, found, url = line.partition(SPARK_UI_LINE)
            if found and self._on_spark_ui is not None:
                self._on_spark_ui(url.strip())
            yield line
