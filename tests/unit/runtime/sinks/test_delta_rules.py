"""Which Delta tables take files that Delta has not written."""

from __future__ import annotations

import json

import pytest

from airflow_hydrogen.runtime.sinks.delta_rules import refused_by_table, refused_by_values


def column(name, type_="long", nullable=True, **metadata):
    return {"name": name, "type": type_, "nullable": nullable, "metadata": metadata}


def table(*columns, by=("ds",), **properties):
    fields = [*(columns or [column("id"), column("prediction", "float")]), column("ds", "string")]
    return {
        "format": {"provider": "parquet", "options": {}},
        "partitionColumns": list(by),
        "configuration": {name.replace("_", "."): value for name, value in properties.items()},
        "schemaString": json.dumps({"type": "struct", "fields": fields}),
    }


PLAIN = {"minReaderVersion": 1, "minWriterVersion": 2}
DAY = {"ds": "2013-01-02"}


def features(*writer, reader=()):
    return {
        "minReaderVersion": 3,
        "minWriterVersion": 7,
        "readerFeatures": list(reader),
        "writerFeatures": list(writer),
    }


def list_of(element="long", nulls=True):
    return {"type": "array", "elementType": element, "containsNull": nulls}


@pytest.mark.parametrize(
    ("protocol", "metadata"),
    [
        (PLAIN, table()),
        ({"minReaderVersion": 1, "minWriterVersion": 4}, table()),
        (features("appendOnly", "deletionVectors", reader=["deletionVectors"]), table()),
        (PLAIN, table(delta_checkpointInterval="20", delta_enableChangeDataFeed="false", owner="me")),
        (PLAIN, table(column("id", comment="the key"), column("tags", list_of("string")))),
    ],
)
def test_tables_that_ask_for_nothing_take_the_files_of_tasks(protocol, metadata):
    assert refused_by_table(protocol, metadata, DAY) is None


@pytest.mark.parametrize(
    ("protocol", "metadata", "said"),
    [
        (features("appendOnly", "rowTracking", "domainMetadata"), table(), "has domainMetadata, rowTracking"),
        (features("clustering"), table(), "protocol has clustering"),
        (features("neverHeardOf", reader=["neverHeardOf"]), table(), "protocol has neverHeardOf"),
        ({"minReaderVersion": 2, "minWriterVersion": 5}, table(), "writers of version 5"),
        ({"minReaderVersion": 4, "minWriterVersion": 8}, table(), "writers of version 8"),
        (PLAIN, table(delta_enableChangeDataFeed="true"), "property delta.enableChangeDataFeed=true"),
        (PLAIN, table(delta_appendOnly="true"), "property delta.appendOnly=true"),
        (PLAIN, table(delta_constraints_positive="id > 0"), "property delta.constraints.positive=id > 0"),
        (PLAIN, table(delta_neverHeardOf="1"), "property delta.neverHeardOf=1"),
        (PLAIN, table(delta_autoOptimize_optimizeWrite="true"), "delta.autoOptimize.optimizeWrite"),
        (PLAIN, table(column("id", **{"delta.generationExpression": "1"})), "column 'id' has delta.generat"),
        (PLAIN, table(column("id", "string", __CHAR_VARCHAR_TYPE_STRING="char(3)")), "has __CHAR_VARCHAR_TY"),
        (PLAIN, table(column("id", nullable=False)), "column 'id' must not be null"),
        (PLAIN, table(column("id", list_of(nulls=False))), "column 'id' must not be null"),
        (
            PLAIN,
            table(column("id", {"type": "struct", "fields": [column("x", nullable=False)]})),
            "not be nul",
        ),
        (PLAIN, table(column("id", "variant")), "column 'id' is variant"),
        (PLAIN, table(column("id", "string collate UNICODE")), "column 'id' is string collate UNICODE"),
        (PLAIN, table(by=()), "it is partitioned by nothing, and not by ds"),
        (PLAIN, table(by=("ds", "id")), "it is partitioned by ds, id, and not by ds"),
        (PLAIN, {**table(), "format": {"provider": "orc", "options": {}}}, "format is"),
    ],
)
def test_anything_that_is_not_known_leaves_a_table_to_spark(protocol, metadata, said):
    assert said in refused_by_table(protocol, metadata, DAY)


def test_values_that_the_log_may_spell_otherwise_are_left_to_spark():
    assert refused_by_values({"hour": "05"}, {"hour": "integer"}) is None
    assert "is timestamp" in refused_by_values({"at": "2013-01-01"}, {"at": "timestamp"})
    assert "has a dot in its name" in refused_by_values({"a.b": "x"}, {"a.b": "string"})
    assert "stands for no value" in refused_by_values({"ds": "__HIVE_DEFAULT_PARTITION__"}, {"ds": "string"})
