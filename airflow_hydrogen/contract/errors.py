"""Every exception of the package.

```
HydrogenError
├── InvalidJobError                 the arguments cannot work
│   ├── EntrypointError             does not import, or is not callable
│   ├── EntrypointPickleError       a callable that cannot be pickled
│   ├── KwargsError                 arguments that are not JSON
│   ├── NotEnoughSlotsError         np against the task slots of the cluster
│   ├── InvalidUriError             a URI that names no place
│   ├── UnwritableUriError          found before any work is done
│   ├── UriInUseError               another application works at the same URI
│   ├── SharedModelUriError         two tasks of one run publish at the same URI
│   ├── SharedStorageError          a report's place that Airflow and the driver do not both see
│   ├── StoreRefusedError           S3 does not know the keys of a connection, or a bucket
│   ├── StoreUnreachableError       S3 does not answer where a connection says that it is
│   ├── NetworkInterfaceError       no interface over which the ranks could speak
│   ├── PortRangeError              all ports of the range are taken
│   ├── AcceleratorError            fewer GPUs than a rank wants
│   ├── WorkerDevicesError          a Python worker holds other GPUs than its task was given
│   ├── NeverEnoughError            a machine that will never have what is waited for
│   ├── NotOnConnectError           a job that a Spark Connect server cannot carry out
│   ├── ConnectRefusedError         a Spark Connect server that does not let the job in
│   └── ContractVersionError        a job or report of another version
├── DataError                       the data does not fit the job
│   ├── SourceError                 a source that cannot be read
│   ├── DatasetChangedError         a file that is not the one that was listed
│   ├── SchemaMismatchError         files that make no one table
│   ├── EmptyDatasetError
│   ├── SourceMisfitError           a source that differs in several points from what the job needs
│   ├── MissingColumnError
│   ├── ColumnTypeError
│   ├── ValueRangeError
│   ├── NullValueError
│   ├── RaggedTensorError
│   ├── ColumnCollisionError
│   ├── PartitionValueError
│   ├── UndeclaredPartitionError    rows of none of the partitions that a job replaces
│   ├── MergeKeysError              rows of which a key is null, or stands twice
│   ├── MessageIdError              rows that a consumer could not tell apart
│   ├── BadRowsError                more rows that cannot be scored than the job allows
│   ├── UndecodableError            messages that are not what their schema says
│   └── PartitionFilesError         files are not those that a partition's list names
├── SinkError                       a partition could not be replaced: the old one is as it was
│   ├── RowsLostError               the rows that were written are not those that are there
│   ├── RowCountError               rows read are not those written, dropped and quarantined
│   ├── FilesLostError              files that were brought in are not all there
│   ├── TableMismatchError          a table that does not hold what is to be written
│   ├── OtherRowsError              a table that would hold other rows than those that were written
│   ├── DatabaseRefusedError        a database that does not do what it is told
│   ├── MetastoreRefusedError       a metastore that does not answer, or do what it is told
│   ├── TopicError                  brokers that do not take what is sent
│   ├── TableBusyError              others have committed to a table first, every time
│   ├── PartitionTakenError         a newer try writes the same partition
│   ├── PartlyReplacedError         some of many partitions are replaced, and the others are not
│   ├── CheckpointMismatchError     a checkpoint that is not that of the sink's batches
│   ├── BatchesLostError            a table that lacks batches of its stream
│   └── StreamTakenError            a newer try scores the same stream
├── RowsNotCountedError             rows were written, and Spark does not say how many
├── ModelError                      the model directory is not usable
│   ├── NotAModelError
│   ├── ModelChangedError
│   ├── ModelReplacedError          published anew while it was in use
│   ├── EngineError                 not there for the engine that is wanted
│   ├── ModelFormatError
│   ├── NotAnAliasError             no alias where one was named
│   ├── AliasedModelError           the model that an alias names is not there as it was
│   ├── ModelModuleError            code that the model needs is not here
│   ├── ModelSignatureError
│   ├── ModelFailedError            fails whatever the row
│   ├── UnloadableModelError        trained, but no scorer could load it
│   └── UnpublishableModelError     of another framework, and no scorer could use it
├── OptimizerError                  an optimizer that would not average, or ranks that do not fit together
├── RanksDivergedError              the ranks train different models
├── NonFiniteLossError              the loss is NaN or infinite
├── GangError                       training failed on the cluster
│   ├── RankFailedError             an exception or a death on one rank
│   │   ├── StallError              a rank that holds up the gang
│   │   └── PeerUnreachableError    a rank that does not reach another
│   └── GangLostError               the barrier stage failed and no rank said why
├── CheckpointError                 a checkpoint that could not be written
├── OwnershipLostError              another application has taken the URI over
├── ClusterError                    the cluster manager does not say what is free
│   ├── ClusterUnreachableError     it does not answer, for now
│   └── ClusterResponseError        it refuses, or answers with something else
├── ConnectServerError              a Spark Connect server that does not answer, or a session that is gone
├── LauncherError                   spark-submit cannot be started here
│   ├── SparkSubmitNotFoundError
│   ├── JavaNotFoundError
│   ├── LocalServerError            no Spark Connect server on this machine
│   └── BundleServerError           this machine cannot hand the job to a driver on the cluster
└── ApplicationError                the Spark application ended without a result
```

`retryable` says whether the same job may succeed when it is run again: the operators turn a False
into Airflow's "fail without retry".
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


def _rebuild(cls: type[HydrogenError], args: tuple[Any, ...], state: dict[str, Any]) -> HydrogenError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def _alike(name: str, found: Iterable[str]) -> list[str]:
    """Names that may have been meant: those that differ in capitals alone, then those that look alike."""
    names = [other for other in found if other != name]
    same = [other for other in names if other.lower() == name.lower()]
    return same or difflib.get_close_matches(name, names, n=1, cutoff=0.75)


class HydrogenError(Exception):
    """Base of every error that this package raises on purpose."""

    retryable: ClassVar[bool] = False

    def __reduce__(self) -> tuple[Any, ...]:
        """Survive pickling whatever the signature of a subclass's constructor."""
        return _rebuild, (type(self), self.args, self.__dict__)


