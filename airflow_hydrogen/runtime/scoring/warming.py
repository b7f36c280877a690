"""Python workers that have the model's framework when their rows come: which modules, where, and when."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import airflow_hydrogen
from airflow_hydrogen.contract.jobs import Entrypoint, InferenceJob
from airflow_hydrogen.contract.python_workers import (
    AHEAD_VARIABLE,
    MODULE,
    MODULES_VARIABLE,
    OF_EVERY_WORKER,
    socket_name,
    start_ahead,
)
from airflow_hydrogen.runtime.connect.sessions import is_connect
from airflow_hydrogen.runtime.gang.preload import Preload
from airflow_hydrogen.runtime.gang.preload import plan as read_code
from airflow_hydrogen.runtime.gang.warming import beside
from airflow_hydrogen.runtime.models import engines
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.storage import s3

if TYPE_CHECKING:
    from pyspark import SparkConf
    from pyspark.sql import SparkSession

DAEMON = "spark.python.daemon.module"

_USES_DAEMON = "spark.python.use.daemon"
_ENVIRONMENT = "spark.executorEnv."
_MODULES = f"{_ENVIRONMENT}{MODULES_VARIABLE}"
_PATH = f"{_ENVIRONMENT}PYTHONPATH"
_SHORT_TRACES = f"{_ENVIRONMENT}SPARK_SIMPLIFIED_TRACEBACK"
_SQL_SHORT_TRACES = "spark.sql.execution.pyspark.udf.simplifiedTraceback.enabled"

_SAID = "each Python worker imports the model's framework for itself"

_PROGRAM = "torch.export"
_FRAMEWORKS = {
    "keras": ("tensorflow", "keras"),
    "tensorflow": ("tensorflow",),
    "torch": ("torch",),
    engines.ONNX: ("onnxruntime",),
    # Most of what torch.export.load imports.
    _PROGRAM: ("torch", "torch.export._trace"),
}
_OF_ENGINES = {engines.ONNX: engines.ONNX, engines.TORCH: _PROGRAM}


def plan(job: InferenceJob, manifest: Manifest) -> Preload:
    """Which modules workers of a scoring may have before they are asked. Imports none of the user's.

    A model's own loader needs its framework. A predictor needs what its text names, whatever the manifest
    calls the model. Code of the user's that names a variable which frameworks read when they are imported
    sets it, as like as not, before it imports them: then nothing is imported beforehand.

    Args:
        job: the scoring.
        manifest: of its model.
    """
    predictor = job.predictor or manifest.predictor
    code = [read_code(Entrypoint.parse(path), None) for path in (predictor, job.prepare) if path]
    engine = engines.choose(job.model_uri, manifest, job.engine, job.predictor, job.gpus_per_task)
    if engine != engines.ONNX:
        code += [read_code(Entrypoint.parse(f"{module}:load"), None) for module in manifest.modules]
    for found in code:
        if found.why_not:
            return found
    own = _OF_ENGINES.get(engine, manifest.framework)
    named = code[0].modules if predictor else (own,)
    wanted = [name for name in _FRAMEWORKS if name in named]
    modules = dict.fromkeys(module for name in wanted for module in _FRAMEWORKS[name])
    return Preload((*OF_EVERY_WORKER, *modules) if wanted else ())


def settings(given: SparkConf, preload: Preload, say: Callable[[str], None]) -> dict[str, str]:
    """Spark's settings by which executors start their workers from `daemon`.

    None where there is nothing to import, and where it is not certain that every executor can start it: no
    Python task would run without its daemon.

    Args:
        given: what the user has set, which wins.
        preload: what workers may have imported.
        say: called with a line where workers will import for themselves, though they need not.
    """
    is_ours = given.get(_USES_DAEMON, "true").lower() == "true" and not given.contains(DAEMON)
    if sys.platform != "linux" or not is_ours:
        return {}
    if preload.why_not:
        say(f"{_SAID}: {preload.why_not}")
    if not preload.modules:
        return {}
    path = import_path(
        given.get("spark.master", "local"),
        Path(airflow_hydrogen.__file__).parents[1],
        ships=bool(given.get("spark.submit.pyFiles", "")),
        same_interpreter=_is_ours(_worker_python()),
    )
    if path is None:
        say(f"{_SAID}: it is not certain that executors can import {MODULE} before they run a task")
        return {}
    paths = [entry for entry in (path, given.get(_PATH, "")) if entry]
    found = {
        DAEMON: MODULE,
        _MODULES: ",".join(preload.modules),
        **({_PATH: os.pathsep.join(paths)} if paths else {}),
        # Spark has a daemon for each environment of workers, and in this alone those of SQL differ.
        **({_SHORT_TRACES: "1"} if given.get(_SQL_SHORT_TRACES, "true") == "true" else {}),
    }
    if _runs_here(given.get("spark.master", "local")) and shutil.which(_worker_python()):
        found[f"{_ENVIRONMENT}{AHEAD_VARIABLE}"] = _start_ahead({**dict(given.getAll()), **found})
    return found


def _runs_here(master: str) -> bool:
    """Whether this driver's JVM is the executor."""
    return master == "local" or master.startswith("local[")


