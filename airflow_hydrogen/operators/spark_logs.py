"""Where Spark's whole log goes, and how much of it the task's log shows."""

from __future__ import annotations

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.operators.arguments import to_uri

_LEVELS = ("TRACE", "DEBUG", "INFO", "WARN", "ERROR", "OFF")


def level_conf(level: str | None) -> dict[str, str]:
    """Spark's setting for a level of its log; none for None.

    Raises:
        InvalidJobError: Spark has no such level.
    """
    if level is None:
        return {}
    if level not in _LEVELS:
        raise InvalidJobError(f"spark_log_level must be one of {', '.join(_LEVELS)}, found {level!r}")
    return {"spark.log.level": level}


def location(report_uri: str, base: str, folder: str | None, task_id: str) -> str:
    """The log of the driver that writes a report: derived from it, as the report is what tries remember.

    Args:
        report_uri: `BASE.report-KEY.json`, as for a driver on the cluster.
        base: the output that the report lies beside.
        folder: of logs, where they are to lie elsewhere.
        task_id: begins the name there.
    """
    key = report_uri.rpartition(".report-")[2].removesuffix(".json")
    if folder:
        return uris.join(to_uri("spark_log_uri", folder), f"{task_id}-{key}.log")
    name = f"spark-{key}.log"
    return uris.join(base, f".{name}") if uris.is_root(base) else uris.sibling(base, name)