# --- the arguments -----------------------------------------------------------------------------------


class InvalidJobError(HydrogenError):
    """The job's arguments cannot work, whatever the cluster does."""


class EntrypointError(InvalidJobError):
    """The entry point does not import, has no such attribute, or is not callable."""

    def __init__(self, entrypoint: str, problem: str, argument: str = "entry point") -> None:
        forms = "a callable, 'package.module:function' or the path of a script"
        if argument != "entry point":
            forms = "'package.module:function'"
        super().__init__(f"{argument} {entrypoint!r} {problem}; expected {forms}")
        self.entrypoint = entrypoint


class EntrypointPickleError(InvalidJobError):
    """A callable refers to an object that cannot be sent to the cluster.

    Example: `lock = threading.Lock()` at the top of a DAG file, used inside `main`.
    """

    def __init__(self, function: str, culprit: str, reason: str) -> None:
        super().__init__(
            f"{function} cannot be pickled because of {culprit}: {reason}. Create that object inside the "
            "function, or pass the entry point as 'package.module:function'"
        )
        self.function = function
        self.culprit = culprit


class KwargsError(InvalidJobError):
    """Arguments that should be JSON are not."""

    def __init__(self, argument: str, problem: str) -> None:
        super().__init__(f"{argument} must be JSON: {problem}")
        self.argument = argument


class NotEnoughSlotsError(InvalidJobError):
    """The gang asks for more processes at once than the cluster has task slots.

    Example: `np=4` on `local[2]`. Spark itself would wait ten minutes and name neither number.
    """

    retryable = True  # the cluster may have grown by the next try

    def __init__(self, np: int, slots: int, hint: str = "") -> None:
        wanted = "every task slot (np=0)" if np == 0 else f"np={np} processes at the same time"
        super().__init__(
            f"the gang needs {wanted}, but the cluster has {slots} task slot{'' if slots == 1 else 's'}"
            f"{' (' + hint + ')' if hint else ''}; lower np or give the application more executor cores"
        )
        self.np = np
        self.slots = slots


class NetworkInterfaceError(InvalidJobError):
    """A host has no interface over which the ranks of the gang could speak."""

    def __init__(self, host: str, interface: str | None, found: Iterable[str]) -> None:
        wanted = (
            f"network_interface {interface!r} is not on host {host} or has no address"
            if interface is not None
            else f"host {host} has no interface but loopback that routes to the gang's other hosts; check "
            "how names resolve there, or set network_interface"
        )
        super().__init__(f"{wanted}; it has {', '.join(found)}")
        self.host = host
        self.interface = interface


class PortRangeError(InvalidJobError):
    """All ports that a gang may listen on are taken."""

    retryable = True  # they may be free again by the next try

    def __init__(self, first: int, last: int) -> None:
        super().__init__(
            f"all ports of port_range {first}-{last} are taken on this host: widen it; a rank takes up to 5"
        )


class AcceleratorError(InvalidJobError):
    """There are fewer GPUs for a rank than it wants: of those that Spark assigned, or that the host allows.

    Example: `CUDA_VISIBLE_DEVICES=6,7` on a host of four ranks.
    """

    def __init__(self, rank: int, wanted: int, found: list[str], visible: str | None = None) -> None:
        has = ", ".join(found) or "none"
        problem = (
            f"Spark assigned {has}: set spark.task.resource.gpu.amount to {wanted}, or leave it to "
            "gpus_per_process"
            if visible is None
            else f"CUDA_VISIBLE_DEVICES={visible!r} on its host leaves {has} for it: lower gpus_per_process, "
            "start fewer ranks on a host, or let the variable name more GPUs"
        )
        super().__init__(f"rank {rank} wants gpus_per_process={wanted}, but {problem}")
        self.rank = rank


class WorkerDevicesError(InvalidJobError):
    """A Python worker that holds a model on some GPUs got a task to which Spark gave others.

    Example: two jobs of one Spark session, of which the first had no GPUs.
    """

    def __init__(self, held: list[str], assigned: list[str]) -> None:
        super().__init__(
            f"a Python worker holds a model on GPUs {', '.join(held) or 'none'}, and Spark gave its next "
            f"task {', '.join(assigned) or 'none'}: set spark.python.worker.reuse to false for this "
            "application, or give each executor the GPUs of one task alone, by "
            "spark.executor.resource.gpu.amount"
        )
        self.held = held
        self.assigned = assigned


class NeverEnoughError(InvalidJobError):
    """What is waited for is more than there can ever be.

    Example: `GPUClusterSensor(gpus=4)` without a Spark connection, so that it looks at this machine.
    """

    def __init__(self, master: str, missing: str) -> None:
        super().__init__(
            f"master {master!r} is this machine alone, and it will never have what is waited for: {missing}; "
            "lower it, or let conn_id name a cluster"
        )
        self.master = master


