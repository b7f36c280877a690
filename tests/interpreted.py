"""Spark that interprets its expressions: to write, compile and load code costs more, for a hundred rows."""

from __future__ import annotations

SETTINGS = {
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}


def java_options() -> str:
    """The same for `SPARK_SUBMIT_OPTS`: applications have what spark-submit's JVM has as properties."""
    return " ".join(f"-D{name}={value}" for name, value in SETTINGS.items())
