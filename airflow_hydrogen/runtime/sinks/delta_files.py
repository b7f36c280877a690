"""Files that tasks have written, as files of a Delta table, and the transaction that names them in its log.

What has been brought into a table's folder and is in no commit is no part of the table: `VACUUM` removes it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_hydrogen.contract import uris
from airflow_hydrogen.runtime.sinks.delta_rules import refused_by_table
from airflow_hydrogen.runtime.sinks.delta_statistics import statistics
from airflow_hydrogen.runtime.storage import filesystems, swap

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import StructType

_DELETION_VECTORS = "deletionVectors"


@dataclass(frozen=True)
class File:
    """A file with rows: its name, its bytes, and its footer."""

    name: str
    size: int
    footer: pq.FileMetaData


class Files:
    """Files of accepted tries of tasks: staged beside a table, and then brought into its folder.

    Args:
        staged: the folder that has them.
        table: the table's folder.
    """

    def __init__(self, staged: str, table: str) -> None:
        self._table = table
        found = [File(name, size, _footer(staged, name)) for name, size in filesystems.list_files(staged)]
        self.files = [file for file in found if file.footer.num_rows]
        self._places = {file.name: uris.join(staged, file.name) for file in self.files}
        self._brought: set[str] = set()

    @property
    def rows(self) -> int:
        """In all of them."""
        return sum(file.footer.num_rows for file in self.files)

    @property
    def uris(self) -> list[str]:
        """Where they are now."""
        return list(self._places.values())

    def bring(self, folder: str) -> None:
        """Bring those into the table's folder that are not there yet.

        Args:
            folder: below the table's; "" for itself.

        Raises:
            OSError: one of them cannot be brought there.
        """
        for name in [name for name in self._places if name not in self._brought]:
            target = uris.join(self._table, *([folder] if folder else []), name)
            filesystems.transfer(self._places[name], target)
            self._places[name] = target
            self._brought.add(name)

    def take_back(self) -> None:
        """Remove what was brought and is in no commit for certain."""
        for name in self._brought:
            swap.sweep(self._places[name])


def _footer(folder: str, name: str) -> pq.FileMetaData:
    filesystem, path = filesystems.resolve(uris.join(folder, name))
    with filesystem.open_input_file(path) as stream:
        return pq.read_metadata(stream)


class Transaction:
    """A transaction of Delta's: it begins at the table as it is now, and conflicts with what comes later.

    Args:
        session: with the settings of the commit.
        uri: the table's folder, as Spark spells it.
    """

    def __init__(self, session: SparkSession, uri: str) -> None:
        self._session, self._jvm = session, session._jvm
        self._delta: Any = self._jvm.org.apache.spark.sql.delta  # type: ignore[union-attr]
        activate(session)
        self._transaction = self._delta.DeltaLog.forTable(session._jsparkSession, uri).startTransaction()
        self._protocol = json.loads(self._transaction.protocol().json())["protocol"]
        self._metadata = json.loads(self._transaction.metadata().json())["metaData"]

    def refused(self, partition: Mapping[str, str], schema: StructType | None) -> str | None:
        """Why files are Spark's to write; see `refused_by_table`.

        Args:
            partition: what is replaced, or added to.
            schema: of files that are there, without the partition's columns; None: they are yet to be made.
        """
        if self._transaction.readVersion() < 0:
            return "it was dropped"
        if schema is not None:
            there = type(schema).fromJson(json.loads(self._metadata["schemaString"]))
            types = {item.name: item.dataType.simpleString() for item in there}
            if any(types.get(item.name) != item.dataType.simpleString() for item in schema):
                return "its columns have changed"
        return refused_by_table(self._protocol, self._metadata, partition)

    def newest(self, writer: str) -> int:
        """The highest number with which a writer has committed; -1 where it has not."""
        return int(self._transaction.txnVersion(writer))

    def folder(self, values: Mapping[str, str]) -> str:
        """The folder of a partition below the table's; "" for itself.

        Args:
            values: of the partition's columns, as the log spells them.
        """
        return uris.partition_folders(self._ordered(values))

    def commit(
        self,
        files: Files,
        schema: pa.Schema,
        values: Mapping[str, str],
        replaced: str | None,
        writer: tuple[str, int] | None,
    ) -> None:
        """Commit files.

        Args:
            files: brought to `folder`.
            schema: their columns, in the table's order.
            values: of the partition's columns, as the log spells them.
            replaced: whose files they take the place of: an SQL condition of partition columns alone, or ""
                for all; None: they are added.
            writer: who writes, and with which number; None: somebody without a name.

        Raises:
            PySparkException, Py4JJavaError: it has not committed, or it does not know whether it has.
        """
        activate(self._session)
        now = int(time.time() * 1000)
        actions = [self._added(file, schema, values, now) for file in files.files]
        removed = self._replaced(replaced)
        if writer is not None:
            actions.append({"txn": {"appId": writer[0], "version": writer[1], "lastUpdated": now}})
        metrics = {
            "numFiles": len(files.files),
            "numOutputRows": files.rows,
            "numOutputBytes": sum(file.size for file in files.files),
        }
        if replaced is not None:
            sizes = [int(file.size()) for file in removed]
            metrics |= {"numRemovedFiles": len(sizes), "numRemovedBytes": sum(sizes)}
        if replaced:
            metrics["numAddedChangeFiles"] = 0
            counts = [file.numLogicalRecords() for file in removed]
            if all(count.isDefined() for count in counts):
                metrics |= {"numDeletedRows": sum(count.get() for count in counts), "numCopiedRows": 0}
        self._measure(metrics)
        from_json = self._delta.actions.Action.fromJson
        made = [from_json(json.dumps(action)) for action in actions]
        made += [file.remove() for file in removed]
        self._transaction.commit(self._sequence(made), self._operation(replaced))

    def _ordered(self, values: Mapping[str, str]) -> dict[str, str]:
        return {column: values[column] for column in self._metadata["partitionColumns"]}

    def _added(
        self, file: File, schema: pa.Schema, values: Mapping[str, str], now: int
    ) -> dict[str, dict[str, Any]]:
        hadoop: Any = self._jvm.org.apache.hadoop  # type: ignore[union-attr]
        folder = self.folder(values)
        path = hadoop.fs.Path(f"{folder}/{file.name}" if folder else file.name)
        tight = _DELETION_VECTORS in self._protocol.get("writerFeatures", ())
        return {
            "add": {
                "path": path.toUri().toString(),
                "partitionValues": self._ordered(values),
                "size": file.size,
                "modificationTime": now,
                "dataChange": True,
                "stats": statistics(file.footer, schema, tight=tight),
            }
        }

    def _replaced(self, replaced: str | None) -> list[Any]:
        """The old files; who adds to them meanwhile, or removes some, conflicts with this one."""
        if replaced is None:
            return []
        if replaced:
            parser = self._session._jsparkSession.sessionState().sqlParser()
            condition = self._sequence([parser.parseExpression(replaced)])
            found = self._transaction.filterFiles(condition, True)
        else:
            found = self._transaction.filterFiles()
        return [found.apply(number) for number in range(found.size())]

    def _measure(self, metrics: Mapping[str, int]) -> None:
        """What the commit says of itself, as if Spark had written."""
        sql: Any = self._jvm.org.apache.spark.sql  # type: ignore[union-attr]
        context = self._session._jsparkSession.sparkContext()
        counted = {}
        for name, value in metrics.items():
            counted[name] = sql.execution.metric.SQLMetrics.createMetric(context, name)
            counted[name].set(value)
        as_map = self._jvm.PythonUtils.toScalaMap(counted)  # type: ignore[union-attr]
        self._transaction.registerSQLMetrics(self._session._jsparkSession, as_map)

    def _operation(self, replaced: str | None) -> Any:
        jvm: Any = self._jvm
        option = jvm.scala.Option
        mode = jvm.org.apache.spark.sql.SaveMode.valueOf("Append" if replaced is None else "Overwrite")
        write = getattr(self._delta, "DeltaOperations$Write")
        left = [option.empty()] * 6
        return write(mode, option.apply(self._sequence([])), option.apply(replaced or None), *left)

    def _sequence(self, items: Sequence[Any]) -> Any:
        return self._jvm.PythonUtils.toSeq(list(items))  # type: ignore[union-attr]


def activate(session: SparkSession) -> None:
    """Have Delta take its settings from a session: it asks for that which is active in this thread."""
    jvm: Any = session._jvm
    jvm.org.apache.spark.sql.classic.SparkSession.setActiveSession(session._jsparkSession)