class InvalidUriError(InvalidJobError):
    """A URI that names no place for a model, a table or a report.

    Example: `s3://bucket`, beside which nothing can be written, or `data:2024/train`, which is as much a URI
    as a path.
    """

    def __init__(self, uri: str, problem: str, argument: str = "URI") -> None:
        super().__init__(f"{argument} {uri!r} {problem}")
        self.uri = uri
        self.problem = problem
        self.argument = argument


class UnwritableUriError(InvalidJobError):
    """The place for the model or the scores cannot be written: found before any work is done."""

    retryable = True

    def __init__(self, argument: str, uri: str, reason: str) -> None:
        super().__init__(f"{argument} {uri!r} cannot be written: {reason}")
        self.argument = argument
        self.uri = uri


class UriInUseError(InvalidJobError):
    """Another application works at the same URI: both would remove each other's files.

    Example: two runs at once, with `model_uri="s3://models/latest"`.
    """

    retryable = True  # it will have ended by then, or be known to be dead

    def __init__(self, argument: str, uri: str, owner: str) -> None:
        super().__init__(
            f"{argument} {uri!r} is in use by {owner}: give each its own, for example with {{{{ run_id }}}} "
            "in it, and with {{ ti.map_index }} where the task is mapped; or let one wait for the other"
        )
        self.argument = argument
        self.uri = uri
        self.owner = owner


class SharedModelUriError(InvalidJobError):
    """Another task of the same run, or another index of the same task, has published its model at the URI.

    Example: `.expand(entrypoint_kwargs=[...])` with `model_uri="s3://models/{{ run_id }}"`.
    """

    def __init__(self, uri: str, owner: str) -> None:
        super().__init__(
            f"model_uri {uri!r} holds the model that {owner} has published, which this task would replace: "
            "put {{ ti.map_index }} into model_uri where the task is mapped, else the task's own name"
        )
        self.uri = uri
        self.owner = owner


class SharedStorageError(InvalidJobError):
    """Airflow and the driver do not both reach the place of the report: found before anything trains.

    Example: a model at `s3://...`, a driver on the cluster, and no s3fs beside Airflow; or `/data/models`,
    which is another disk on each host.
    """

    def __init__(self, uri: str, problem: str) -> None:
        super().__init__(
            f"a driver on the cluster writes its report to {uri!r}, beside its output: Airflow's worker and "
            f"the driver both have to reach that place, but {problem}"
        )
        self.uri = uri

    @classmethod
    def is_told_in(cls, log: str) -> bool:
        """Whether it is what a driver said last: it has no other way to tell."""
        return f"{cls.__name__}: " in log


class StoreRefusedError(InvalidJobError):
    """S3 does not know the keys that a connection names, or a bucket: found before any cluster time is spent.

    Example: the secret key has been changed, and the connection still has the old one.
    """

    def __init__(self, conn_id: str, endpoint: str, reason: str) -> None:
        super().__init__(
            f"S3 at {endpoint} refuses the connection that aws_conn_id={conn_id!r} names: {reason}"
        )
        self.conn_id = conn_id
        self.endpoint = endpoint


class StoreUnreachableError(InvalidJobError):
    """S3 does not answer where a connection says that it is: found before any cluster time is spent."""

    retryable = True  # it may be back by then

    def __init__(self, conn_id: str, endpoint: str, reason: str) -> None:
        super().__init__(
            f"S3 at {endpoint}, where the connection is that aws_conn_id={conn_id!r} names, does not answer: "
            f"{reason}; start it, or change endpoint_url in the connection's extra"
        )
        self.conn_id = conn_id
        self.endpoint = endpoint


class NotOnConnectError(InvalidJobError):
    """A job that a Spark Connect server cannot carry out, because it takes a SparkContext.

    Args:
        what: argument and value, or what the job is.
        why: what is missing.
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(
            f"{what} is not possible on Spark Connect: {why}; name a connection whose host is a master, such "
            "as 'spark://host:7077' or 'local[*]'"
        )
        self.what = what


class ConnectRefusedError(InvalidJobError):
    """A Spark Connect server that does not let the job in: its token, its TLS or its version."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(f"the Spark Connect server at {url} {problem}")
        self.url = url


class ContractVersionError(InvalidJobError):
    """A job or report file was written by another version of the package."""

    def __init__(self, what: str, found: object, expected: int) -> None:
        super().__init__(
            f"{what} has contract version {found!r}, this side speaks {expected}: install the same version "
            "of airflow-hydrogen on both sides"
        )


# --- the data ----------------------------------------------------------------------------------------


class DataError(HydrogenError):
    """The data does not fit the job."""


class SourceError(DataError):
    """A source cannot be read: its path is not there, or its query does not parse."""

    retryable = True  # the partition may land by the next try

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"source {source} cannot be read: {reason}")
        self.source = source
        self.reason = reason


class DatasetChangedError(DataError):
    """A file is gone or is another one than when the files were listed.

    Example: a job compacts `s3://lake/flights` while a training reads it in place.
    """

    retryable = True  # the next try lists the files anew

    def __init__(self, uri: str, file: str, change: str) -> None:
        super().__init__(
            f"{file or uri!r} of dataset {uri!r} changed after the files were listed: {change}; read a "
            "snapshot that nobody writes to, or run the task again"
        )
        self.uri = uri
        self.file = file


class SchemaMismatchError(DataError):
    """The files of a dataset have columns or types that differ, and cannot be read as one table.

    Example: a nightly job wrote `delay` as int64 on most days and as float64 on days with nulls.
    """

    def __init__(self, uri: str, difference: str) -> None:
        super().__init__(
            f"the files of {uri!r} have different schemas: {difference}; write them with one schema, or "
            "choose and cast the columns in the source's SQL or in 'prepare'"
        )
        self.uri = uri


