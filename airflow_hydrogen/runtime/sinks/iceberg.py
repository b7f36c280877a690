"""An Iceberg table: tasks write its files, and one commit of pyiceberg's puts them in the place of others.

Files are staged out of sight, then brought into the table's folder under names of this try's, and then the
table is told of them: by one snapshot, which leaves out the partition's old files and is refused where
somebody else was faster. Before they are brought there a note names them. Whoever writes the partition next
removes those that no snapshot has, and may do so once it has committed itself: no older try commits after it.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import (
    ColumnTypeError,
    FilesLostError,
    HydrogenError,
    InvalidJobError,
    PartitionTakenError,
    RowsLostError,
    TableBusyError,
    TableMismatchError,
    UnwritableUriError,
)
from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.runtime.data import iceberg
from airflow_hydrogen.runtime.data.databases import Access
from airflow_hydrogen.runtime.data.spark_types import arrow_type
from airflow_hydrogen.runtime.sinks import tables
from airflow_hydrogen.runtime.sinks.staged import StagedFiles, replacing
from airflow_hydrogen.runtime.sinks.tables import Types
from airflow_hydrogen.runtime.sinks.task_files import TaskFile, TaskFiles, TaskTarget
from airflow_hydrogen.runtime.storage import filesystems, s3, swap
from airflow_hydrogen.runtime.storage.swap import Replacement

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

log = logging.getLogger(__name__)

ATTEMPTS = 15
_LONGEST_WAIT_S = 8.0
_SAID = "airflow-hydrogen."
_NOTE = "_files-"
_EPOCH = datetime.date(1970, 1, 1)
_DAY = re.compile(r"\d{4}-\d\d-\d\d")
_WHOLE = re.compile(r"[+-]?\d+")
_ANSWER = "file string, rows bigint, notes array<string>"


def _whole(text: str, bits: int) -> int:
    value = int(text) if _WHOLE.fullmatch(text) else None
    if value is None or not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
        raise ValueError(text)
    return value


def _day(text: str) -> datetime.date:
    if not _DAY.fullmatch(text):
        raise ValueError(text)
    return datetime.date.fromisoformat(text)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


# Type of a partition's column -> its value from a text; ValueError where it is none.
_VALUES: dict[str, Callable[[str], Any]] = {
    "string": str,
    "int": partial(_whole, bits=32),
    "long": partial(_whole, bits=64),
    "date": _day,
    "boolean": _truth,
}


def require_writable(sink: Sink, access: Access) -> None:
    """Look at the table where it is there, and whether its folder can be written.

    Raises:
        InvalidJobError: no pyiceberg, no access to the catalog, or no such namespace.
        UnwritableUriError: the catalog does not answer, or files cannot be written.
        TableMismatchError: the table is not partitioned by what is to be replaced.
    """
    target = Target(sink, access)
    table = target.find()
    if table is not None:
        target.require_partitioned(table)
        filesystems.require_writable("sink", _folder(table))


@contextmanager
def placing(sink: Sink, run: Run | None, access: Access, types: Types, schema: StructType) -> Iterator[Rows]:
    """Begin a try to replace a partition of a table, which is made where there is none.

    Args:
        sink: the table.
        run: the Airflow run, or None.
        access: what opens its catalog.
        types: for a partition's columns of a table that is yet to be made.
        schema: of the rows, without the partition's columns.

    Raises:
        InvalidJobError: see `require_writable`.
        TableMismatchError: the table does not hold the rows.
        ColumnTypeError: a value of the partition is none of its column's type.
        PartitionTakenError: a newer try has begun meanwhile.
    """
    target = Target(sink, access)
    table = target.find() or target.make(schema, types)
    target.require_holds(table, schema)
    target.take_values(table)
    place = tables.place(uris.join(_folder(table), "hydrogen"), sink, run)
    with replacing(place, run, str(sink)) as replacement:
        yield Rows(target, table, schema, run, replacement)


class Rows(StagedFiles):
    """The rows of one try.

    Args:
        target: where they go.
        table: as it is now.
        schema: of the rows.
        run: the Airflow run, or None.
        replacement: of the place that they are staged beside, and brought to.
    """

    def __init__(
        self, target: Target, table: Any, schema: StructType, run: Run | None, replacement: Replacement
    ) -> None:
        super().__init__(str(target.sink), replacement)
        self._target, self._run = target, run
        self._uuid = table.metadata.table_uuid
        self._made = tables.label_of(schema)
        self._place = f"{_folder(table)}/{replacement.target.rpartition('/')[2]}"
        # Tries count up, whatever the clocks of their hosts say.
        newest = max(target.tries(table, self._of_place).values(), default=0)
        self._number = max(time.time_ns(), newest + 1)
        self.by_tasks: TaskTarget = TaskTarget(
            staged=replacement.staged,
            place=replacement.target,
            schema=target.file_schema(table),
            constants=target.constants(table),
        )

    @property
    def _of_place(self) -> str:
        return self._place.rpartition("/")[2]

    @property
    def _note(self) -> str:
        return uris.join(self._place, f"{_NOTE}{self._number}-{self._replacement.token}.json")

    def stage(self, frame: DataFrame, notes: str | None) -> tuple[int, list[str]]:
        """Let tasks write the rows of a frame; see `Placement`."""
        folder = swap.staging_uri(self._replacement.target, swap.new_token())
        files = self.by_tasks.fitted(TaskFiles("sink", folder, pa.schema([]), copied=True))
        filesystems.make_folder(folder)
        try:
            answers = frame.mapInArrow(partial(_written, files, notes, s3.current()), _ANSWER).collect()
            files.accept([answer["file"] for answer in answers if answer["file"]], self._replacement.staged)
        finally:
            swap.sweep(folder)
        told = [note for answer in answers for note in answer["notes"]]
        return sum(answer["rows"] for answer in answers), told

    def commit(self, *, rows: int, model: str | None) -> None:
        """Bring the files to the table, and commit them; once more where others were faster.

        Raises:
            TableBusyError: others were faster every time.
            TableMismatchError: the table has changed, and does not hold the files any more.
            PartitionTakenError: a newer try has begun, or has committed.
            RowsLostError: the files hold other rows than those that were staged.
            UnwritableUriError: another table has the name now, or what became of the commit is not known.
        """
        said = {
            f"{_SAID}place": self._of_place,
            f"{_SAID}try": str(self._number),
            f"{_SAID}token": self._replacement.token,
            f"{_SAID}rows": str(rows),
            f"{_SAID}made-by": json.dumps({"model_uri": model, **self._made}),
            f"{_SAID}run": json.dumps(dataclasses.asdict(self._run) if self._run else None),
        }
        self.require_owner()
        files = self._bring()
        try:
            self._commit(files, said, rows)
        except UnwritableUriError:
            raise  # who writes there next finds out what became of the files
        except HydrogenError:
            self._take_back(files)
            raise
        try:
            self._sweep_after(self._target.load())
        except Exception as error:  # the rows are in place, and a try that fails now would be made again
            reason = self._target.told(error)
            log.warning("%s: leftovers stay until the next run writes there: %s", self.name, reason)

    def _commit(self, files: Sequence[str], said: Mapping[str, str], rows: int) -> None:
        for attempt in range(ATTEMPTS):
            reason = self._try(files, said, rows)
            if reason is None:
                return
            # Others wait as long: by chance not quite.
            time.sleep(random.uniform(0.5, 1.0) * min(0.2 * 2**attempt, _LONGEST_WAIT_S))
        if not self._is_committed(self._target.load()):
            raise TableBusyError(self.name, ATTEMPTS, reason or "")

    def _is_committed(self, table: Any) -> bool:
        return self._replacement.token in self._target.tries(table, self._of_place)

    def _try(self, files: Sequence[str], said: Mapping[str, str], rows: int) -> str | None:
        """Commit, unless somebody else does so at the same moment: then what is said of that."""
        from pyiceberg.exceptions import CommitFailedException, ValidationException

        table = self._target.load()
        if table.metadata.table_uuid != self._uuid:
            # Its columns may have other numbers than those in the files, which say no names.
            anew = (
                "the table was dropped and made anew meanwhile; run the task again, which looks at this one"
            )
            raise UnwritableUriError("sink", self.name, anew)
        if self._is_committed(table):
            return None  # by an attempt that seemed to fail
        # Now that the table was looked at: who takes the place over later, and commits, makes this one fail.
        self.require_owner()
        if max(self._target.tries(table, self._of_place).values(), default=0) > self._number:
            raise PartitionTakenError(self.name, None)
        try:
            snapshot = self._target.commit(table, files, said, rows)
        except (CommitFailedException, ValidationException) as error:
            return self._target.told(error)
        except HydrogenError:
            raise
        except Exception as error:
            if self._is_committed(self._target.load()):
                return None
            unknown = "; whether it has committed is not known, and a retry replaces it"
            raise UnwritableUriError("sink", self.name, self._target.told(error) + unknown) from None
        print(f"committed snapshot {snapshot} of {self.name}", flush=True)
        return None

    def _bring(self) -> list[str]:
        """Bring the staged files to where the table may have them, once a note says which these are."""
        staged = filesystems.list_files(self._replacement.staged)
        names = {name: f"{self._replacement.token}-{name}" for name, _size in staged}
        filesystems.write_bytes(self._note, json.dumps(sorted(names.values())).encode())
        for name, own in names.items():
            filesystems.transfer(uris.join(self._replacement.staged, name), uris.join(self._place, own))
        there = dict(filesystems.list_files(self._place))
        if lost := [own for name, own in names.items() if there.get(own) != dict(staged)[name]]:
            raise FilesLostError(self._place, lost)
        return sorted(f"{self._place}/{own}" for own in names.values())

    def _take_back(self, files: Sequence[str]) -> None:
        """Remove files that are in no snapshot for certain."""
        for file in files:
            swap.sweep(file)
        swap.sweep(self._note)

    def _sweep_after(self, table: Any) -> None:
        """Remove what older tries have brought that died, and were in no snapshot; none can commit any more.

        Args:
            table: as it is after this try's commit.
        """
        for name, _size in filesystems.list_files(self._place):
            number, _, token = name.removeprefix(_NOTE).partition("-")
            if not name.startswith(_NOTE) or not number.isdecimal() or int(number) > self._number:
                continue  # a newer try's is none of its business
            note = uris.join(self._place, name)
            if token != f"{self._replacement.token}.json":
                known = _files_of(table)
                brought = json.loads(filesystems.read_bytes(note))
                for file in brought:
                    if f"{self._place}/{file}" not in known:
                        swap.sweep(uris.join(self._place, file))
            swap.sweep(note)


def _written(
    files: TaskFiles, notes: str | None, access: S3Access | None, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """What a task answers that writes its rows: its file, their number, and the notes among them."""
    s3.use(access)  # the worker that has scored them is another process
    told: list[str] = []
    with TaskFile(files) as file:
        for batch in batches:
            rows = batch
            if notes is not None:
                column = batch.column(notes)
                told += column.drop_null().to_pylist()
                rows = batch.filter(column.is_null())
            file.add(rows)
    answer = [{"file": file.name, "rows": file.rows, "notes": told}]
    yield pa.RecordBatch.from_pylist(
        answer, pa.schema([("file", pa.string()), ("rows", pa.int64()), ("notes", pa.list_(pa.string()))])
    )


class Target:
    """An Iceberg table, which need not exist.

    Args:
        sink: the table, and the partition of it that is replaced.
        access: what opens its catalog.
    """

    def __init__(self, sink: Sink, access: Access) -> None:
        self.sink, self._access = sink, access
        self._name = str(sink.table_name)
        self._values: dict[str, Any] = {}

    def told(self, error: Exception) -> str:
        """What an error of pyiceberg says, without secrets."""
        return iceberg.told(error, self.sink, self._access)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except HydrogenError:
            raise
        except Exception as error:
            raise UnwritableUriError("sink", str(self.sink), self.told(error)) from None

    def load(self) -> Any:
        """The table as it is now.

        Raises:
            UnwritableUriError: it is gone, or the catalog does not answer.
        """
        with self._explained():
            return iceberg.catalog_of(self.sink, self._access).load_table(self._name)

    def find(self) -> Any:
        """The table as it is now; None where it is yet to be made.

        Raises:
            InvalidJobError: there is not even its namespace.
        """
        from pyiceberg.exceptions import NoSuchTableError

        with self._explained():
            catalog = iceberg.catalog_of(self.sink, self._access)
            namespace = self._name.rpartition(".")[0]
            if not namespace or not catalog.namespace_exists(namespace):
                raise InvalidJobError(
                    f"sink {self.sink} names the namespace {namespace!r}, which its catalog does not have: "
                    "write namespace.table, and make the namespace first"
                )
            try:
                return catalog.load_table(self._name)
            except NoSuchTableError:
                return None

    def make(self, schema: StructType, types: Types) -> Any:
        """Make the table, without rows, partitioned by the partition's columns.

        Args:
            schema: of the rows.
            types: of the partition's columns, where the source has them; else they are texts.
        """
        from pyiceberg.exceptions import CommitFailedException, TableAlreadyExistsError

        names = [*schema.names, *self.sink.partition]
        tables.require_distinct(names, str(self.sink))
        fields = [pa.field(item.name, arrow_type(item.dataType)) for item in schema]
        for column in self.sink.partition:
            type_ = arrow_type(types[column]) if column in types else pa.string()
            fields.append(pa.field(column, type_))
        with self._explained():
            catalog = iceberg.catalog_of(self.sink, self._access)
            try:
                with (
                    catalog.create_table_transaction(self._name, schema=pa.schema(fields)) as making,
                    making.update_spec() as spec,
                ):
                    for column in self.sink.partition:
                        spec.add_identity(column)
            except (TableAlreadyExistsError, CommitFailedException):
                pass  # by another run at the same moment
            return catalog.load_table(self._name)

    def require_partitioned(self, table: Any) -> None:
        """Raise TableMismatchError unless rows of the partition are files of their own."""
        problems = []
        if table.format_version > 2:
            problems.append(f"its format version is {table.format_version}, and 1 and 2 are written")
        columns = {field.name: field for field in table.schema().fields}
        for column in self.sink.partition:
            if column not in columns:
                problems.append(f"it has no column {column!r}, by which it is to be replaced")
            elif str(columns[column].field_type) not in _VALUES:
                problems.append(
                    f"its column {column!r} is {columns[column].field_type}, and partitions are replaced by "
                    f"values of {', '.join(_VALUES)}"
                )
        spec = _identities(table, table.spec())
        if not problems and (spec is None or set(spec) != set(self.sink.partition)):
            by = ", ".join(f"{field.transform}({field.name})" for field in table.spec().fields) or "nothing"
            wanted = ", ".join(f"identity({column})" for column in self.sink.partition) or "nothing"
            problems.append(f"it is partitioned by {by}, and what is replaced is a partition by {wanted}")
        if problems:
            raise TableMismatchError(str(self.sink), problems)

    def require_holds(self, table: Any, schema: StructType) -> None:
        """Raise TableMismatchError with all that is wrong, where the table cannot hold rows of a schema."""
        self.require_partitioned(table)
        found = {item.name: item.dataType.simpleString() for item in schema}
        tables.require_distinct([*found, *self.sink.partition], str(self.sink))
        types = iceberg.types_of(table.schema())
        wanted = {
            field.name: str(
                field.field_type if (type_ := types[field.name]) is None else type_.simpleString()
            )
            for field in table.schema().fields
        }
        own = set(self.sink.partition)
        problems = [f"it has no column {name!r}" for name in found if name not in wanted or name in own]
        for name, expected in wanted.items():
            if name in own:
                continue
            if name not in found:
                problems.append(f"its column {name!r} is not among the scored ones")
            elif found[name] != expected and not tables.widens(found[name], expected):
                problems.append(f"its column {name!r} is {expected}, and what is scored is {found[name]}")
        if problems:
            raise TableMismatchError(str(self.sink), problems)

    def take_values(self, table: Any) -> None:
        """Take the partition's values as those of the table's types.

        Raises:
            ColumnTypeError: a value that is none of its column's type.
        """
        for column, text in self.sink.partition.items():
            type_ = str(table.schema().find_type(column))
            try:
                self._values[column] = _VALUES[type_](text)
            except ValueError:
                raise ColumnTypeError(column, type_, repr(text), "change the sink's partition") from None

    def file_schema(self, table: Any) -> pa.Schema:
        """The columns of its files, with the numbers by which Iceberg knows them."""
        from pyiceberg.io.pyarrow import schema_to_pyarrow

        schema: pa.Schema = schema_to_pyarrow(table.schema())
        return schema

    def constants(self, table: Any) -> dict[str, pa.Scalar]:
        """The values of the partition's columns, as they stand in every row."""
        types = self.file_schema(table)
        return {column: pa.scalar(value, types.field(column).type) for column, value in self._values.items()}

    def tries(self, table: Any, place: str) -> dict[str, int]:
        """Token and number of the tries that have committed at a place."""
        said = [snapshot.summary.additional_properties for snapshot in table.snapshots() if snapshot.summary]
        return {
            one[f"{_SAID}token"]: int(one[f"{_SAID}try"]) for one in said if one.get(f"{_SAID}place") == place
        }

    def commit(self, table: Any, files: Sequence[str], said: Mapping[str, str], rows: int) -> int:
        """Put files in the place of the partition's by one snapshot of a table: its id.

        Args:
            table: as it is thought to be: the commit fails where it is not.
            files: Parquet.
            said: what the snapshot says of itself.
            rows: that the files hold.

        Raises:
            TableMismatchError: the table has changed, and does not hold the files, or keeps the old ones.
            RowsLostError: the files hold other rows.
            Exception: pyiceberg's own.
        """
        from pyiceberg.io.pyarrow import parquet_files_to_data_files
        from pyiceberg.table import TableProperties

        self.require_partitioned(table)
        for column in self._values:  # pyiceberg takes a file's partition from its bounds
            table.metadata.properties[f"{TableProperties.METRICS_MODE_COLUMN_CONF_PREFIX}.{column}"] = "full"
        try:
            found = list(parquet_files_to_data_files(table.io, table.metadata, iter(files)))
        except (ValueError, KeyError) as error:  # of another schema
            raise TableMismatchError(str(self.sink), [f"it has changed: {self.told(error)}"]) from None
        if (there := sum(file.record_count for file in found)) != rows:
            raise RowsLostError(str(self.sink), rows, there)
        found = [file for file in found if file.record_count]
        partition = [_stored(self._values[field.name]) for field in table.spec().fields]
        if any([*file.partition] != partition for file in found):
            problem = f"pyiceberg finds files of another partition than {partition}"
            raise TableMismatchError(str(self.sink), [problem])
        replaced = self._replaced(table)
        # Whether it may be tried again is decided here, with another look at who owns the place.
        table.metadata.properties[TableProperties.COMMIT_NUM_RETRIES] = "0"
        with table.transaction() as change, change.update_snapshot(dict(said)).overwrite() as snapshot:
            for file in replaced:
                snapshot.delete_data_file(file)
            for file in found:
                snapshot.append_data_file(file)
        return int(table.current_snapshot().snapshot_id)

    def _replaced(self, table: Any) -> list[Any]:
        """The files with the partition's rows."""
        from pyiceberg.expressions import AlwaysTrue, And, EqualTo

        asked: Any = AlwaysTrue()
        for column, value in self._values.items():
            is_date = isinstance(value, datetime.date)
            asked = And(asked, EqualTo(column, value.isoformat() if is_date else value))
        try:
            tasks = list(table.scan(row_filter=asked).plan_files())
        except ValueError as error:
            raise TableMismatchError(str(self.sink), [f"it cannot be planned: {self.told(error)}"]) from None
        for task in tasks:
            by = _identities(table, table.specs()[task.file.spec_id])
            if by is None or not set(self._values) <= set(by):
                raise TableMismatchError(
                    str(self.sink),
                    [
                        f"its file {task.file.file_path} is of an older partitioning, and may hold rows of "
                        "other partitions too: rewrite the table's data files first"
                    ],
                )
        return [task.file for task in tasks]


def _folder(table: Any) -> str:
    """Where a table has its files."""
    return str(table.properties.get("write.data.path") or f"{table.location()}/data").rstrip("/")


def _identities(table: Any, spec: Any) -> list[str] | None:
    """The columns by whose values a table is partitioned; None where it is partitioned in another way."""
    names = {field.field_id: field.name for field in table.schema().fields}
    columns = []
    for field in spec.fields:
        column = names.get(field.source_id)
        if str(field.transform) != "identity" or field.name != column:
            return None
        columns.append(field.name)
    return columns


def _stored(value: Any) -> Any:
    """A value of a partition as Iceberg's metadata has it: a date is the number of its day since 1970."""
    return (value - _EPOCH).days if isinstance(value, datetime.date) else value


def _files_of(table: Any) -> set[str]:
    """The names of all files that a snapshot of a table has."""
    manifests = {
        manifest.manifest_path: manifest
        for snapshot in table.snapshots()
        for manifest in snapshot.manifests(table.io)
    }
    return {
        str(entry.data_file.file_path)
        for manifest in manifests.values()
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)
    }
