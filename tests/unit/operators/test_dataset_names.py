"""How OpenLineage names what is read and written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_hydrogen.operators import dataset_names
from airflow_hydrogen.operators.dataset_names import DatasetName

ICEBERG = "org.apache.iceberg.spark.SparkCatalog"
METASTORE = {"spark.hadoop.hive.metastore.uris": "thrift://meta:9083,thrift://other:9083"}


@pytest.mark.parametrize(
    ("uri", "namespace", "name"),
    [
        ("/models/late/lr=0.1", "file", "/models/late/lr=0.1"),
        ("file:///models/late", "file", "/models/late"),
        ("s3a://models/late/r1/", "s3://models", "late/r1"),
        ("s3://models", "s3://models", "/"),
        ("gs://models/late", "gs://models", "late"),
        ("hdfs://nn:8020/models/late", "hdfs://nn:8020", "/models/late"),
        (
            "abfss://lake@account.dfs.core.windows.net/late",
            "abfss://lake@account.dfs.core.windows.net",
            "late",
        ),
    ],
)
def test_places_are_named_by_store_and_path(uri: str, namespace: str, name: str) -> None:
    assert dataset_names.of_place(uri) == DatasetName(namespace, name)


def test_the_folder_of_a_partition_is_a_part_of_its_table() -> None:
    expected = DatasetName("s3://lake", "flights", {"ds": "2013-01-01", "hour": "T00:00"})
    assert dataset_names.of_rows("s3://lake/flights/ds=2013-01-01/hour=T00%3A00") == expected
    assert dataset_names.of_rows("/lake/flights") == DatasetName("file", "/lake/flights")


@pytest.mark.parametrize(
    ("table", "conf", "namespace", "name"),
    [
        ("shop.orders", METASTORE, "hive://meta:9083", "shop.orders"),
        ("orders", METASTORE, "hive://meta:9083", "default.orders"),
        ("spark_catalog.shop.orders", METASTORE, "hive://meta:9083", "shop.orders"),
        ("shop.orders", {}, "spark", "spark_catalog.shop.orders"),
        ("lake.shop.`late orders`", {}, "spark", "lake.shop.late orders"),
        ("delta.`/lake/orders`", {}, "file", "/lake/orders"),
        (
            "ice.shop.orders",
            {"spark.sql.catalog.ice.type": "hadoop", "spark.sql.catalog.ice.warehouse": "s3a://lake/wh"},
            "s3://lake",
            "wh/shop/orders",
        ),
        (
            "ice.shop.orders",
            {
                "spark.sql.catalog.ice.type": "rest",
                "spark.sql.catalog.ice.uri": "https://me:secret@rest:8181/",
            },
            "https://rest:8181",
            "shop.orders",
        ),
        (
            "ice.shop.orders",
            {"spark.sql.catalog.ice.type": "hive", **METASTORE},
            "hive://meta:9083",
            "shop.orders",
        ),
        (
            "ice.shop.orders",
            {"spark.sql.catalog.ice.type": "jdbc", "spark.sql.catalog.ice.warehouse": "s3://lake/wh"},
            "s3://lake/wh",
            "shop.orders",
        ),
        ("ice.orders", {"spark.sql.catalog.ice": ICEBERG}, "spark", "ice.orders"),
    ],
)
def test_tables_are_named_by_their_catalog(
    table: str, conf: dict[str, str], namespace: str, name: str
) -> None:
    assert dataset_names.of_table(table, conf) == DatasetName(namespace, name)


@pytest.mark.parametrize(
    ("properties", "namespace"),
    [
        (
            {"type": "rest", "uri": "https://c.example.com/ws/v1", "credential": "geheim"},
            "https://c.example.com/ws/v1",
        ),
        (
            {"type": "sql", "uri": "postgresql+psycopg2://me:geheim@db/lake", "warehouse": "s3://lake/w"},
            "s3://lake/w",
        ),
        ({"type": "hive", "uri": "thrift://metastore:9083"}, "hive://metastore:9083"),
        ({"type": "glue"}, "spark"),
    ],
)
def test_iceberg_tables_are_named_as_those_of_sparks_catalogs(properties, namespace):
    found = dataset_names.of_iceberg("db.t", "lake", properties)
    assert found == DatasetName(namespace, "lake.db.t" if namespace == "spark" else "db.t")


@pytest.mark.parametrize(
    ("url", "table", "namespace", "name"),
    [
        ("jdbc:postgresql://db:5433/shop", "orders", "postgres://db:5433", "shop.public.orders"),
        ("jdbc:postgresql://db/shop?ssl=true", "sales.orders", "postgres://db:5432", "shop.sales.orders"),
        (
            "jdbc:postgresql://[::1]:5432/shop",
            '"Sales"."Orders"',
            "postgres://[::1]:5432",
            "shop.Sales.Orders",
        ),
        ("jdbc:mysql://db/shop?permitMysqlScheme", "orders", "mysql://db:3306", "shop.orders"),
        ("jdbc:mysql://db/shop", "other.orders", "mysql://db:3306", "other.orders"),
        ("jdbc:sqlserver://db;user=u;databaseName=shop", "orders", "mssql://db:1433", "shop.dbo.orders"),
        ("jdbc:oracle:thin:@//db:1521/svc", "hr.people", "oracle://db:1521", "svc.hr.people"),
        ("jdbc:sqlite:/data/shop.db", "orders", "sqlite", "orders"),
    ],
)
def test_tables_of_databases_are_named_by_host_and_database(
    url: str, table: str, namespace: str, name: str
) -> None:
    assert dataset_names.of_jdbc(url, table) == DatasetName(namespace, name)


@given(
    url=st.sampled_from(
        [
            "jdbc:postgresql://me:{}@db/shop",
            "jdbc:postgresql://db/shop?user=me&password={}",
            "jdbc:oracle:thin:me/{}@//db:1521/svc",
            "jdbc:sqlserver://db;password={};databaseName=shop",
            "jdbc:sqlserver://db;databaseName=shop;password={}",
        ]
    ),
    password=st.text("abcXYZ019/@:?&;=#", min_size=1).map(lambda text: f"hush{text}"),
)
def test_a_password_in_a_url_is_in_no_name(url: str, password: str) -> None:
    found = dataset_names.of_jdbc(url.format(password), "orders")
    assert "hush" not in found.namespace + found.name