class EmptyDatasetError(DataError):
    """There is not one row to train on."""

    def __init__(self, dataset: str, where: str) -> None:
        super().__init__(
            f"dataset {dataset!r} has no rows ({where}); check the source's path and its 'where' filter"
        )
        self.dataset = dataset


class SourceMisfitError(DataError):
    """A source that differs in several points from what the job needs.

    A model that was trained on `dep_delay` and `distance` is to score a table in which one is called
    `departure_delay` and the other is text: both are told at once.
    """

    def __init__(self, differences: Iterable[HydrogenError]) -> None:
        self.differences = list(differences)
        points = "".join(f"\n  - {difference}" for difference in self.differences)
        super().__init__(f"{len(self.differences)} points in which source and job do not fit:{points}")


class MissingColumnError(DataError):
    """A label, a feature or a kept column is not there."""

    def __init__(self, role: str, missing: Iterable[str], found: Iterable[str]) -> None:
        self.missing = sorted(missing)
        self.found = list(found)
        near = [f"{names[0]!r} for {name!r}" for name in self.missing if (names := _alike(name, self.found))]
        super().__init__(
            f"{role} {', '.join(repr(name) for name in self.missing)} not found; the columns are "
            f"{', '.join(repr(name) for name in self.found)}"
            + (f"; is it {', '.join(near)}?" if near else "")
        )


class ColumnTypeError(DataError):
    """A column has a type that cannot be used where it is used."""

    def __init__(self, column: str, expected: str, found: str, hint: str = "") -> None:
        super().__init__(
            f"column {column!r}: expected {expected}, found {found}{'; ' + hint if hint else ''}"
        )
        self.column = column
        self.expected = expected
        self.found = found


class ValueRangeError(DataError):
    """A whole number that the model's integer dtype does not hold.

    Example: a model whose input "user" is int32, and rows whose column `user` holds 3,000,000,000.
    """

    def __init__(self, column: str, expected: str, found: object) -> None:
        super().__init__(
            f"column {column!r}: expected whole numbers that {expected} holds, found {found}; filter such "
            f"rows with 'where', or train the model with a wider input than {expected}"
        )
        self.column = column
        self.expected = expected


class NullValueError(DataError):
    """A feature or label holds nulls, which a tensor cannot."""

    def __init__(self, column: str, nulls: int, rows: int, expected: str) -> None:
        super().__init__(
            f"column {column!r}: expected {expected} without nulls, found {nulls} nulls in {rows} rows; "
            "fill or drop them in the source's SQL or in 'prepare'"
        )
        self.column = column


class RaggedTensorError(DataError):
    """The lists of a tensor column have different lengths."""

    def __init__(self, column: str, expected: int, found: Iterable[int]) -> None:
        self.column = column
        lengths = sorted(set(found))
        super().__init__(
            f"column {column!r}: expected lists of {expected} numbers in every row, found lengths "
            f"{', '.join(map(str, lengths[:5]))}; pad or cut them in 'prepare'"
        )


class ColumnCollisionError(DataError):
    """An output of the model would overwrite a kept column."""

    def __init__(self, columns: Iterable[str], argument: str = "output_columns") -> None:
        self.columns = sorted(columns)
        super().__init__(
            f"output column {', '.join(repr(name) for name in self.columns)} is already a column of the "
            f"source; rename it with {argument}, or leave it out of keep_columns"
        )


class PartitionValueError(DataError):
    """Rows of another partition than the one that is written.

    Example: `Sink.parquet(uri, partition={"ds": "2013-01-02"})` and a source that holds 2013-01-01 too.
    """

    def __init__(self, column: str, expected: str, found: Iterable[object]) -> None:
        self.column = column
        super().__init__(
            f"column {column!r}: the sink's partition is {expected!r}, the source has rows of "
            f"{', '.join(repr(value) for value in found)}; filter the source with 'where'"
        )


class UndeclaredPartitionError(DataError):
    """Rows of none of the partitions that the job replaces.

    Example: `partitions=days("2013-01-01", "2013-02-01")` and a source that holds February as well.

    Attributes:
        found: partitions that such rows are of.
    """

    def __init__(self, columns: Iterable[str], found: Iterable[str], declared: str) -> None:
        self.found = list(found)
        super().__init__(
            f"the source has rows of {', '.join(self.found)}, and the sink's partitions by "
            f"{', '.join(map(repr, columns))} are {declared}; nothing is replaced. Filter the source with "
            "'where', or name these in the sink's partitions"
        )


class MergeKeysError(DataError):
    """Rows that are to be merged by keys, and of which a key is null or stands twice.

    Example: `Sink.jdbc("shop", table="scores", mode="merge", keys=["id"])` and a source with an order twice.

    Attributes:
        nulls: rows with a key that is null.
        repeated: keys that stand more than once.
    """

    def __init__(self, target: str, keys: Iterable[str], nulls: int, repeated: int) -> None:
        self.keys = list(keys)
        super().__init__(
            f"rows for {target} cannot be merged by {', '.join(map(repr, self.keys))}: {nulls:,} rows have a "
            f"key that is null, and {repeated:,} keys stand more than once; filter the source, or name the "
            "keys that tell its rows apart. Nothing was changed"
        )
        self.nulls = nulls
        self.repeated = repeated


