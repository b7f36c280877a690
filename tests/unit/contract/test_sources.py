from __future__ import annotations

import pytest

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.sources import Source

SOURCES = {
    "parquet '/a'": Source.parquet("/a"),
    "parquet '/a' where x > :x with x=1": Source.parquet(
        "/a", columns=["x", "y"], where="x > :x", where_args={"x": 1}
    ),
    "orc '/a'": Source.orc("/a", mergeSchema="true"),
    "avro '/a'": Source.avro("/a"),
    "csv '/a'": Source.csv("/a", sep=";", columns=["x"]),
    "json '/a'": Source.json("/a"),
    "tfrecord '/a'": Source.tfrecord("/a", schema="x BIGINT"),
    "delta '/a' at version 3": Source.delta("/a", version=3),
    "delta '/a' as of 2013-07-01": Source.delta("/a", timestamp="2013-07-01"),
    "iceberg lake: db.t at snapshot 812": Source.iceberg("db.t", catalog="lake", snapshot=812),
    "iceberg db.t": Source.iceberg("db.t", catalog={"type": "rest", "uri": "http://catalog:8181"}),
    "table lake.db.t": Source.table("lake.db.t"),
    "hive db.t where ds = 'x'": Source.hive("db.t", where="ds = 'x'"),
    "jdbc shop: orders": Source.jdbc("shop", table="orders", partition_column="id", partitions=4),
    "jdbc shop: 'select 1'": Source.jdbc("shop", query="select 1", fetchsize="100"),
    "xml '/a'": Source.read("xml", "/a", rowTag="row"),
    "rate": Source.read("rate"),
    "sql 'select * from lake.db.t'": Source.sql("select * from lake.db.t"),
    "sql 'select * from t where x = :x' with x=None": Source.sql(
        "select * from t where x = :x", query_args={"x": None}, t=Source.delta("/a")
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_survives_its_json_and_says_what_it_is(name):
    source = SOURCES[name]
    assert Source.from_dict(source.to_dict()) == source
    assert str(source) == name


def test_defaults_are_left_out_of_the_json():
    assert Source.parquet("/a").to_dict() == {"kind": "parquet", "uri": "/a"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Source.delta(""), r"a delta source needs the URI .* as in Source.delta\(uri\); found ''"),
        (lambda: Source.table(""), "a table source needs a table, as in"),
        (lambda: Source.jdbc("", table="t"), "a jdbc source needs a connection, as in"),
        (lambda: Source.jdbc("c"), "either a table or a query: .* found neither"),
        (lambda: Source.jdbc("c", table="t", query="q"), "found both"),
        (
            lambda: Source.jdbc("c", table="t", partitions=3),
            "and partitions belong together",
        ),
        (
            lambda: Source.jdbc("c", table="t", partition_column="id", partitions=0),
            "partitions must be at least 1, found 0",
        ),
        (
            lambda: Source.jdbc("c", table="t", user="root", Password="x"),
            "options of a jdbc source name password, user, which come from the connection",
        ),
        (
            lambda: Source.jdbc("c", table="t", partition_column='id"), x --', partitions=2),
            "partition_column is the name of a column, without quotes",
        ),
        (lambda: Source.read("delta", "/a"), "read Delta tables by Source.delta"),
        (lambda: Source.delta("/a", version=True), "version must be an integer, found True"),
        (
            lambda: Source.delta("/a", version=1, timestamp="2013-01-01"),
            "version and timestamp are both given",
        ),
        (
            lambda: Source.iceberg("db.t", catalog=""),
            r"an iceberg source needs a catalog.*found catalog=\[\], conn_id=''",
        ),
        (
            lambda: Source.iceberg("db.t", catalog={"uri": "http://c", "s3.secret-access-key": "x"}),
            "catalog of an iceberg source has 's3.secret-access-key' with a secret in it",
        ),
        (
            lambda: Source.iceberg("db.t", catalog={"uri": "postgresql://me:geheim@db/lake"}),
            "catalog of an iceberg source has 'uri' with a secret in it",
        ),
        (
            lambda: Source.from_dict({"kind": "iceberg", "table_name": "db.t"}),
            "an iceberg source needs a catalog",
        ),
        (
            lambda: Source.from_dict({"kind": "iceberg", "table_name": "db.t", "catalog": {"uri": 7}}),
            "must map names to texts, found 'uri': a int",
        ),
        (lambda: Source.read(""), r"a read source needs a format, as in Source.read\("),
        (lambda: Source.sql(""), "a sql source needs a query"),
        (lambda: Source.parquet("/a", columns="x"), "columns must be a list of names, found 'x'"),
        (lambda: Source.parquet("/a", columns=[]), "columns must name at least one column"),
        (
            lambda: Source.from_dict({"kind": "parquet", "uri": "/a", "version": 3}),
            "a parquet source has no version",
        ),
        (
            lambda: Source.from_dict({"kind": "dbase", "uri": "/a"}),
            "source kind 'dbase' is not known; expected",
        ),
    ],
)
def test_sources_that_cannot_work(make, message):
    with pytest.raises(InvalidJobError, match=message):
        make()


def test_all_that_a_source_is_made_of_is_found():
    inner = Source.jdbc("shop", table="orders")
    outer = Source.sql("select * from a", a=Source.sql("select * from b", b=inner))
    assert list(outer.walk())[-1] is inner
    assert len(list(outer.walk())) == 3
