"""How OpenLineage names what is read and written: https://openlineage.io/docs/spec/naming. Pure.

Other integrations name the same place the same way, so that lineage joins across them. A name never holds a
password: it is made of hosts, databases, tables and paths alone.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import unquote

from airflow_hydrogen.contract import uris

_JDBC = re.compile(
    r"jdbc:(?P<scheme>\w+):[^/]*//(?:[^@/]*@)?(?P<host>\[[^\]]*\]|[^/:;?,@]+)(?::(?P<port>\d+))?"
    r"(?:,[^/;?@]*)?(?:/(?P<database>[^/;?@]*))?(?=[;?]|$)(?:.*;databaseName=(?P<named>[^;]*))?",
    re.IGNORECASE,
)
_HOST = re.compile(r"(?P<scheme>\w+)://(?:[^@/]*@)?(?P<host>[^/?#@]+)(?P<path>[^?#@]*)(?=[?#]|$)")
_PART = re.compile(r"`((?:[^`]|``)+)`|([^.`]+)")
_FORMATS = ("delta", "parquet", "orc", "avro", "csv", "json", "text")
_METASTORES = ("spark.hadoop.hive.metastore.uris", "hive.metastore.uris", "spark.hive.metastore.uris")


@dataclass(frozen=True)
class _Database:
    """How tables of a kind of database are named.

    Attributes:
        scheme: of the namespace.
        port: where the URL has none.
        schema: of a table that names none; None where there are no schemas.
    """

    scheme: str
    port: int
    schema: str | None = None


_DATABASES = {
    "postgresql": _Database("postgres", 5432, "public"),
    "mysql": _Database("mysql", 3306),
    "mariadb": _Database("mysql", 3306),
    "sqlserver": _Database("mssql", 1433, "dbo"),
}


@dataclass(frozen=True)
class DatasetName:
    """A dataset, as OpenLineage knows it.

    Attributes:
        namespace: where it is.
        name: what it is called there.
        partition: the part of it that is meant: partition column -> value. Empty: all of it.
    """

    namespace: str
    name: str
    partition: Mapping[str, str] = field(default_factory=dict)


def of_place(uri: str) -> DatasetName:
    """A file or a folder, such as a model."""
    location = uris.parse(uri)
    if location.scheme == "file":
        return DatasetName("file", location.path)
    is_store = location.store in ("s3", "gs", "abfs", "abfss")
    name = (location.path[1:] or "/") if is_store else location.path
    return DatasetName(f"{location.store}://{location.authority}", name)


def of_rows(uri: str) -> DatasetName:
    """Files with rows, or the table that a partition's folder belongs to.

    Args:
        uri: `/lake/flights/ds=2013-01-01` is a partition of the dataset `/lake/flights`.
    """
    whole = of_place(uri)
    folder, partition = whole.name, {}
    while "=" in (last := folder.rpartition("/")[2]):
        column, _, value = last.partition("=")
        partition[unquote(column)] = unquote(value)
        folder = folder.rpartition("/")[0] or "/"
    return DatasetName(whole.namespace, folder, dict(reversed(partition.items())))


def of_topic(servers: str, topic: str) -> DatasetName:
    """A topic of Kafka, at the first of its servers."""
    return DatasetName(f"kafka://{servers.partition(',')[0].strip()}", topic)


def of_table(table: str | Sequence[str], conf: Mapping[str, str]) -> DatasetName:
    """A table of one of Spark's catalogs.

    Args:
        table: its name, or the parts of it.
        conf: Spark's settings, which say where catalogs are.
    """
    parts = split(table)
    if len(parts) == 2 and parts[0].lower() in _FORMATS and "/" in parts[1]:
        return of_rows(parts[1])  # select * from delta.`/lake/orders`
    catalog = "spark_catalog"
    if len(parts) > 2 or (len(parts) == 2 and f"spark.sql.catalog.{parts[0]}" in conf):
        catalog, parts = parts[0], parts[1:]
    elif len(parts) == 1:
        parts = ["default", *parts]
    name = ".".join(parts)
    settings = {
        key: conf.get(f"spark.sql.catalog.{catalog}.{key}", "") for key in ("type", "uri", "warehouse")
    }
    if settings["type"] == "hadoop" and settings["warehouse"]:
        return of_rows(uris.join(settings["warehouse"], *parts))
    uri = settings["uri"]
    if not uri and (catalog == "spark_catalog" or settings["type"] == "hive"):
        uri = next((conf[key] for key in _METASTORES if conf.get(key)), "")
    if found := _HOST.match(uri.partition(",")[0].strip()):
        if found["scheme"] == "thrift":
            return DatasetName(f"hive://{found['host']}", name)
        return DatasetName(f"{found['scheme']}://{found['host']}{found['path'].rstrip('/')}", name)
    if settings["warehouse"]:
        warehouse = of_place(settings["warehouse"])
        return DatasetName(f"{warehouse.namespace}/{warehouse.name.lstrip('/')}", name)
    return DatasetName("spark", f"{catalog}.{name}")


def of_iceberg(table: str, catalog: str, properties: Mapping[str, str]) -> DatasetName:
    """A table of an Iceberg catalog, named as a table of one of Spark's catalogs with the same settings.

    Args:
        table: `namespace.table`.
        catalog: its name.
        properties: pyiceberg's, of which only addresses are used.
    """
    prefix = f"spark.sql.catalog.{catalog}"
    conf = {f"{prefix}.{name}": value for name, value in properties.items()}
    return of_table([catalog, *split(table)], {prefix: "", **conf})


def of_jdbc(url: str, table: str | Sequence[str]) -> DatasetName:
    """A table of a database.

    Args:
        url: of the driver. Only host, port and database of it are used.
        table: its name, or the parts of it.
    """
    parts = split(table)
    found = _JDBC.match(url)
    if found is None:  # jdbc:sqlite:/a/file and its like
        return DatasetName(url.removeprefix("jdbc:").partition(":")[0], ".".join(parts))
    scheme = found["scheme"].lower()
    known = _DATABASES.get(scheme)
    port = found["port"] or (known.port if known else None)
    host = found["host"] + (f":{port}" if port else "")
    database = unquote(found["named"] or found["database"] or "")
    whole = [database, *([known.schema] if known and known.schema else [])] if database else []
    # What the table's own name says counts: "shop.orders" is of the schema shop.
    missing = whole[: max(0, len(whole) + 1 - len(parts))] if known else whole
    return DatasetName(f"{known.scheme if known else scheme}://{host}", ".".join([*missing, *parts]))


def dialect_of(url: str) -> str:
    """The name of a database's SQL, as OpenLineage's parser calls it."""
    found = _JDBC.match(url)
    known = _DATABASES.get(found["scheme"].lower()) if found else None
    return known.scheme if known else "ansi"


def split(table: str | Sequence[str]) -> list[str]:
    """The parts of a table's name: "catalog.`my schema`.t"."""
    if not isinstance(table, str):
        return list(table)
    return [(quoted or plain).replace("``", "`") for quoted, plain in _PART.findall(table.replace('"', "`"))]