class MessageIdError(DataError):
    """Rows for a topic share a `hydrogen_id`: consumers that drop what they have seen would lose them.

    Example: a `prepare` that makes a row of each item of an order, which is one message.
    """

    def __init__(self, sink: str, rows: int, ids: int) -> None:
        super().__init__(
            f"{rows:,} rows for sink {sink} have {ids:,} values of hydrogen_id, which is that of the message "
            "a row was made of: let 'prepare' make one row at most of each message, or stream into "
            "Sink.parquet(uri). Nothing was sent"
        )
        self.rows = rows
        self.ids = ids


class BadRowsError(DataError):
    """More rows cannot be scored than `max_bad_rows` allows.

    Example: `max_bad_rows=0.01`, and a night whose upstream job wrote nulls in every second row.

    Attributes:
        bad: how many there are.
        rows: of how many.
        limit: what was allowed.
    """

    def __init__(
        self, bad: int, rows: int, limit: float | None, reasons: str, uri: str, where: str = ""
    ) -> None:
        share = f", a share of {bad / rows:.3g}," if isinstance(limit, float) and rows else ""
        super().__init__(
            f"{bad} of {rows} rows{where}{share} cannot be scored, more than max_bad_rows={limit} allows: "
            f"{reasons}. Nothing was replaced, {uri!r} is as it was; repair or filter such rows at the "
            "source, or raise max_bad_rows"
        )
        self.bad = bad
        self.rows = rows
        self.limit = limit


class UndecodableError(DataError):
    """Messages of a stream are not what the schema of their payload says, and the job has no place for them.

    Example: a producer that writes XML into a topic of JSON, and `on_bad_row="fail"`.
    """

    def __init__(self, bad: int, rows: int, fault: str, value: str) -> None:
        super().__init__(
            f"{bad} of {rows} rows of a batch cannot be decoded, the first one: {fault}: {value}. Repair the "
            "source's schema or payload, or let on_bad_row='quarantine' set such rows aside"
        )
        self.bad = bad
        self.rows = rows


class PartitionFilesError(DataError):
    """The files of a partition are not those that its list of files names."""

    retryable = True  # it may have been replaced while it was looked at

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(
            f"{where!r} {problem}; write the partition again, or remove its _hydrogen_files-*.json where "
            "every file in the folder is to be read"
        )
        self.where = where


# --- the sink ----------------------------------------------------------------------------------------


class SinkError(HydrogenError):
    """A partition could not be replaced. What was there before is there."""


class RowsLostError(SinkError):
    """The rows that the executors wrote are not those that the driver finds.

    Example: `Sink.parquet("/data/scores")` on a cluster whose hosts have a `/data` of their own each.
    """

    def __init__(self, uri: str, written: int, found: int) -> None:
        super().__init__(
            f"the executors wrote {written} rows for {uri!r}, the driver finds {found}: a folder must be "
            "storage that every host sees, such as an object store, HDFS or a network mount; the partition "
            "is as it was"
        )
        self.uri = uri
        self.written = written
        self.found = found


class RowCountError(SinkError):
    """The rows that were read are not those that were written, dropped and quarantined.

    It is a fault of this package, or of a store that lost a file: no row may go missing without a word.
    """

    retryable = True

    def __init__(self, uri: str, read: int, written: int, dropped: int, quarantined: int) -> None:
        super().__init__(
            f"of {read} rows that were read for {uri!r}, {written} were written, {dropped} dropped and "
            f"{quarantined} quarantined, which is {written + dropped + quarantined}; the partition is as it "
            "was"
        )
        self.uri = uri


class RowsNotCountedError(HydrogenError):
    """Rows were written, but Spark does not say how many: nobody knows whether all of them are there."""

    retryable = True

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"Spark has not said within {timeout_s} s how many rows it wrote; raise "
            "spark.scheduler.listenerbus.eventqueue.capacity, for it has lost the event"
        )


class FilesLostError(SinkError):
    """Files that were brought into a partition are not there, or not whole."""

    retryable = True

    def __init__(self, uri: str, files: Iterable[str]) -> None:
        self.uri = uri
        self.files = sorted(files)
        super().__init__(
            f"new files of {uri!r} are missing or cut: {', '.join(map(repr, self.files[:5]))}; the old ones "
            "are still its rows"
        )


