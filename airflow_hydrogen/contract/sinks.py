"""Where scores go: files and tables, one partition of them replaced at once."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from airflow_hydrogen.contract import brokers, catalogs, partitions, uris
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.values import refuse_unknown_fields, require_fields

if TYPE_CHECKING:
    from airflow_hydrogen.contract.jobs import Run

SinkKind = Literal["parquet", "delta", "iceberg", "hive", "jdbc", "kafka"]
SinkMode = Literal["replace", "append", "merge"]

RUN_COLUMN = "hydrogen_run"
"""The column by which rows that were appended are known again: the run that wrote them."""


def run_partition(run: Run) -> dict[str, str]:
    """The partition of what one run adds, for all of its tries and clears."""
    return {RUN_COLUMN: hashlib.sha256(repr(run.work).encode()).hexdigest()[:16]}


class _Fields(NamedTuple):
    """What a kind of sink has: its place, what else, and the ways in which it is written."""

    needed: tuple[str, ...]
    allowed: tuple[str, ...]
    modes: tuple[SinkMode, ...]
    example: str


_KINDS: dict[str, _Fields] = {
    "parquet": _Fields(("uri",), ("partition_by", "partitions"), ("replace", "append"), "Sink.parquet(uri)"),
    "delta": _Fields(("uri",), (), ("replace", "append", "merge"), "Sink.delta(uri)"),
    "iceberg": _Fields(
        ("table_name",),
        ("conn_id", "catalog", "work_uri"),
        ("replace", "append"),
        'Sink.iceberg("db.scores", catalog="my_catalog")',
    ),
    "hive": _Fields(("table_name",), ("work_uri",), ("replace", "append"), 'Sink.hive("schema.table")'),
    "jdbc": _Fields(
        ("conn_id", "table_name"),
        ("work_uri",),
        ("replace", "append", "merge"),
        'Sink.jdbc("my_database", table="scores")',
    ),
    "kafka": _Fields(
        ("topic",), ("servers", "conn_id", "work_uri"), ("replace",), 'Sink.kafka("host:9092", "topic")'
    ),
}
_WANTED = {
    "uri": "the URI of a folder",
    "table_name": "a table",
    "conn_id": "a connection",
    "topic": "a topic",
}
_COMMON = ("kind", "partition", "mode", "keys")


@dataclass(frozen=True, kw_only=True)
class Sink:
    """Where scores go. Use the constructors: `parquet`, `delta`, `iceberg`, `hive`, `jdbc`, and `kafka` for
    streams.

    A run replaces its partition: completely, at once, and again where it is repeated. With `mode="append"`
    the partition has one column more, `hydrogen_run`, and with `mode="merge"` rows take the place of those
    with the same keys. With `partition_by` it replaces many, each of them so.
    """

    kind: SinkKind = "parquet"
    uri: str | None = None
    table_name: str | None = None
    conn_id: str | None = None
    catalog: Mapping[str, str] = field(default_factory=dict)
    partition: Mapping[str, str] = field(default_factory=dict)
    partition_by: Sequence[str] = ()
    partitions: Any = ()
    mode: SinkMode = "replace"
    keys: Sequence[str] = ()
    work_uri: str | None = None
    servers: str | None = None
    topic: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))
        if self.partition_by or self.partitions:
            self._take_partitions()
        kinds = _KINDS.get(self.kind)
        if kinds is None:
            raise InvalidJobError(
                f"sink kind {self.kind!r} is not known; expected one of {', '.join(_KINDS)}"
            )
        allowed = (*_COMMON, *kinds.allowed)
        require_fields(self, f"{self.kind} sink", kinds.needed, allowed, _WANTED, kinds.example)
        if self.kind == "kafka":
            brokers.require_one("sink", self.servers, self.conn_id)
            if self.partition:
                raise InvalidJobError(
                    "a kafka sink has no partition: a topic is not replaced, messages are added"
                )
        if self.kind == "iceberg":
            catalogs.require_one("sink", self.catalog, self.conn_id)
        self._check_mode(kinds.modes)
        for key, value in self.partition.items():
            if not isinstance(value, str) or not value:
                raise InvalidJobError(
                    f"sink partition {key!r} must be a string that is not empty, found {value!r}"
                )

    def _take_partitions(self) -> None:
        """Check which partitions are replaced, and keep them in one form."""
        if self.kind != "parquet":
            raise InvalidJobError(
                f"partition_by is for Sink.parquet: a {self.kind} sink replaces one partition a job, for its "
                "commit names one; give it partition= and map the task over the partitions"
            )
        if isinstance(self.partition_by, str) or not self.partition_by or not self.partitions:
            raise InvalidJobError(
                "partition_by and partitions belong together, the columns and the values of all partitions "
                'that the job replaces, as in Sink.parquet(uri, partition_by=["ds"], '
                f'partitions=days("2013-01-01", "2014-01-01")); found {self.partition_by!r} and '
                f"{self.partitions!r}"
            )
        if self.partition or self.mode != "replace":
            raise InvalidJobError(
                "partition_by names all of a partition's columns, and is for mode='replace' alone; found "
                f"partition={dict(self.partition)!r}, mode={self.mode!r}"
            )
        columns = tuple(self.partition_by)
        if len({name.lower() for name in columns}) < len(columns):
            raise InvalidJobError(f"partition_by names a column twice: {', '.join(map(repr, columns))}")
        object.__setattr__(self, "partition_by", columns)
        object.__setattr__(self, "partitions", partitions.declared(columns, self.partitions))

    def _check_mode(self, modes: Sequence[SinkMode]) -> None:
        if self.mode not in modes:
            raise InvalidJobError(
                f"mode of a {self.kind} sink must be one of {', '.join(map(repr, modes))}, found "
                f"{self.mode!r}"
            )
        if (self.mode == "merge") != bool(self.keys):
            raise InvalidJobError(
                "keys and mode='merge' belong together: the columns by whose values rows take the place of "
                f"those that are there; found keys={list(self.keys)!r}, mode={self.mode!r}"
            )
        if self.kind == "hive" and self.mode == "replace" and not self.partition:
            raise InvalidJobError(
                "a hive sink replaces one partition of a table: name it, as in "
                'Sink.hive("schema.table", partition={"ds": "{{ ds }}"})'
            )
        if self.mode == "append" and RUN_COLUMN in self.partition:
            raise InvalidJobError(f"sink partition has {RUN_COLUMN!r}, which mode='append' adds itself")

    @classmethod
    def parquet(
        cls,
        uri: str,
        *,
        partition: Mapping[str, str] | None = None,
        partition_by: Sequence[str] = (),
        partitions: Sequence[str | Mapping[str, str]] | Mapping[str, Sequence[str]] = (),
        mode: SinkMode = "replace",
    ) -> Sink:
        """Parquet files.

        Args:
            uri: the table's folder.
            partition: column and value of the partition that this run replaces, for example
                `{"ds": "2013-01-01"}`. Without it the run replaces the whole folder.
            partition_by: columns of the source, by whose values its rows are the rows of many partitions,
                instead of `partition`.
            partitions: all partitions that the run replaces, those without rows too, and a row of another one
                is an error: a list of values, a list of {column: value} where there are several columns, or
                `days(start, end)`, in which `end` is the day after the last one.
            mode: "replace", or "append" to add the run's rows beside those of other runs, in a partition
                `hydrogen_run=...` of their own: a retry, or a clear, finds and replaces them.
        """
        return cls(
            uri=uri,
            partition=dict(partition or {}),
            partition_by=partition_by,
            partitions=partitions,
            mode=mode,
        )

    @classmethod
    def delta(
        cls,
        uri: str,
        *,
        partition: Mapping[str, str] | None = None,
        mode: SinkMode = "replace",
        keys: Sequence[str] = (),
    ) -> Sink:
        """A Delta table by its folder, made where there is none. The operators add Delta's package.

        Args:
            uri: the table's folder.
            partition: as for `parquet`; its columns are columns of the table.
            mode: "replace", "append" as for `parquet`, or "merge": rows take the place of those with the same
                keys, and the others stay.
            keys: the columns of the keys; in the rows of a run each key stands once.
        """
        return cls(kind="delta", uri=uri, partition=dict(partition or {}), mode=mode, keys=keys)

    @classmethod
    def iceberg(
        cls,
        table: str,
        *,
        catalog: str | Mapping[str, str],
        partition: Mapping[str, str] | None = None,
        mode: SinkMode = "replace",
        work_uri: str | None = None,
    ) -> Sink:
        """An Iceberg table, made where there is none. The commit is pyiceberg's: see `Source.iceberg`.

        Args:
            table: `namespace.table`; the namespace is there.
            catalog: as for `Source.iceberg`.
            partition: as for `parquet`; its columns are columns of the table, which is partitioned by their
                values and by nothing else.
            mode: as for `parquet`.
            work_uri: as for `hive`.
        """
        named: dict[str, Any] = catalogs.named_by(catalog)
        return cls(
            kind="iceberg",
            table_name=table,
            partition=dict(partition or {}),
            mode=mode,
            work_uri=work_uri,
            **named,
        )

    @classmethod
    def hive(
        cls,
        table: str,
        *,
        partition: Mapping[str, str] | None = None,
        mode: SinkMode = "replace",
        work_uri: str | None = None,
    ) -> Sink:
        """A table of the Hive metastore. Where that is, says `conf`: `spark.hadoop.hive.metastore.uris`.

        Args:
            table: `schema.table`, of Parquet or ORC files, made of Parquet where there is none.
            partition: as for `parquet`, with a value for each of the table's partition columns.
            mode: as for `parquet`.
            work_uri: a folder that Airflow and Spark both see, beside which the job leaves its report, its
                log and its notes for retries; None: beside the model.
        """
        return cls(
            kind="hive", table_name=table, partition=dict(partition or {}), mode=mode, work_uri=work_uri
        )

    @classmethod
    def jdbc(
        cls,
        conn_id: str,
        *,
        table: str,
        partition: Mapping[str, str] | None = None,
        mode: SinkMode = "replace",
        keys: Sequence[str] = (),
        work_uri: str | None = None,
    ) -> Sink:
        """A table of a database: rows are staged in a table of their own, and swapped in one transaction.

        Args:
            conn_id: an Airflow connection, as for `Source.jdbc`.
            table: `scores` or `schema.scores`, made where there is none.
            partition: as for `parquet`; its columns are columns of the table.
            mode: as for `delta`.
            keys: likewise.
            work_uri: as for `hive`.
        """
        return cls(
            kind="jdbc",
            conn_id=conn_id,
            table_name=table,
            partition=dict(partition or {}),
            mode=mode,
            keys=keys,
            work_uri=work_uri,
        )

    @classmethod
    def kafka(cls, servers_or_conn_id: str, topic: str, *, work_uri: str | None = None) -> Sink:
        """A Kafka topic, for streams from Kafka: a message of JSON for every row, at least once.

        Messages keep the key and the headers of those that they were made of. `hydrogen_id` in them is the
        same where a row is sent again: consumers drop what they have seen.

        Args:
            servers_or_conn_id: as for `Source.kafka`.
            topic: the topic, which must be there.
            work_uri: as for `hive`.
        """
        named: dict[str, Any] = brokers.named_by(servers_or_conn_id)
        return cls(kind="kafka", topic=topic, work_uri=work_uri, **named)

    def for_run(self, run: Run | None) -> Sink:
        """The sink of one Airflow run: what is appended is the run's own partition.

        A clear of the task does not change it, nor does a retry.
        """
        if self.mode != "append" or run is None:
            return self
        return dataclasses.replace(self, mode="replace", partition={**self.partition, **run_partition(run)})

    def with_partitions(self) -> Sink:
        """The sink whose partitions are a list of them, once all templates are rendered.

        Raises:
            InvalidJobError: `days` of what is no day, or of no days.
        """
        if not self.partition_by:
            return self
        return dataclasses.replace(self, partitions=partitions.expanded(self.partition_by, self.partitions))

    @property
    def partition_columns(self) -> tuple[str, ...]:
        """Columns that stand in the names of folders, and not in files."""
        return (*self.partition, *self.partition_by)

    @property
    def folders(self) -> list[str]:
        """The folders that are replaced, each of them at once, where there are many: one a partition."""
        return [uris.partition_uri(str(self.uri), partition) for partition in self.partitions]

    @property
    def folder(self) -> str | None:
        """The folder that is replaced: `uri/ds=2013-01-01`, or `uri` itself; None where there is none.

        Where many partitions are replaced it is the one that they lie in.
        """
        return uris.partition_uri(self.uri, self.partition) if self.kind == "parquet" and self.uri else None

    @property
    def output(self) -> str:
        """By what the result is found: the partition's folder of files, the folder or name of a table."""
        return self.folder or self.uri or str(self.table_name or self.topic)

    @property
    def home(self) -> str | None:
        """Beside what a job leaves its report, its log and notes for retries; None: beside the model."""
        return self.uri or self.work_uri

    def __str__(self) -> str:
        """How messages call it."""
        if self.partition_by:
            return f"{self.folder} ({self._told_partitions()})"
        if self.folder:
            return self.folder
        if self.kind == "kafka":
            return f"kafka {self.topic} at {self.conn_id or self.servers}"
        where = f"{self.kind} {self.conn_id}: " if self.conn_id else f"{self.kind} "
        partition = ", ".join(f"{column}={value}" for column, value in self.partition.items())
        return where + (self.uri or str(self.table_name)) + (f" ({partition})" if partition else "")

    def _told_partitions(self) -> str:
        columns = ", ".join(self.partition_by)
        if isinstance(self.partitions, Mapping):
            return f"partitions by {columns}"
        told = [
            found if isinstance(found, str) else "/".join(found.values())
            for found in (self.partitions[0], self.partitions[-1])
        ]
        which = " to ".join(dict.fromkeys(told))
        return f"{len(self.partitions):,} partitions by {columns}: {which}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; but for the partition, fields at their defaults are left out."""
        document: dict[str, Any] = {"kind": self.kind, "partition": dict(self.partition)}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if item.name not in document and value not in (None, (), {}) and value != item.default:
                plain = {"keys": list, "partition_by": list, "catalog": dict}.get(item.name)
                document[item.name] = value if plain is None else plain(value)
        if isinstance(self.partitions, tuple) and self.partitions:
            document["partitions"] = [
                found if isinstance(found, str) else dict(found) for found in self.partitions
            ]
        return document

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Sink:
        """Read the JSON form.

        Raises:
            InvalidJobError: an unknown field, or a field that is missing.
        """
        refuse_unknown_fields(cls, document)
        return cls(**document)
