"""Errors that come back through Spark: ours, which a Python worker raised, and its own, in a line."""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from typing import Any

from airflow_hydrogen.contract import errors

_ERROR_LINE = re.compile(r"airflow_hydrogen\.contract\.errors\.(\w+): (.+)")
_JAVA_FRAMES = re.compile(
    r"^(?:\s*at [\w.$/<>]+\(.*\)|\s*\.\.\. \d+ more|Driver stacktrace:)\n?", re.MULTILINE
)
# The class of the error, and which query of the application it is that has failed.
_NOT_SAID = re.compile(
    r"^(?:(?:[a-z]\w*\.)+[A-Z]\w*(?:Exception|Error): "
    r"|\[STREAM_FAILED\] Query \[.*?\] terminated with exception: )+"
)
_PY4J_PREFIX = re.compile(r"^An error occurred while calling \S+\n: ")


def original_error(error: Exception) -> Exception:
    """The error of ours that a Python worker raised, which Spark passes on as text in one of its own."""
    found = _ERROR_LINE.search(str(error))
    if found is None:
        return error
    kind = getattr(errors, found.group(1), None)
    if not (isinstance(kind, type) and issubclass(kind, errors.HydrogenError)):
        return error
    rebuilt = kind.__new__(kind, found.group(2))
    rebuilt.args = (found.group(2),)
    return rebuilt


def spark_errors() -> tuple[type[Exception], ...]:
    """What Spark raises: errors that it knows in Python, Java's own, and those of the way to its server."""
    from pyspark.errors import PySparkException

    found: list[type[Exception]] = [PySparkException]
    with suppress(ImportError):  # where there is Spark Connect's client alone
        from py4j.protocol import Py4JJavaError

        found.append(Py4JJavaError)
    if (grpc := sys.modules.get("grpc")) is not None:
        found.append(grpc.RpcError)
    return tuple(found)


def root_cause(error: Exception) -> str:
    """The first line of what Spark says, and of what a library below it has said that Spark leaves out.

    What a database says stands for itself: Spark puts a query of its own around it.
    """
    known: Any = getattr(error, "_origin", None)
    java: Any = known or getattr(error, "java_exception", None)
    said = _first_line(str(error) if known or java is None else java.getMessage())
    of_database = False
    while java is not None:
        if not of_database and _is_of_database(java):
            said, of_database = _first_line(java.getMessage()), True
        if (cause := java.getCause()) is None:
            break
        java = cause
    last = said if java is None else _first_line(java.getMessage())
    if java is not None and java.getClass().getSimpleName() == "ClassNotFoundException":
        last = f"no jar has the class {last}: name the one that does as packages or jars"
    return said if last in said else f"{said}: {last}"


def without_java_stack(text: str) -> str:
    """What an error says, without the lines of Java's stack traces: the driver's log has them. Pure."""
    return _PY4J_PREFIX.sub("", _JAVA_FRAMES.sub("", text)).strip()


def _is_of_database(java: Any) -> bool:
    from pyspark import SparkContext

    jvm: Any = SparkContext._jvm
    return bool(jvm.java.lang.Class.forName("java.sql.SQLException").isInstance(java))


def _first_line(text: object) -> str:
    return _NOT_SAID.sub("", str(text or "").strip().partition("\n")[0])