class TableMismatchError(SinkError):
    """A table that is there does not hold what is to be written: found before anything is computed.

    Attributes:
        problems: each in words.
    """

    def __init__(self, table: str, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__(
            f"{table} does not hold what is to be written: {'; '.join(self.problems)}. Change the table, or "
            "choose columns with keep_columns and output_columns"
        )
        self.table = table


class OtherRowsError(SinkError):
    """A partition of a table would hold other rows than those that were written: it is left as it was.

    Example: a trigger of the table that drops rows, or a program that adds some at the same time.
    """

    retryable = True

    def __init__(self, target: str, written: int, found: int) -> None:
        super().__init__(
            f"{target} would hold {found} rows in place of the {written} that were written; let one task "
            "alone write a partition, and look for triggers of the table. It is as it was"
        )
        self.target = target
        self.written = written
        self.found = found


class DatabaseRefusedError(SinkError):
    """A database does not do what it is told, and nothing of it is done.

    Example: a check of the table that a prediction does not pass.

    Attributes:
        state: its code for that, `SQLSTATE`; "" where it gives none.
        retryable: False where the rows or the table are to blame, by the first two characters of the code.
    """

    _FOR_GOOD = ("0A", "21", "22", "23", "25", "28", "3D", "3F", "42", "44")

    def __init__(self, target: str, reason: str, state: str) -> None:
        code = f" (SQLSTATE {state})" if state else ""
        super().__init__(f"{target}: the database refuses: {reason}{code}")
        self.target = target
        self.state = state
        self.retryable = not state.startswith(self._FOR_GOOD)  # type: ignore[misc]


class MetastoreRefusedError(SinkError):
    """Hive's metastore does not answer, or does not do what it is told: the rows are those of before.

    Example: somebody drops the table after it was looked at and before the new rows are put in place.
    """

    retryable = True

    def __init__(self, target: str, reason: str) -> None:
        super().__init__(f"{target}: the metastore refuses, or does not answer: {reason}")
        self.target = target
        self.reason = reason


class TableBusyError(SinkError):
    """Others have committed to a Delta or Iceberg table first, every time.

    Example: a job that compacts all of the table, again and again.
    """

    retryable = True

    def __init__(self, table: str, attempts: int, reason: str) -> None:
        super().__init__(
            f"others have committed to {table} first, {attempts} times; nothing was changed. The last time: "
            f"{reason}"
        )
        self.table = table


class PartitionTakenError(SinkError):
    """Another try began to write the same partition after this one: the newest wins.

    Example: Airflow lost sight of a try that still ran, and started the next one.

    Attributes:
        owner: who took it, or None where that one has already finished.
        retryable: True where nobody writes it any more. While somebody does, a retry would only take it
            from them.
    """

    def __init__(self, uri: str, owner: str | None) -> None:
        who = owner or "a try that has finished"
        super().__init__(
            f"partition {uri!r} was taken by {who}, which began after this one; none of this one's rows were "
            "put in place. Let one task alone write a partition"
        )
        self.uri = uri
        self.owner = owner
        self.retryable = owner is None  # type: ignore[misc]


class PartlyReplacedError(SinkError):
    """A job failed when it had replaced some of its partitions. Each one holds old rows or new ones, and all.

    Example: a store that stops to answer in mid-job. A retry replaces all of them.

    Attributes:
        replaced: those that hold the new rows.
        retryable: as what happened is.
    """

    def __init__(
        self, uri: str, replaced: Iterable[str], partitions: int, problem: str, *, retryable: bool = True
    ) -> None:
        self.replaced = list(replaced)
        told = ", ".join(self.replaced[:3]) + (", ..." if len(self.replaced) > 3 else "")
        super().__init__(
            f"{len(self.replaced):,} of {partitions:,} partitions of {uri!r} hold the new rows ({told}), and "
            f"each of the others its old rows or its new ones: {problem}"
        )
        self.retryable = retryable  # type: ignore[misc]


class TopicError(SinkError):
    """A topic cannot be written: it is not there, or its brokers do not take what is sent, for now.

    Example: a broker that restarts while the scores of a batch are sent.
    """

    retryable = True  # the next try sends the batch again

    def __init__(self, sink: str, reason: str) -> None:
        super().__init__(f"sink {sink} cannot be written: {reason}")
        self.sink = sink
        self.reason = reason


class CheckpointMismatchError(SinkError):
    """The checkpoint of a stream and what lies at its sink do not belong together.

    Example: a checkpoint that was removed, so that batches are counted from 0 again and would replace others.
    """

    def __init__(self, checkpoint_uri: str, problem: str) -> None:
        super().__init__(f"checkpoint_uri {checkpoint_uri!r} {problem}")
        self.checkpoint_uri = checkpoint_uri


class BatchesLostError(SinkError):
    """A table lacks batches that its stream has put there: it was dropped, replaced or set back meanwhile.

    Attributes:
        batch: the one that was to be written.
        newest: of those that are there, or None.
    """

    def __init__(self, target: str, batch: int, newest: int | None) -> None:
        there = "none of its stream's batches" if newest is None else f"none after batch {newest}"
        super().__init__(
            f"{target} has {there}, and batch {batch} was to come next: it was dropped, replaced or set "
            "back. Bring it back, or begin anew with another checkpoint and another table. No row was written"
        )
        self.target = target
        self.batch = batch
        self.newest = newest


class StreamTakenError(SinkError):
    """A newer try scores the same stream, and this one has to leave it alone."""

    def __init__(self, checkpoint_uri: str) -> None:
        super().__init__(
            f"another try has begun to score the stream with checkpoint_uri {checkpoint_uri!r}; this one has "
            "written nothing since"
        )
        self.checkpoint_uri = checkpoint_uri


# --- the model ---------------------------------------------------------------------------------------


class ModelError(HydrogenError):
    """The model directory cannot be used."""


class NotAModelError(ModelError):
    """No manifest at the URI: nothing there, or a training that has not finished."""

    def __init__(self, uri: str, reason: str = "it holds no manifest.json") -> None:
        super().__init__(f"{uri!r} is not a model: {reason}; a training writes its manifest last")
        self.uri = uri


class ModelChangedError(ModelError):
    """A file of the model is not what the manifest says."""

    def __init__(self, uri: str, file: str, problem: str) -> None:
        super().__init__(f"model {uri!r}: file {file!r} {problem}; publish the model again")
        self.uri = uri
        self.file = file


class ModelReplacedError(ModelError):
    """Another model lies at the URI than the one that was checked before the work began.

    Example: a training publishes to the URI while a partition is scored with the model that was there. The
    half of the partition that is not scored yet would get another model's predictions.
    """

    retryable = True  # the next try checks the new one

    def __init__(self, uri: str, checked: str, found: str | None) -> None:
        now = "there is no model now" if found is None else f"version {found[:12]} is there now"
        super().__init__(
            f"the model at {uri!r} changed while it was in use: version {checked[:12]} was checked, {now}; "
            "run again, and let a model_uri hold one model (for example with {{ run_id }} in it)"
        )
        self.uri = uri
        self.checked = checked
        self.found = found


class EngineError(ModelError):
    """The model cannot be run by the engine that is wanted."""

    def __init__(self, uri: str, engine: str, problem: str) -> None:
        super().__init__(f"engine={engine!r} cannot run model {uri!r}: {problem}")
        self.uri = uri
        self.engine = engine


class ModelFormatError(ModelError):
    """The manifest has a format version that this package does not read."""

    def __init__(self, uri: str, found: object, expected: int) -> None:
        super().__init__(
            f"model {uri!r} has format version {found!r}, this version of airflow-hydrogen reads {expected}"
        )
        self.uri = uri


class NotAnAliasError(ModelError):
    """No alias at a URI whose name is that of one."""

    def __init__(self, uri: str, reason: str = "there is no such file") -> None:
        super().__init__(
            f"alias {uri!r} names no model: {reason}. Set it (set_alias in "
            "airflow_hydrogen.runtime.models.aliases), or give the URI of a model"
        )
        self.uri = uri


class AliasedModelError(ModelError):
    """The model that an alias names is gone, or another one was published in its place.

    Example: a training publishes to the URI of a model that `production.alias` names. Nobody said that the
    new one is for production.
    """

    def __init__(self, alias: str, uri: str, version: str, found: str | None) -> None:
        now = "there is no model now" if found is None else f"version {found[:12]} is there now"
        super().__init__(
            f"alias {alias!r} was set to version {version[:12]} of the model {uri!r}, and {now}: set it "
            "to a model that is there. A retry keeps to the model that the run's first try has found; a "
            "cleared task takes the one that the alias names then"
        )
        self.alias = alias
        self.uri = uri
        self.version = version
        self.found = found


class ModelModuleError(ModelError):
    """A module that the model's manifest names, for the layers that it registers, cannot be imported here."""

    def __init__(self, uri: str, module: str, reason: str) -> None:
        super().__init__(
            f"model {uri!r} needs the module {module!r}, which registers its custom layers or functions, and "
            f"it does not import here ({reason}): ship it with py_files, or install it on the cluster"
        )
        self.uri = uri
        self.module = module


class ModelSignatureError(ModelError):
    """The model's inputs or outputs cannot be matched with columns."""


class ModelFailedError(ModelError):
    """The model fails whatever the row: no row is to blame, and none is dropped or quarantined.

    Example: `on_bad_row="quarantine"`, and a predictor that asks a service which is down.
    """

    retryable = True

    def __init__(self, reason: str, evidence: str) -> None:
        super().__init__(
            f"the model failed, and {evidence}: that is no matter of bad rows, which on_bad_row sets aside. "
            f"It failed with {reason}"
        )


class UnloadableModelError(ModelError):
    """The trained model was saved, but a fresh process cannot load it, or it predicts something else there.

    Found by rank 0 before anything is published. Example: a `Lambda` layer, which Keras does not load in
    its safe mode, or a custom layer of a class in the DAG file, which no scorer can import.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(
            "the model that main returned is not published, because no scorer could load it: "
            f"{problem.rstrip('. ')}. Put "
            "custom layers and functions in a module that can be imported and decorate them with "
            "@keras.saving.register_keras_serializable(), put such a layer in the place of a Lambda, or "
            "return an ExportedModel. The checkpoints are kept"
        )
        self.problem = problem


class UnpublishableModelError(ModelError):
    """A model that was trained elsewhere cannot be scored as it is, and nothing was published.

    Example: an ONNX file that was exported for batches of one row.

    Args:
        model: its URI.
        problem: what is wrong with it.
        retryable: the store or the machine may be to blame, and not the model.
    """

    def __init__(self, model: str, problem: str, *, retryable: bool = False) -> None:
        super().__init__(f"model {model!r} is not published: {problem}")
        self.retryable = retryable  # type: ignore[misc]
        self.model = model
        self.problem = problem


class OptimizerError(HydrogenError):
    """An optimizer that would silently average nothing, or ranks with models, layers or metrics of their own.

    Example: `hvd.DistributedOptimizer(keras.optimizers.Adam())` under Keras 3, where Horovod's hooks are
    never called and every rank trains a model of its own.
    """


class RanksDivergedError(HydrogenError):
    """The ranks have different weights: each trains a model of its own, and rank 0's would be published.

    Example: a custom `train_step` that applies its gradients with a plain `keras.optimizers.Adam()`.

    Attributes:
        variable: path of the first trainable variable that differs.
    """

    def __init__(self, when: str, variable: str, found: str) -> None:
        super().__init__(
            f"{when} the ranks have different weights: {found}. Each rank trains a model of its own, on its "
            f"shard of the data alone. {variable!r} is the first variable that differs: apply its gradients "
            "with airflow_hydrogen.runtime.keras.DistributedOptimizer(...), and start all ranks from the "
            "same weights, with callbacks=airflow_hydrogen.runtime.keras.callbacks() in fit() or the same "
            "keras.utils.set_random_seed in a loop of your own"
        )
        self.variable = variable


class NonFiniteLossError(HydrogenError):
    """The loss is NaN or infinite: the training would only waste the cluster from here on."""

    def __init__(self, metric: str, value: float, where: str) -> None:
        super().__init__(
            f"{metric} is {value} {where}: lower the learning rate, clip the gradients, or look for extreme "
            "values in the data"
        )
        self.metric = metric


# --- the gang ----------------------------------------------------------------------------------------


class GangError(HydrogenError):
    """Training failed on the cluster.

    Attributes:
        tasks_ended: all tasks of the gang have said so. Those that Spark has cancelled or lost may still be
            there.
    """

    retryable = True
    tasks_ended = True


class RankFailedError(GangError):
    """`main` raised on one rank, or that rank's process died.

    Attributes:
        rank: the rank that failed first.
        host: where it ran.
        error_type: qualified name of the exception in `main`, or None when the process died.
        remote_traceback: its traceback there, or None.
        log_tail: its last lines of output.
        retryable: False where `main` raised an error of this package that is final, such as a null in a
            feature; True otherwise.
    """

    def __init__(
        self,
        rank: int,
        host: str,
        summary: str,
        *,
        error_type: str | None = None,
        remote_traceback: str | None = None,
        log_tail: Iterable[str] = (),
    ) -> None:
        self.rank = rank
        self.host = host
        self.summary = summary
        self.error_type = error_type
        self.remote_traceback = remote_traceback
        self.log_tail = list(log_tail)
        cause = globals().get((error_type or "").removeprefix(f"{__name__}."))
        if isinstance(cause, type) and issubclass(cause, HydrogenError):
            self.retryable = cause.retryable  # type: ignore[misc]
        message = f"rank {rank} on {host} failed: {summary}"
        if remote_traceback:
            message += f"\n\nTraceback on rank {rank}:\n{remote_traceback.rstrip()}"
        elif self.log_tail:
            message += f"\n\nLast lines of rank {rank}:\n" + "\n".join(self.log_tail)
        super().__init__(message)


class StallError(RankFailedError):
    """A rank holds up the gang: its process is frozen, or it is elsewhere while the others wait for it.

    Example: one rank leaves the loop before the others, which then wait in an allreduce.
    """


class PeerUnreachableError(RankFailedError):
    """A rank does not reach another one: found before Horovod starts, which would abort without a word."""


class GangLostError(GangError):
    """The barrier stage failed and no rank said why: an executor or a host was lost."""


class CheckpointError(HydrogenError):
    """A checkpoint could not be written."""

    retryable = True


class OwnershipLostError(HydrogenError):
    """Another application has taken over the URI at which this one works, most likely a later try."""

    retryable = True

    def __init__(self, argument: str, uri: str, owner: str) -> None:
        super().__init__(
            f"{argument} {uri!r} was taken over by {owner}: this application ends without touching it"
        )
        self.argument = argument
        self.uri = uri


# --- the cluster manager -----------------------------------------------------------------------------


class ClusterError(HydrogenError):
    """The cluster manager does not say what is free."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(f"cluster manager at {url}: {problem}")
        self.url = url
        self.problem = problem


class ClusterUnreachableError(ClusterError):
    """The cluster manager does not answer, or says to come back later: waiting may help."""

    retryable = True


class ClusterResponseError(ClusterError):
    """The cluster manager refuses the request, or answers with something else than was documented.

    Attributes:
        status: of the answer, where that was the reason.
    """

    def __init__(self, url: str, problem: str, *, status: int | None = None) -> None:
        super().__init__(url, problem)
        self.status = status


# --- Spark Connect ----------------------------------------------------------------------------------


class ConnectServerError(HydrogenError):
    """A Spark Connect server that does not answer, or a session that is gone: the next try gets a new one.

    Nothing is half-written: what a job has not put in place is swept.
    """

    retryable = True

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(f"the Spark Connect server at {url} {problem}")
        self.url = url


# --- launching ---------------------------------------------------------------------------------------


class LauncherError(HydrogenError):
    """spark-submit cannot be started on this machine."""


class SparkSubmitNotFoundError(LauncherError):
    """No spark-submit on this Airflow worker."""

    def __init__(self, searched: str) -> None:
        super().__init__(
            f"spark-submit was not found ({searched}); install pyspark on the Airflow worker, put "
            "spark-submit on its PATH, or pass spark_binary"
        )


class JavaNotFoundError(LauncherError):
    """No Java on this Airflow worker."""

    def __init__(self, searched: str) -> None:
        super().__init__(
            f"Java was not found ({searched}); Spark needs a Java runtime of version 17 or later: install "
            "one on the Airflow worker or set JAVA_HOME"
        )


class LocalServerError(LauncherError):
    """The Spark Connect server that tasks of this machine share cannot be started.

    Example: its JVM needs more memory than the machine has. The task does without, by spark-submit.

    Attributes:
        log_tail: the last lines that the server has written, empty where it has written none.
    """

    retryable = True

    def __init__(self, reason: str, log_tail: str = "") -> None:
        said = f"; the last lines of its log:\n{log_tail}" if log_tail else ""
        super().__init__(f"no local Spark Connect server: {reason}{said}")
        self.log_tail = log_tail


class BundleServerError(LauncherError):
    """This Airflow worker cannot serve the bundle that a driver on a standalone cluster fetches from it.

    Example: two tasks at once on one machine, with `bundle-port` fixed in the connection.
    """

    retryable = True  # the port may be free, the name known by the next try

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(
            f"the bundle for the driver cannot be served at {address}: {reason}; the Spark connection's "
            "extras bundle-host and bundle-port say at which address of this machine workers reach it"
        )
        self.address = address


class ApplicationError(HydrogenError):
    """The Spark application failed.

    Attributes:
        error_type: the class of the error in the application, or None when it died without a report.
    """

    retryable = True

    def __init__(self, message: str, *, error_type: str | None = None, retryable: bool = True) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.retryable = retryable  # type: ignore[misc]
