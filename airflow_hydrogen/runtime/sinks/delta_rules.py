"""Which Delta tables take files that Delta's own writer has not written.

A table may ask its writers for much: values that are made or checked, other names in the files, a feed of
changes. Whoever writes files beside Delta's own writer does nothing of it. So a table is looked at here for
anything that is not known to make no difference, and Spark writes to those that have it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.runtime.data.spark_types import is_plain

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# The classes that commit are no interface of Delta's, and may be others in another version.
_VERSION = re.compile(r"4\.4\.\d+")
# Up to here each feature is known, and shows in the properties or in a column where it is used.
_WRITER_VERSION = 4
_FEATURES_VERSION = 7
_FEATURES = {
    *("appendOnly", "invariants", "checkConstraints", "changeDataFeed", "generatedColumns"),
    *("deletionVectors", "v2Checkpoint", "vacuumProtocolCheck"),
}
_PROPERTIES = re.compile(
    r"delta\.(checkpointInterval|checkpointPolicy|checkpoint\.writeStatsAs(Json|Struct)|isolationLevel"
    r"|(log|deletedFile|setTransaction|checkpoint)RetentionDuration|enableExpiredLogCleanup"
    r"|enableDeletionVectors)"
)
_OFF = {
    "delta.appendOnly": "false",
    "delta.autoOptimize.autoCompact": "false",
    "delta.autoOptimize.optimizeWrite": "false",
    "delta.columnMapping.mode": "none",
    "delta.enableChangeDataFeed": "false",
    "delta.enableRowTracking": "false",
}
_SETTING = "spark.databricks.delta."
_SETTINGS = re.compile(
    r"snapshotPartitions|lastCommitVersionInSession|retentionDurationCheck\.enabled"
    r"|history\.metricsEnabled|stats\.skipping|(vacuum|properties\.defaults)\..+"
)
# Types of partition columns whose values the log spells as Spark does in a cast to a string.
_PARTITION_TYPES = ("string", "byte", "short", "integer", "long", "date", "boolean")
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def refused_by_table(
    protocol: Mapping[str, Any], metadata: Mapping[str, Any], partition: Mapping[str, str]
) -> str | None:
    """Why the files of a partition are Spark's to write; None where nothing of a table speaks against others.

    Args:
        protocol: of the table, as its log has it.
        metadata: likewise.
        partition: what is replaced, or added to: all files of it hold its rows alone.
    """
    asked = protocol["minWriterVersion"]
    features = {*protocol.get("readerFeatures", ()), *protocol.get("writerFeatures", ())}
    if asked == _FEATURES_VERSION and (unknown := features - _FEATURES):
        return f"its protocol has {', '.join(sorted(unknown))}"
    if asked not in (*range(_WRITER_VERSION + 1), _FEATURES_VERSION):
        return f"its protocol asks for writers of version {asked}"
    for name, value in metadata.get("configuration", {}).items():
        if name.startswith("delta.") and not _PROPERTIES.fullmatch(name) and _OFF.get(name) != value:
            return f"it has the property {name}={value}"
    if metadata["format"].get("provider") != "parquet" or metadata["format"].get("options"):
        return f"its format is {metadata['format']}"
    if set(metadata["partitionColumns"]) != set(partition):
        by, wanted = (", ".join(names) or "nothing" for names in (metadata["partitionColumns"], partition))
        return f"it is partitioned by {by}, and not by {wanted}"
    fields = json.loads(metadata["schemaString"])["fields"]
    for item in fields:
        if problem := _refused_by_column(item):
            return f"its column {item['name']!r} {problem}"
    types = {item["name"]: item["type"] for item in fields}
    return refused_by_values(partition, types)


def refused_by_values(partition: Mapping[str, str], types: Mapping[str, Any]) -> str | None:
    """Why the values of a partition are Spark's to spell; None where it is certain how.

    Args:
        partition: column -> value.
        types: of the columns, in Spark's JSON form.
    """
    for column, value in partition.items():
        if types[column] not in _PARTITION_TYPES:
            return f"its column {column!r}, by which it is partitioned, is {types[column]}"
        if "." in column:  # of a condition with it Delta finds the files of all partitions
            return f"its column {column!r}, by which it is partitioned, has a dot in its name"
        if value == _NO_VALUE:
            return f"{value!r} stands for no value in the names of folders"
    return None


def refused_by_session(spark: SparkSession) -> str | None:
    """Why the files of all tables are Spark's to write; None where they need not be."""
    jvm: Any = spark._jvm
    version = str(getattr(jvm.io.delta, "package").VERSION())  # noqa: B009 - a word of Python's
    if not _VERSION.fullmatch(version):
        return f"how Delta {version} commits is not known"
    settings: Mapping[str, str] = spark.conf.getAll
    for name in sorted(settings):
        if name.startswith(_SETTING) and not _SETTINGS.fullmatch(name.removeprefix(_SETTING)):
            return f"the session has the setting {name}"
    return None


def _refused_by_column(item: Mapping[str, Any]) -> str | None:
    if kept := set(item["metadata"]) - {"comment"}:
        return f"has {', '.join(sorted(kept))}"
    if not _allows_nulls(item):
        return "must not be null"
    return None if is_plain(item["type"]) else f"is {item['type']}"


def _allows_nulls(item: Mapping[str, Any]) -> bool:
    """Whether a column may be null, and everything that is in it."""
    if not item.get("nullable", True) or item.get("metadata", {}).keys() - {"comment"}:
        return False
    return _may_hold_nulls(item["type"])


def _may_hold_nulls(type_: Any) -> bool:
    if isinstance(type_, str):
        return True
    match type_["type"]:
        case "array":
            return bool(type_["containsNull"]) and _may_hold_nulls(type_["elementType"])
        case "map":
            of_values = _may_hold_nulls(type_["keyType"]) and _may_hold_nulls(type_["valueType"])
            return bool(type_["valueContainsNull"]) and of_values
        case "struct":
            return all(_allows_nulls(item) for item in type_["fields"])
    return False