def _start_ahead(conf: Mapping[str, str]) -> str:
    """Start what Spark's daemon is going to be forked from, with the environment that it will have.

    That is the JVM's, which does not have the keys of the job's connection to S3, as this process has.

    Returns:
        The name of its socket.
    """
    name = socket_name()
    given = {
        key.removeprefix(_ENVIRONMENT): value for key, value in conf.items() if key.startswith(_ENVIRONMENT)
    }
    paths = [path for path in (given.get("PYTHONPATH"), os.environ.get("PYTHONPATH")) if path]
    keys: dict[str, str] = {}
    if (access := s3.current()) is not None:
        access.set_variables(keys)
    environ = {
        **{key: value for key, value in os.environ.items() if key not in keys},
        "OMP_NUM_THREADS": conf.get("spark.task.cpus", "1"),
        **given,
        "PYTHONPATH": os.pathsep.join(paths),
    }
    atexit.register(_end, start_ahead(_worker_python(), environ, name))
    return name


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _worker_python() -> str:
    """What Spark runs workers with."""
    return os.environ.get("PYSPARK_PYTHON", "python3")


def import_path(master: str, root: Path, *, ships: bool, same_interpreter: bool) -> str | None:
    """What an executor needs on its path to import this package, before the files of a job are on it.

    Args:
        master: Spark's.
        root: the zip or the folder that this driver has the package from.
        ships: files of code are sent to the executors.
        same_interpreter: a worker on this machine would run this interpreter.

    Returns:
        An entry of PYTHONPATH, empty where none is needed; None where nobody knows.
    """
    packed, installed = root.suffix == ".zip", root.name in ("site-packages", "dist-packages")
    if master.startswith("local"):
        if packed or not installed:
            return str(root.absolute())
        return "" if same_interpreter else None
    if packed:
        # Executors have fetched the zip into their folder, in which the daemon starts, before the first task.
        return root.name if master.startswith("spark:") else None
    # What is not sent has to be there, or nothing could be scored.
    return None if ships else ""


def _is_ours(python: str) -> bool:
    found = shutil.which(python)
    return found is not None and Path(found).parent == Path(sys.executable).parent


def warm_workers(spark: SparkSession, say: Callable[[str], None]) -> threading.Thread | None:
    """Have the executors that are there start their daemons, by a small job beside whatever else runs.

    Args:
        spark: the session.
        say: called with a line where that fails; the daemons then start when they are needed.

    Returns:
        The thread that runs the job; None where Spark forks its workers from another daemon.
    """
    if is_connect(spark):
        return None
    context = spark.sparkContext
    if context.getConf().get(DAEMON) != MODULE:
        return None
    tasks = 1 if _runs_here(str(context.master)) else context.defaultParallelism
    return beside(spark, _nothing, tasks, lambda why: say(f"no Python worker was started beforehand: {why}"))


@contextmanager
def prepared_apart(spark: SparkSession, gpus: float) -> Iterator[None]:
    """Have Python functions that are made in the block run in workers that never score.

    Spark gives a task any idle worker of those that have its environment, one after the other: each of them
    would come to hold the model on a GPU on which there is room for as many as are to share it.

    Args:
        spark: the session.
        gpus: of a task that scores; without any, workers do both.
    """
    if not gpus:
        yield
        return
    environment = spark.sparkContext.environment
    environment[MODULES_VARIABLE] = ""
    try:
        yield
    finally:
        del environment[MODULES_VARIABLE]


def _nothing(_partition: Iterable[int]) -> None:
    """The task's worker is there, and its daemon."""
