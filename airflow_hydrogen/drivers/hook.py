"""spark-submit for a Python driver on a standalone cluster, which Spark itself takes for Java only.

Spark's own launcher of Python drivers is a Java class, `PythonRunner`, and the jar that it is said to be in
is fetched by the worker: a zip that Python runs. `spark-submit --deploy-mode cluster --class ...PythonRunner
http://this-machine/.../application.jar {{USER_JAR}} ""`, and the worker puts its own path for `{{USER_JAR}}`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowException

from airflow_hydrogen.clusters.drivers import end_driver
from airflow_hydrogen.clusters.endpoint import ClusterEndpoint, split_list
from airflow_hydrogen.contract.errors import HydrogenError, InvalidJobError
from airflow_hydrogen.drivers import clean_java
from airflow_hydrogen.drivers.bundle_server import KEY_VARIABLE, BundleServer
from airflow_hydrogen.hooks.launchers import launcher_environment, require_java
from airflow_hydrogen.hooks.spark_submit import HydrogenSparkSubmitHook

PYTHON_RUNNER = "org.apache.spark.deploy.PythonRunner"
USER_JAR = "{{USER_JAR}}"

_SUBMITTED = re.compile(r"successfully submitted as (driver-[0-9-]+)")
_KILL_TIMEOUT_S = 3.0  # Airflow's supervisor kills a task 5 s after it asked it to end
_MASK = "******"


class ClusterDriverHook(HydrogenSparkSubmitHook):
    """Submits a driver to a standalone cluster.

    Args:
        server: serves the bundle; its token and its key are kept out of the log.
        supervise: let Spark start the driver again when it dies.
        on_driver: called with the driver's id as soon as the master has given it one.
        env_vars: the driver's environment; nothing else of this process's environment reaches the cluster.
        options: those of HydrogenSparkSubmitHook.
    """

    def __init__(
        self,
        *,
        server: BundleServer,
        supervise: bool,
        on_driver: Callable[[str], None],
        env_vars: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self._server = server
        self._supervise = supervise
        self._on_driver = on_driver
        self._driver_environment = {name: str(value) for name, value in (env_vars or {}).items()}
        super().__init__(**options)

    @property
    def driver_id(self) -> str | None:
        """The driver's id, once it is submitted."""
        return self._driver_id

    def submit(self, application: str = "", **kwargs: Any) -> str | None:
        """Run spark-submit, which ends some seconds after the master has taken the driver."""
        with tempfile.TemporaryDirectory(prefix="airflow-hydrogen-java-") as folder:
            kwargs["env"] = {
                **launcher_environment(os.environ),
                "JAVA_HOME": folder,
                clean_java.JAVA: require_java(os.environ),
                clean_java.DRIVER_ENVIRONMENT: json.dumps(
                    {**self._driver_environment, KEY_VARIABLE: self._server.key}
                ),
            }
            _write_java(Path(folder, "bin", "java"))
            try:
                return super().submit(application, **kwargs)
            except AirflowException as error:
                if self._driver_id is None:
                    raise
                # It looks at the driver once more before it ends, and fails where the driver has failed.
                self.log.warning("spark-submit failed after it had submitted the driver: %s", error)
                return self._driver_id

    def on_kill(self) -> None:
        """End spark-submit and the driver."""
        self.killed = True
        self._end_session()
        if self._driver_id is not None:
            kill_driver(self.cluster_endpoint(), self._driver_id, self.log.info)
        self._run_post_submit_commands()

    def _build_spark_common_args(self) -> list[str]:
        arguments: list[str] = super()._build_spark_common_args()
        return [*arguments, "--supervise"] if self._supervise else arguments

    def _mask_cmd(self, connection_cmd: str | list[str]) -> str:
        masked: str = super()._mask_cmd(connection_cmd)
        return self._mask(masked)

    def _watch(self, lines: Iterator[Any]) -> Iterator[Any]:
        for line in super()._watch(map(self._mask, lines)):
            if self._driver_id is None and (found := _SUBMITTED.search(line)):
                self._driver_id = found[1]
                self._on_driver(found[1])
            yield line

    def _mask(self, text: str) -> str:
        return text.replace(self._server.token, _MASK)


def open_bundle_server(hook: HydrogenSparkSubmitHook) -> BundleServer:
    """A server for the workers of a hook's cluster.

    Raises:
        BundleServerError: nothing can be served.
        InvalidJobError: the connection's extras make no sense.
    """
    extra = hook.connection_extra()
    port = str(extra.get("bundle-port") or 0)
    if not port.isdigit():
        raise InvalidJobError(f"the Spark connection's bundle-port must be a number, found {port!r}")
    host, _, master_port = split_list(hook.master.removeprefix("spark://"))[0].rpartition(":")
    route_to = (host.strip("[]"), int(master_port)) if master_port.isdigit() else (master_port, 0)
    return BundleServer(route_to, extra.get("bundle-host") or None, int(port))


def kill_driver(endpoint: ClusterEndpoint, driver_id: str, say: Callable[..., None]) -> None:
    """End a driver from a signal's handler: on a thread, as it may have interrupted a loop of this one."""

    def kill() -> None:
        try:
            asyncio.run(end_driver(endpoint, driver_id))
            say("Asked the master to end driver %s", driver_id)
        except HydrogenError as error:
            say("Driver %s was not ended: %s", driver_id, error)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    thread.join(_KILL_TIMEOUT_S)


def is_remote(file: str) -> bool:
    """Whether the cluster fetches a file by itself: `s3a://...`, `hdfs://...`, or `local:` on every host."""
    scheme, found, _ = file.partition(":")
    return bool(found) and scheme != "file"


def _write_java(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{clean_java.__file__}" "$@"\n')
    path.chmod(0o700)
