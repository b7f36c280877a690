from __future__ import annotations

import types

import pytest
from py4j.protocol import Py4JError
from pyspark.sql.types import (
    BooleanType,
    DateType,
    DoubleType,
    IntegerType,
    StringType,
    StructField,
    TimestampType,
)

from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.runtime.data.scans import _value, scan_of


def no_plan():
    raise Py4JError("Method queryExecution([]) does not exist")


def test_a_plan_of_another_release_is_left_to_spark(capsys):
    frame = types.SimpleNamespace(_jdf=types.SimpleNamespace(queryExecution=no_plan))
    assert scan_of(frame, Source.parquet("/lake"), ["a"]) is None
    said = "parquet '/lake': Spark reads it, because its plan cannot be looked into: Method queryExecution"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    "source",
    [
        Source.csv("/lake"),
        Source.parquet("/lake/*.parquet"),
        Source(kind="parquet", uri="/lake", options={"mergeSchema": "true"}),
        Source.sql("select 1"),
    ],
    ids=str,
)
def test_other_sources_are_left_to_spark_without_a_look(source):
    assert scan_of(None, source, ["a"]) is None


@pytest.mark.parametrize(
    ("text", "type_", "value"),
    [
        (None, DoubleType(), None),
        ("a b%20", StringType(), "a b%20"),
        ("-7", IntegerType(), -7),
        ("1970-01-02", DateType(), 1),
        ("1969-12-31", DateType(), -1),
        ("true", BooleanType(), True),
        ("false", BooleanType(), False),
    ],
)
def test_a_partition_value_of_deltas_log_is_read(text, type_, value):
    assert _value(text, StructField("p", type_)) == value


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("", StringType()),
        ("1_0", IntegerType()),
        (" 1", IntegerType()),
        ("1970-1-2", DateType()),
        ("1970-02-30", DateType()),
        ("True", BooleanType()),
        ("0.5", DoubleType()),
        ("1970-01-02 00:00:00", TimestampType()),
    ],
)
def test_a_partition_value_in_doubt_is_left_to_spark(text, type_):
    with pytest.raises(ValueError, match=f"{type_.simpleString()}|day is out of range"):
        _value(text, StructField("p", type_))
