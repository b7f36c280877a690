"""Spark's own log: its warnings on the console, and the whole of it in a file that ends at a URI.

At INFO nine lines of ten in a driver's log are Spark's. They are worth nothing while all is well, and a lot
when it is not. So the console gets warnings alone, and a file of the driver gets everything; it is copied to
the URI now and then and at the end, also of a job that fails. A job never fails for its log.

Log4j is told while it runs, in Spark's JVM: a configuration file of ours would replace one of the user's.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from airflow_hydrogen.runtime.storage import filesystems

LOG_LEVEL = "spark.log.level"

_APPENDER = "airflow-hydrogen"
_SPARKS_CONFIGURATION = "org/apache/spark/log4j2-"
_FILE_BYTES = 10_000_000  # and as many of what was before that
_COPY_INTERVAL_S = 10.0
_LAST_COPY_S = 30.0


def quiet_console() -> None:
    """Let the console have warnings alone, unless `spark.log.level` or a log4j2 file of the user decides."""
    with _forgiven("Spark's log stays as it is"):
        from pyspark import SparkConf

        logging = _log4j()
        source = logging.configuration.getConfigurationSource().getLocation() or ""
        if SparkConf().contains(LOG_LEVEL) or _SPARKS_CONFIGURATION not in source:
            return
        core = logging.core
        result = core.Filter.Result
        for name, appender in logging.root.getAppenders().items():
            if name != _APPENDER and not appender.hasFilter():
                warnings = core.filter.ThresholdFilter.createFilter(
                    logging.levels.WARN, result.NEUTRAL, result.DENY
                )
                appender.addFilter(warnings)


@contextmanager
def kept(uri: str | None, folder: Path) -> Iterator[None]:
    """Keep Spark's log of a block at a URI.

    Args:
        uri: of the file; None: nobody wants it.
        folder: of this process's own; the log is written there first.
    """
    copier = _begin(uri, folder / "spark.log") if uri is not None else None
    try:
        yield
    finally:
        if copier is not None:
            copier.finish()


def _begin(uri: str, file: Path) -> _Copier | None:
    with _forgiven(f"Spark's log is not kept at {uri}"):
        _write_to(file)
        copier = _Copier(uri, file)
        copier.start()
        return copier
    return None


def _write_to(file: Path) -> None:
    """Have Spark write to a file all that its loggers let pass at INFO, as it writes to the console.

    The loggers' own levels go on to decide: `spark.log.level`, and a log4j2 file of the user's.
    """
    logging = _log4j()
    layout = next((appender.getLayout() for appender in logging.root.getAppenders().values()), None)
    rolling = logging.core.appender.rolling
    path = str(file).replace("%", "%%")  # in a pattern
    appender = (
        logging.core.appender.RollingFileAppender.newBuilder()
        .setName(_APPENDER)
        .setConfiguration(logging.configuration)
        .setLayout(layout)
        .withFileName(str(file))
        .withFilePattern(f"{path}.%i")
        .withPolicy(rolling.SizeBasedTriggeringPolicy.createPolicy(str(_FILE_BYTES)))
        .withStrategy(
            rolling.DefaultRolloverStrategy.newBuilder()
            .withMax("1")
            .withConfig(logging.configuration)
            .build()
        )
        .build()
    )
    appender.start()
    logging.root.addAppender(appender, logging.levels.INFO, None)
    logging.context.updateLoggers()


class _Log4j:
    """Log4j of Spark's JVM."""

    def __init__(self, jvm: Any) -> None:
        log4j = jvm.org.apache.logging.log4j
        self.core, self.levels = log4j.core, log4j.Level
        self.context = log4j.LogManager.getContext(False)
        self.configuration = self.context.getConfiguration()
        self.root = self.configuration.getRootLogger()


def _log4j() -> _Log4j:
    from pyspark import SparkContext

    SparkContext._ensure_initialized()
    jvm = SparkContext._jvm
    assert jvm is not None
    # spark-submit undoes its own set-up of Log4j, and Spark's first line sets it up anew.
    jvm.org.apache.spark.SparkConf(False).initializeLogIfNecessary(False)
    return _Log4j(jvm)


class _Copier:
    """Copies a log that grows to its URI: on a thread, which a store that hangs may hold."""

    def __init__(self, uri: str, file: Path) -> None:
        self._uri, self._files = uri, (file.with_name(f"{file.name}.1"), file)
        self._copied = b""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spark-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Copy the rest."""
        self._ended.set()
        self._thread.join(_LAST_COPY_S)
        if self._thread.is_alive():
            _say(f"the end of Spark's log is not at {self._uri}: no answer within {_LAST_COPY_S:.0f} s")

    def _run(self) -> None:
        told: set[str] = set()

        def say_once(problem: str) -> None:
            if problem not in told:
                told.add(problem)
                _say(problem)

        ended = False
        while not ended:
            ended = self._ended.wait(_COPY_INTERVAL_S)
            with _forgiven(f"Spark's log cannot be written to {self._uri}", say_once):
                self._copy()

    def _copy(self) -> None:
        log = b"".join(map(_read, self._files))
        if log != self._copied:
            filesystems.write_bytes(self._uri, log)
            self._copied = log


def _read(file: Path) -> bytes:
    with contextlib.suppress(FileNotFoundError):  # there is no older part yet, or it is just being made
        return file.read_bytes()
    return b""


def _say(text: str) -> None:
    print(f"airflow-hydrogen: {text}", flush=True)


@contextmanager
def _forgiven(what: str, say: Callable[[str], None] = _say) -> Iterator[None]:
    """Say what is wrong with the log, and go on: errors of Java and of all stores have no common base."""
    try:
        yield
    except Exception as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        say(f"{what}: {type(error).__name__}: {reason}")
