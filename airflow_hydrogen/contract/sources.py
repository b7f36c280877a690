"""Where rows come from: files, tables, databases and queries over them, and streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from airflow_hydrogen.contract import brokers, catalogs
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.values import refuse_unknown_fields, require_fields, require_json

SourceKind = Literal[
    "parquet",
    "orc",
    "avro",
    "csv",
    "json",
    "tfrecord",
    "delta",
    "iceberg",
    "table",
    "hive",
    "jdbc",
    "read",
    "sql",
    "kafka",
    "files_stream",
    "delta_stream",
]

SqlValue = str | int | float | bool | None
"""What can be bound to a name in SQL; a date is its text, which Spark compares with dates as one."""


class _Fields(NamedTuple):
    """The fields of one kind of source, besides those that all have."""

    needed: tuple[str, ...]
    allowed: tuple[str, ...] = ()


_FILES = _Fields(("uri",), ("options",))
_KINDS: dict[str, _Fields] = {
    "parquet": _FILES,
    "orc": _FILES,
    "avro": _FILES,
    "csv": _FILES,
    "json": _FILES,
    "tfrecord": _FILES,
    "delta": _Fields(("uri",), ("version", "timestamp")),
    "iceberg": _Fields(("table_name",), ("conn_id", "catalog", "version", "timestamp")),
    "table": _Fields(("table_name",), ("version", "timestamp")),
    "hive": _Fields(("table_name",)),
    "jdbc": _Fields(("conn_id",), ("table_name", "query", "partition_column", "partitions", "options")),
    "read": _Fields(("format",), ("uri", "options")),
    "sql": _Fields(("query",), ("query_args", "tables")),
    "kafka": _Fields(("topic", "payload", "schema"), ("servers", "conn_id", "options")),
    "files_stream": _Fields(("uri", "format"), ("schema", "options")),
    "delta_stream": _Fields(("uri",), ("version", "options")),
}
_STREAMS = ("kafka", "files_stream", "delta_stream")
_EXAMPLES = {
    "delta": "Source.delta(uri)",
    "iceberg": 'Source.iceberg("db.orders", catalog="my_catalog")',
    "table": 'Source.table("catalog.schema.table")',
    "hive": 'Source.hive("schema.table")',
    "jdbc": 'Source.jdbc("my_database", table="orders")',
    "read": 'Source.read("format", uri)',
    "sql": 'Source.sql("select ...")',
    "kafka": 'Source.kafka("host:9092", "topic", schema="a DOUBLE, b INT")',
    "files_stream": 'Source.files_stream(uri, format="json", schema="a DOUBLE, b INT")',
    "delta_stream": "Source.delta_stream(uri)",
}
_WANTED = {
    "uri": "the URI of a file or folder",
    "table_name": "a table",
    "conn_id": "a connection",
    "schema": "the schema of its messages",
}
_STREAMED_FORMATS = ("parquet", "orc", "avro", "csv", "json")
_WITH_SCHEMA = ("csv", "json")
_PAYLOADS = ("json", "parquet", "avro", "confluent-avro")
_OF_BROKERS = ("kafka.bootstrap.servers", "kafka.sasl.", "kafka.ssl.", "kafka.security.")
_OF_CONNECTION = {"url", "user", "password", "driver", "dbtable", "query"}
_COMMON = ("kind", "columns", "where", "where_args")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where rows come from.

    Use the constructors: `parquet`, `orc`, `avro`, `csv`, `json`, `tfrecord` and `read` for files, `delta`,
    `iceberg`, `table` and `hive` for tables, `jdbc` for databases, `sql` for a query over all of these.
    `kafka`, `files_stream` and `delta_stream` are streams, whose rows keep coming.

    `where` and `query` are code: Spark, or the database, runs whatever they call. A value that comes from
    elsewhere, such as a Param, belongs into `where_args` and `query_args`: Spark binds it to `:name` and
    never reads it as SQL.
    """

    kind: SourceKind
    uri: str | None = None
    format: str | None = None
    table_name: str | None = None
    version: int | str | None = None
    timestamp: str | None = None
    conn_id: str | None = None
    catalog: Mapping[str, str] = field(default_factory=dict)
    partition_column: str | None = None
    partitions: int | str | None = None
    columns: Sequence[str] | None = None
    where: str | None = None
    where_args: Mapping[str, SqlValue] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    query: str | None = None
    query_args: Mapping[str, SqlValue] = field(default_factory=dict)
    tables: Mapping[str, Source] = field(default_factory=dict)
    servers: str | None = None
    topic: str | None = None
    payload: str | None = None
    schema: str | None = None

    def __post_init__(self) -> None:
        if self.columns is not None:
            if isinstance(self.columns, str) or not all(isinstance(name, str) for name in self.columns):
                raise InvalidJobError(f"columns must be a list of names, found {self.columns!r}")
            object.__setattr__(self, "columns", tuple(self.columns))
            if not self.columns:
                raise InvalidJobError("columns must name at least one column; leave it out to read all")
        self._check_fields()
        if self.version is not None and self.timestamp is not None:
            raise InvalidJobError("version and timestamp are both given; a table is read as of one of them")
        if self.kind == "jdbc" and (self.table_name is None) == (self.query is None):
            raise InvalidJobError(
                f"a jdbc source reads either a table or a query: {_EXAMPLES['jdbc']}; found "
                + ("neither" if self.table_name is None else "both")
            )
        if self.kind == "jdbc" and (
            named := sorted(_OF_CONNECTION & {name.lower() for name in self.options})
        ):
            raise InvalidJobError(
                f"options of a jdbc source name {', '.join(named)}, which come from the connection and from "
                "table or query; a DAG holds no password"
            )
        if self.partition_column is not None and set(self.partition_column) & set("\"`'"):
            raise InvalidJobError(
                f"partition_column is the name of a column, without quotes, found {self.partition_column!r}"
            )
        if self.kind == "iceberg":
            catalogs.require_one("source", self.catalog, self.conn_id)
        self._check_stream()
        if self.kind == "read" and self.format == "delta":
            raise InvalidJobError("read Delta tables by Source.delta, which keeps their version for retries")
        if (self.partition_column is None) != (self.partitions is None):
            raise InvalidJobError(
                "partition_column and partitions belong together: the column by whose values a table is read "
                "in so many parts"
            )
        for name in ("version", "partitions"):
            _require_number(name, getattr(self, name))
        _require_bindable("where_args", self.where_args, "where", self.where)
        _require_bindable("query_args", self.query_args, "query", self.query)

    def _check_fields(self) -> None:
        kinds = _KINDS.get(self.kind)
        if kinds is None:
            raise InvalidJobError(
                f"source kind {self.kind!r} is not known; expected one of {', '.join(_KINDS)}"
            )
        allowed = (*(("kind",) if self.is_stream else _COMMON), *kinds.allowed)
        example = _EXAMPLES.get(self.kind, f"Source.{self.kind}(uri)")
        require_fields(self, f"{self.kind} source", kinds.needed, allowed, _WANTED, example)

    def _check_stream(self) -> None:
        if streams := [name for name, table in self.tables.items() if table.is_stream]:
            raise InvalidJobError(
                f"tables of a sql source are no streams, found {', '.join(map(repr, streams))}: join what "
                "belongs to a stream's rows in 'prepare', which gets every micro-batch"
            )
        if self.kind == "kafka":
            brokers.require_one("source", self.servers, self.conn_id)
        if self.kind == "kafka" and self.payload not in _PAYLOADS:
            raise InvalidJobError(
                f"payload of a kafka source must be one of {', '.join(map(repr, _PAYLOADS))}, found "
                f"{self.payload!r}"
            )
        if self.kind == "files_stream":
            if self.format not in _STREAMED_FORMATS:
                raise InvalidJobError(
                    f"format of a files_stream must be one of {', '.join(map(repr, _STREAMED_FORMATS))}, "
                    f"found {self.format!r}"
                )
            if self.format in _WITH_SCHEMA and not self.schema:
                raise InvalidJobError(
                    f"a files_stream of {self.format} files needs a schema, Spark's DDL of its columns, as "
                    f"in {_EXAMPLES['files_stream']}"
                )
        if self.kind == "kafka" and (
            given := sorted(name for name in self.options if name.lower().startswith(_OF_BROKERS))
        ):
            raise InvalidJobError(
                f"options of a kafka source name {', '.join(given)}, which come from an Airflow connection, "
                "or from the servers: a DAG holds no password"
            )

    @property
    def is_stream(self) -> bool:
        """Whether rows keep coming: such a source is scored in micro-batches."""
        return self.kind in _STREAMS

    @classmethod
    def parquet(
        cls,
        uri: str,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        where_args: Mapping[str, SqlValue] | None = None,
    ) -> Source:
        """Parquet files.

        Args:
            uri: a file or a folder; a folder may be partitioned as Hive does (`ds=2013-01-01/`).
            columns: the columns to read; all by default.
            where: a SQL condition on the rows. Conditions on partition columns read only those partitions.
            where_args: values of the names in the condition: `where="ds < :day"`, `where_args={"day": ...}`.
        """
        return cls._of("parquet", columns, where, where_args, uri=uri)

    @classmethod
    def orc(
        cls,
        uri: str,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        where_args: Mapping[str, SqlValue] | None = None,
        **options: str,
    ) -> Source:
        """ORC files.

        Args:
            uri: a file or a folder, which may be partitioned.
            columns, where, where_args: as for `parquet`.
            options: options of Spark's ORC reader.
        """
        return cls._of("orc", columns, where, where_args, uri=uri, options=options)

    @classmethod
    def avro(
        cls,
        uri: str,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        where_args: Mapping[str, SqlValue] | None = None,
        **options: str,
    ) -> Source:
        """Avro files. The operators add Spark's Avro package to the submission.

        Args:
            uri: a file or a folder, which may be partitioned.
            columns, where, where_args: as for `parquet`.
            options: options of Spark's Avro reader, such as `avroSchema`.
        """
        return cls._of("avro", columns, where, where_args, uri=uri, options=options)

    @classmethod
    def csv(
        cls,
        uri: str,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        where_args: Mapping[str, SqlValue] | None = None,
        **options: str,
    ) -> Source:
        """CSV files.

        Args:
            uri: a file or a folder.
            columns, where, where_args: as for `parquet`.
            options: options of Spark's CSV reader; `header` and `inferSchema` default to "true".
        """
        return cls._of("csv", columns, where, where_args, uri=uri, options=options)

    @classmethod
    def json(
        cls,
        uri: str,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        where_args: Mapping[str, SqlValue] | None = None,
        **options: str,
    ) -> Source:
        """JSON files, one object a line.

        Args:
            uri: a file or a folder.
            columns, where, where_args: as for `parquet`.
            options: options of Spark's JSON reader.
        """
        return cls._of("json", columns, where, where_args, uri=uri, options=options)

    @classmethod
    def tfrecord(
        cls,
        uri: str,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        where_args: Mapping[str, SqlValue] | None = None,
        **options: str,
    ) -> Source:
        """TFRecord files of `tf.train.Example`, plain or gzip. They are read without TensorFlow.

        Args:
            uri: a file, a folder or a pattern.
            columns, where, where_args: as for `parquet`.
            options: `schema`, Spark's DDL of the columns, such as "age BIGINT, pixels ARRAY<FLOAT>, name
                STRING"; without it they are found in the first 1,000 records. Besides, `pathGlobFilter` and
                what else Spark lists files by.
        """
        return cls._of("tfrecord", columns, where, where_args, uri=uri, options=options)

    @classmethod
    def delta(
        cls,
        uri: str,
        *,
        version: int | str | None = None,
        timestamp: str | None = None,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        where_args: Mapping[str, SqlValue] | None = None,
    ) -> Source:
        """A Delta table by its folder. The operators add Delta's package and settings to the submission.

        Args:
            uri: the table's folder.
            version: read the table as of this version. Without it, and without `timestamp`, the newest is
                looked up when the job starts, and every retry of the task reads the same.
            timestamp: read the table as it was then: "2013-07-01" or "2013-07-01 12:00:00".
            columns, where, where_args: as for `parquet`.
        """
        return cls._of("delta", columns, where, where_args, uri=uri, version=version, timestamp=timestamp)

    @classmethod
    def iceberg(
        cls,
        table: str,
        *,
        catalog: str | Mapping[str, str],
        snapshot: int | str | None = None,
        timestamp: str | None = None,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        where_args: Mapping[str, SqlValue] | None = None,
    ) -> Source:
        """An Iceberg table, found by pyiceberg: no package of Spark's is needed, but the extra `iceberg` is.

        Args:
            table: `namespace.table`.
            catalog: an Airflow connection of type `iceberg`, or pyiceberg's properties of a catalog without
                secrets: `{"type": "rest", "uri": "http://catalog:8181"}`.
            snapshot: read the table as of this snapshot. Without it, and without `timestamp`, the newest is
                looked up when the job starts, and every retry of the task reads the same.
            timestamp: read the table as it was then: "2013-07-01" or "2013-07-01 12:00:00".
            columns, where, where_args: as for `parquet`.
        """
        named: dict[str, Any] = catalogs.named_by(catalog)
        return cls._of(
            "iceberg",
            columns,
            where,
            where_args,
            table_name=table,
            version=snapshot,
            timestamp=timestamp,
            **named,
        )

    @classmethod
    def table(
        cls,
        table: str,
        *,
        version: int | str | None = None,
        timestamp: str | None = None,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        where_args: Mapping[str, SqlValue] | None = None,
    ) -> Source:
        """A table of one of the catalogs that the operator's `conf` names.

        Args:
            table: `catalog.schema.table`, quoted as in SQL where a part has other characters.
            version: the table's version (Delta) or snapshot id (Iceberg). Without it, and without
                `timestamp`, the newest is looked up when the job starts, where the catalog knows versions.
            timestamp: read the table as it was then.
            columns, where, where_args: as for `parquet`.
        """
        return cls._of(
            "table", columns, where, where_args, table_name=table, version=version, timestamp=timestamp
        )

    @classmethod
    def hive(
        cls,
        table: str,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        where_args: Mapping[str, SqlValue] | None = None,
    ) -> Source:
        """A table of the Hive metastore. Where that is, says `conf`: `spark.hadoop.hive.metastore.uris`.

        Args:
            table: `schema.table`.
            columns, where, where_args: as for `parquet`; conditions on partition columns read only those
                partitions.
        """
        return cls._of("hive", columns, where, where_args, table_name=table)

    @classmethod
    def jdbc(
        cls,
        conn_id: str,
        *,
        table: str | None = None,
        query: str | None = None,
        partition_column: str | None = None,
        partitions: int | str | None = None,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        where_args: Mapping[str, SqlValue] | None = None,
        **options: str,
    ) -> Source:
        """A table of a database, or the rows of a query that the database runs.

        Args:
            conn_id: an Airflow connection of type `postgres`, `mysql`, `mariadb` or `jdbc`. Address, user and
                password come from it; the operators add the driver's package to the submission.
            table: the table's name; code, like a query.
            query: a query in the database's own SQL, instead of a table. Nothing can be bound to names in it.
            partition_column: a column of numbers, dates or timestamps, by whose values the rows are read in
                parts, side by side. Its lowest and highest value are asked for first.
            partitions: the number of parts.
            columns: as for `parquet`; the database sends no others.
            where, where_args: a SQL condition; what the database understands is evaluated there.
            options: options of Spark's JDBC reader, such as `fetchsize`.
        """
        return cls._of(
            "jdbc",
            columns,
            where,
            where_args,
            conn_id=conn_id,
            table_name=table,
            query=query,
            partition_column=partition_column,
            partitions=partitions,
            options=options,
        )

    @classmethod
    def read(
        cls,
        format: str,
        uri: str | None = None,
        *,
        columns: Sequence[str] | None = None,
        where: str | None = None,
        where_args: Mapping[str, SqlValue] | None = None,
        **options: str,
    ) -> Source:
        """Anything else that Spark reads by `spark.read.format(format).options(...).load(uri)`.

        Args:
            format: a name that Spark knows, or that a package of yours brings: give it as `packages`.
            uri: a file or folder, for formats that have one.
            columns, where, where_args: as for `parquet`.
            options: options of the reader. They stand in the job as they are: no place for a password.
        """
        return cls._of("read", columns, where, where_args, format=format, uri=uri, options=options)

    @classmethod
    def sql(cls, query: str, *, query_args: Mapping[str, SqlValue] | None = None, **tables: Source) -> Source:
        """A Spark SQL query, over other sources and over the tables of Spark's catalogs.

        Args:
            query: for example `select * from flights join planes using (tailnum) where ds = :day`.
            query_args: values of the names in the query: `{"day": "2013-01-01"}`.
            tables: sources, under the names that the query uses.
        """
        return cls(kind="sql", query=query, query_args=query_args or {}, tables=tables)

    @classmethod
    def kafka(
        cls,
        servers_or_conn_id: str,
        topic: str,
        *,
        payload: str = "json",
        schema: str,
        **options: str,
    ) -> Source:
        """The messages of a Kafka topic, a stream. The operators add Spark's Kafka package.

        Beside the columns of the schema, rows have `kafka_key` (bytes), `kafka_topic`, `kafka_partition`,
        `kafka_offset`, `kafka_timestamp` and `kafka_headers`.

        Args:
            servers_or_conn_id: "host:9092" or more of them with commas between; what has no colon is an
                Airflow connection of type `kafka`, from which credentials come as well.
            topic: the topic.
            payload: what the messages' values are: "json", "parquet" (files of any number of rows), "avro",
                or "confluent-avro", which has five bytes before it that name a schema in Confluent's
                registry. Nobody asks the registry for that.
            schema: their columns: Spark's DDL such as "a DOUBLE, b INT" for JSON and Parquet, the schema's
                JSON for Avro.
            options: options of Spark's Kafka reader, such as `startingOffsets`: "earliest" unless given. A
                stream that has a checkpoint goes on from there.
        """
        named: dict[str, Any] = brokers.named_by(servers_or_conn_id)
        return cls(kind="kafka", topic=topic, payload=payload, schema=schema, options=options, **named)

    @classmethod
    def files_stream(
        cls, uri: str, *, format: str = "parquet", schema: str | None = None, **options: str
    ) -> Source:
        """The files that come into a folder, a stream: each is read once.

        Args:
            uri: the folder. Files have to appear in it whole, as a rename makes them.
            format: "parquet", "orc", "avro", "csv" or "json".
            schema: Spark's DDL of the columns, such as "a DOUBLE, b INT"; for CSV and JSON needed, otherwise
                found in the files that are there when the stream starts.
            options: options of Spark's reader, such as `maxFilesPerTrigger`.
        """
        return cls(kind="files_stream", uri=uri, format=format, schema=schema, options=options)

    @classmethod
    def delta_stream(cls, uri: str, *, version: int | str | None = None, **options: str) -> Source:
        """The rows that are appended to a Delta table, a stream. The operators add Delta's package.

        Args:
            uri: the table's folder.
            version: the version whose changes are the first that are read; without it the rows of the newest
                version are, and all changes after it.
            options: options of Delta's streaming reader, such as `maxFilesPerTrigger` or `skipChangeCommits`.
        """
        return cls(kind="delta_stream", uri=uri, version=version, options=options)

    @classmethod
    def _of(
        cls,
        kind: SourceKind,
        columns: Sequence[str] | None,
        where: str | None,
        where_args: Mapping[str, SqlValue] | None,
        **fields: Any,
    ) -> Source:
        """A source of a kind, by what all kinds have and by its own fields."""
        return cls(kind=kind, columns=columns, where=where, where_args=where_args or {}, **fields)

    @property
    def relation(self) -> str:
        """What stands behind FROM in a database's SQL.

        A query is on lines of its own, so that a comment at its end ends with it.
        """
        if self.query is None:
            assert self.table_name is not None
            return self.table_name
        return f"(\n{self.query.rstrip().rstrip(';')}\n) hydrogen_rows"

    def walk(self) -> Iterator[Source]:
        """This source and all that it is made of."""
        yield self
        for table in self.tables.values():
            yield from table.walk()

    def __str__(self) -> str:
        """How messages call it: what it is and where, without options."""
        if self.kind == "sql":
            what = f"sql {self.query!r}"
        elif self.kind == "jdbc":
            what = f"jdbc {self.conn_id}: {self.table_name or repr(self.query)}"
        elif self.kind == "iceberg":
            what = f"iceberg {f'{self.conn_id}: ' if self.conn_id else ''}{self.table_name}"
        elif self.kind in ("table", "hive"):
            what = f"{self.kind} {self.table_name}"
        elif self.kind == "kafka":
            what = f"kafka {self.topic} at {self.conn_id or self.servers}"
        elif self.kind == "read":
            what = f"{self.format}" + (f" {self.uri!r}" if self.uri else "")
        else:
            what = f"{self.kind} {self.uri!r}"
        if self.version is not None:
            what += f" at {'snapshot' if self.kind == 'iceberg' else 'version'} {self.version}"
        if self.timestamp is not None:
            what += f" as of {self.timestamp}"
        if self.where:
            what += f" where {self.where}"
        if values := {**self.where_args, **self.query_args}:
            what += f" with {', '.join(f'{name}={value!r}' for name, value in values.items())}"
        return what

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; fields at their defaults are left out."""
        document: dict[str, Any] = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value in (None, {}):
                continue
            if item.name == "tables":
                value = {name: table.to_dict() for name, table in value.items()}
            elif item.name == "columns":
                value = list(value)
            elif isinstance(value, Mapping):
                value = dict(value)
            document[item.name] = value
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Source:
        """Read the JSON form.

        Raises:
            InvalidJobError: an unknown field or kind, or a field that is missing.
        """
        refuse_unknown_fields(cls, document)
        tables = {name: cls.from_dict(table) for name, table in document.get("tables", {}).items()}
        return cls(**{**document, "tables": tables})


def _require_number(name: str, value: object) -> None:
    """A number, or a template of one: what it renders to is looked at where it is rendered."""
    if value is None or isinstance(value, str):
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidJobError(f"{name} must be an integer, found {value!r}")
    if name == "partitions" and value < 1:
        raise InvalidJobError(f"partitions must be at least 1, found {value}")


def _require_bindable(argument: str, values: object, text_argument: str, text: str | None) -> None:
    if not isinstance(values, Mapping):
        raise InvalidJobError(f"{argument} must be a mapping of names to values, found {values!r}")
    if values and not text:
        raise InvalidJobError(f"{argument} are values of the names in {text_argument}, which is not given")
    for name, value in values.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise InvalidJobError(f"{argument} has the name {name!r}; the name of :day is 'day'")
        if value is not None and not isinstance(value, (str, int, float)):
            raise InvalidJobError(
                f"{argument}[{name!r}] must be a string, a number, a boolean or None, found {value!r}"
            )
        require_json(f"{argument}[{name!r}]", value)
