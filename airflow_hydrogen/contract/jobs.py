"""What Airflow asks of Spark: frozen values that travel as one JSON file."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from airflow_hydrogen.contract import CONTRACT_VERSION, uris
from airflow_hydrogen.contract.aliases import SUFFIX, is_alias
from airflow_hydrogen.contract.connect import ConnectAccess
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.gang import GangOptions
from airflow_hydrogen.contract.gpus import gpu_share
from airflow_hydrogen.contract.partitions import days as days  # where DAGs import it from
from airflow_hydrogen.contract.sinks import Sink as Sink  # likewise
from airflow_hydrogen.contract.sinks import run_partition
from airflow_hydrogen.contract.sources import Source as Source  # likewise
from airflow_hydrogen.contract.stores import S3Access, buckets_of
from airflow_hydrogen.contract.streams import BATCH_COLUMN, Batch, StreamOptions
from airflow_hydrogen.contract.values import (
    refuse_unknown_fields,
    require_int,
    require_json,
    require_version,
    unless_none,
)

# Another one makes no other model.
_NOT_THE_MODELS = (
    *("report_uri", "report_nonce", "spark_log_uri", "run", "gang", "contract_version"),
    *("kind", "code", "access", "s3", "connect"),
)
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")

# Kind of sink -> the modes in which a batch that is done again changes nothing, or can be told.
_SINKS_OF_STREAMS: dict[str, tuple[str, ...]] = {
    "parquet": ("replace",),
    "kafka": ("replace",),
    "delta": ("replace", "merge"),
    "jdbc": ("merge",),
}

OnBadRow = Literal["fail", "drop", "quarantine"]
Engine = Literal["auto", "tensorflow", "onnx", "torch"]
BatchRows = int | Literal["auto"]
ENGINES: tuple[Engine, ...] = ("auto", "tensorflow", "onnx", "torch")
EXPORTS = ("onnx",)
"""Engines for which a training publishes its model beside the framework's own."""
ON_BAD_ROW: tuple[OnBadRow, ...] = ("fail", "drop", "quarantine")


def is_import_path(text: str) -> bool:
    """Tell whether `text` has the form `package.module:function`."""
    return _IMPORT_PATH.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True)
class Entrypoint:
    """What every rank runs: a pickled callable, an import path or a script.

    Attributes:
        kind: which of the three.
        value: base64 of the cloudpickle bytes, `package.module:function`, or the script's path.
        name: how messages and the manifest call it.
        python: `major.minor` of the interpreter that pickled the callable: bytecode does not travel
            between versions.
    """

    kind: Literal["callable", "import", "script"]
    value: str
    name: str
    python: str | None = None

    @classmethod
    def pickled(cls, data: bytes, name: str) -> Entrypoint:
        """A callable, already pickled by this interpreter."""
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        return cls(kind="callable", value=base64.b64encode(data).decode(), name=name, python=version)

    @classmethod
    def parse(cls, text: str) -> Entrypoint:
        """An import path or a script.

        Raises:
            InvalidJobError: neither `package.module:function` nor a path that ends with `.py`.
        """
        if not isinstance(text, str):
            raise InvalidJobError(
                f"entrypoint must be 'package.module:function' or the path of a script, found {text!r}"
            )
        if text.endswith(".py"):
            return cls(kind="script", value=text, name=text)
        if is_import_path(text):
            return cls(kind="import", value=text, name=text)
        raise InvalidJobError(
            f"entrypoint {text!r} is neither 'package.module:function' nor the path of a script ending in .py"
        )

    @property
    def pickle(self) -> bytes:
        """The cloudpickle bytes of a callable."""
        return base64.b64decode(self.value)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The Airflow run that a job belongs to: the same for every try, another after a clear.

    Attributes:
        clear_number: changes with each clear of the task, and stays when its `retries` are edited. It is no
            count: Airflow's `max_tries`, which starts at `retries`.
    """

    dag_id: str
    task_id: str
    run_id: str
    map_index: int = -1
    clear_number: int = 0

    @property
    def work(self) -> tuple[str, str, str, int]:
        """What the run works at: the same for all of its tries, after a clear too."""
        return self.dag_id, self.task_id, self.run_id, self.map_index


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """One training: prepare, train as a gang, publish.

    Attributes:
        entrypoint: what every rank runs.
        entrypoint_kwargs: its keyword arguments, JSON.
        entrypoint_args: the command line of a script.
        np: processes, with HorovodRunner's meaning of 0 and of negative numbers.
        datasets: sources by the name that `get_dataset_shard` uses.
        prepare: `package.module:function`, called with (spark, dataframe, **prepare_kwargs) for each dataset.
        model_uri: where the model is published.
        report_uri: where the application writes its report.
        report_nonce: what Airflow has written beside `report_uri`, and the driver must find there before it
            does anything; None where both are on one machine.
        spark_log_uri: where Spark's whole log goes; None: nobody wants it.
        run: the Airflow run, or None outside Airflow.
        keep_checkpoints: keep `checkpoints/` in the published model.
        code: hash of the code of "entrypoint" and "prepare", where the submitting side has that code.
        gang: how the gang is started, watched and started again.
        exports: for which other engines the model is published as well.
        access: what opens the connections that sources name: connection -> options of Spark's reader. It
            holds passwords, and is neither shown nor hashed.
        s3: what opens S3, for Spark and for every process of the job; None: each finds that for itself. It
            holds keys, and is neither shown nor hashed.
    """

    KIND: ClassVar[str] = "train"

    entrypoint: Entrypoint
    np: int
    model_uri: str
    report_uri: str
    entrypoint_kwargs: Mapping[str, Any] = field(default_factory=dict)
    entrypoint_args: Sequence[str] = ()
    datasets: Mapping[str, Source] = field(default_factory=dict)
    prepare: str | None = None
    prepare_kwargs: Mapping[str, Any] = field(default_factory=dict)
    run: Run | None = None
    keep_checkpoints: bool = False
    code: Mapping[str, str] = field(default_factory=dict)
    exports: Sequence[str] = ()
    gang: GangOptions = field(default_factory=GangOptions)
    report_nonce: str | None = None
    spark_log_uri: str | None = None
    access: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    s3: S3Access | None = field(default=None, repr=False)
    connect: ConnectAccess | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "entrypoint_args", tuple(self.entrypoint_args))
        require_int("np", self.np)
        is_list = isinstance(self.exports, Sequence) and not isinstance(self.exports, str)
        if not is_list or not all(name in EXPORTS for name in self.exports):
            raise InvalidJobError(
                f"exports names formats, one or more of {', '.join(map(repr, EXPORTS))}, as in "
                f"exports=('onnx',); found {self.exports!r}"
            )
        object.__setattr__(self, "exports", tuple(self.exports))
        if streams := [name for name, source in self.datasets.items() if source.is_stream]:
            raise InvalidJobError(
                f"datasets {', '.join(map(repr, streams))} are streams, which have no end: training reads "
                "files and tables, such as the folder into which a stream is written"
            )
        _require_import_path("prepare", self.prepare)
        require_json("entrypoint_kwargs", self.entrypoint_kwargs)
        require_json("prepare_kwargs", self.prepare_kwargs)
        if self.entrypoint.kind != "script" and self.entrypoint_args:
            raise InvalidJobError(
                "entrypoint_args are the command line of a script; a function takes entrypoint_kwargs"
            )
        if self.entrypoint.kind == "script" and self.entrypoint_kwargs:
            raise InvalidJobError("entrypoint_kwargs are for a function; a script takes entrypoint_args")
        self.gang.check_size(self.np)
        _require_uri("model_uri", self.model_uri)
        uris.require_folder("model_uri", self.model_uri)
        if is_alias(self.model_uri):
            raise InvalidJobError(
                f"model_uri {self.model_uri!r} is the name of an alias, and a model is published in a "
                f"folder: let the name of that not end in {SUFFIX!r}, and set the alias to it afterwards"
            )

    @property
    def sources(self) -> list[Source]:
        """All sources, those that others are made of included."""
        return [part for source in self.datasets.values() for part in source.walk()]

    @property
    def places(self) -> list[Source | Sink]:
        """All that Spark needs connectors and connections for."""
        return list(self.sources)

    @property
    def buckets(self) -> dict[str, str]:
        """The buckets of S3 that the job names, and a place in each."""
        return buckets_of([self.model_uri, *(source.uri for source in self.sources)])

    def fingerprint(self) -> str:
        """Hash of what decides the model: a retry has the same one, a changed job another.

        Code counts by its hash, and not by its pickle, which may differ between two processes that run the
        same code.
        """
        return hashlib.sha256(json.dumps(self.parts(), sort_keys=True).encode()).hexdigest()

    def parts(self) -> dict[str, str]:
        """Hashes of the single parts that decide the model: `describe_changes` says which of them differ."""
        document = self.to_dict()
        for key in _NOT_THE_MODELS:
            document.pop(key, None)
        document["entrypoint"] = {"kind": self.entrypoint.kind, "name": self.entrypoint.name}
        document |= {f"code of {part}": digest for part, digest in self.code.items()}
        return {
            part: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
            for part, value in document.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "contract_version": CONTRACT_VERSION,
            "kind": self.KIND,
            "entrypoint": dataclasses.asdict(self.entrypoint),
            "entrypoint_kwargs": dict(self.entrypoint_kwargs),
            "entrypoint_args": list(self.entrypoint_args),
            "np": self.np,
            "datasets": {name: source.to_dict() for name, source in self.datasets.items()},
            "prepare": self.prepare,
            "prepare_kwargs": dict(self.prepare_kwargs),
            "model_uri": self.model_uri,
            "report_uri": self.report_uri,
            "run": dataclasses.asdict(self.run) if self.run else None,
            "keep_checkpoints": self.keep_checkpoints,
            "code": dict(self.code),
            **unless_none("exports", list(self.exports) or None),
            "gang": self.gang.to_dict(),
            **unless_none("report_nonce", self.report_nonce),
            **unless_none("spark_log_uri", self.spark_log_uri),
            **unless_none("access", _plain(self.access)),
            **unless_none("s3", self.s3.to_dict() if self.s3 else None),
            **unless_none("connect", self.connect.to_dict() if self.connect else None),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> TrainJob:
        """Read the JSON form.

        Raises:
            ContractVersionError: written by another version of the package.
            InvalidJobError: an unknown field, a missing field or a value that cannot work.
        """
        fields = _checked_fields(cls, document)
        fields["entrypoint"] = Entrypoint(**fields["entrypoint"])
        fields["datasets"] = {name: Source.from_dict(source) for name, source in fields["datasets"].items()}
        fields["run"] = Run(**fields["run"]) if fields["run"] else None
        fields["gang"] = GangOptions.from_dict(fields["gang"])
        fields["s3"] = _s3_of(fields)
        fields["connect"] = _connect_of(fields)
        return cls(**fields)


def describe_changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What is another in one job than in another one.

    Args:
        before: the parts of the one.
        now: those of the other.

    Returns:
        For example "code of entrypoint and np have changed"; "" where nothing differs or nothing is known.
    """
    if not before or not now:
        return ""
    changed = sorted(part for part in before.keys() | now.keys() if before.get(part) != now.get(part))
    if not changed:
        return ""
    *others, last = changed
    names = f"{', '.join(others)} and {last}" if others else last
    return f"{names} {'have' if others else 'has'} changed"


@dataclass(frozen=True, kw_only=True)
class InferenceJob:
    """One scoring: read, prepare, predict in Arrow batches, replace a partition.

    Attributes:
        model_uri: a published model, or an alias of one.
        source: the rows to score.
        sink: where they go, with the predictions beside the kept columns; what is appended becomes the run's
            own partition.
        report_uri: where the application writes its report.
        report_nonce: what Airflow has written beside `report_uri`, and the driver must find there before it
            does anything; None where both are on one machine.
        spark_log_uri: where Spark's whole log goes; None: nobody wants it.
        prepare: `package.module:function`, called with (spark, dataframe, **prepare_kwargs).
        predictor: `package.module:function` that loads the model in place of the manifest's own framework.
        engine: what runs the model; "auto": ONNX Runtime where it is installed and the model is there for it.
        keep_columns: columns of the source to keep; None keeps all of them.
        output_columns: output name of the model -> column name, where they should differ.
        batch_rows: rows of one call of the model. Independent of Spark's Arrow batch size. "auto":
            each worker tries some on its first rows, and goes on with the fastest that fits in memory.
        on_bad_row: what becomes of rows that the model cannot score: they fail the job, or are dropped, or go
            to a table of their own.
        quarantine: that table; None: beside the sink's. Its partition is always the sink's.
        max_bad_rows: how many there may be, as a number or, below 1, as a share of all rows; None: any.
        gpus_per_task: GPUs of a task that scores, or 1/n: n tasks share one.
        run: the Airflow run, or None outside Airflow.
        stream: when and how long a stream is scored; None where the source is none.
        batch: the micro-batch that is scored; None: all. It does not travel.
        access: what opens the connections that the source names, as in a TrainJob.
        s3: what opens S3, likewise.
        connect: the Spark Connect server that does it; None: the application is a driver of its own.
    """

    KIND: ClassVar[str] = "inference"

    model_uri: str
    source: Source
    sink: Sink
    report_uri: str
    prepare: str | None = None
    prepare_kwargs: Mapping[str, Any] = field(default_factory=dict)
    predictor: str | None = None
    engine: Engine = "auto"
    keep_columns: Sequence[str] | None = None
    output_columns: Mapping[str, str] = field(default_factory=dict)
    batch_rows: BatchRows = 16384
    on_bad_row: OnBadRow = "fail"
    quarantine: Sink | None = None
    max_bad_rows: int | float | None = None
    gpus_per_task: float = 0
    run: Run | None = None
    stream: StreamOptions | None = None
    batch: Batch | None = None
    report_nonce: str | None = None
    spark_log_uri: str | None = None
    access: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    s3: S3Access | None = field(default=None, repr=False)
    connect: ConnectAccess | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.keep_columns is not None:
            object.__setattr__(self, "keep_columns", tuple(self.keep_columns))
        _require_uri("model_uri", self.model_uri)
        if self.stream is not None:
            self._check_sink_of_stream()  # before the run takes the mode away
        object.__setattr__(self, "sink", self.sink.with_partitions().for_run(self.run))
        if self.sink.uri is not None:
            uris.require_folder("sink", self.sink.folder or self.sink.uri)
        _require_import_path("prepare", self.prepare)
        _require_import_path("predictor", self.predictor)
        require_json("prepare_kwargs", self.prepare_kwargs)
        if self.engine not in ENGINES:
            raise InvalidJobError(
                f"engine must be one of {', '.join(map(repr, ENGINES))}, found {self.engine!r}"
            )
        if self.batch_rows != "auto":
            if isinstance(self.batch_rows, bool) or not isinstance(self.batch_rows, int):
                raise InvalidJobError(f"batch_rows must be an integer or 'auto', found {self.batch_rows!r}")
            if self.batch_rows < 1:
                raise InvalidJobError(f"batch_rows must be at least 1, found {self.batch_rows}")
        object.__setattr__(self, "gpus_per_task", gpu_share("gpus_per_task", self.gpus_per_task))
        self._check_bad_rows()
        self._check_stream()

    def _check_stream(self) -> None:
        if self.stream is None:
            if self.source.is_stream:
                raise InvalidJobError(
                    f"source {self.source} is a stream: say by trigger when it is scored, 'available_now' or "
                    "an interval such as '30 seconds', and by checkpoint_uri where its position is kept"
                )
            if self.sink.kind == "kafka":
                raise InvalidJobError(
                    f"sink {self.sink} takes the rows of a Kafka stream; the rows of {self.source} go into "
                    "files or a table"
                )
            return
        if not self.source.is_stream:
            raise InvalidJobError(
                f"trigger={self.stream.trigger!r} is for streams, and source {self.source} is none: take "
                "Source.kafka, Source.files_stream or Source.delta_stream, or leave trigger out"
            )
        if self.sink.kind == "kafka" and self.source.kind != "kafka":
            raise InvalidJobError(
                f"sink {self.sink} knows rows again by their offsets, and source {self.source} has none: "
                "stream it into Sink.parquet(uri)"
            )
        if BATCH_COLUMN in self.sink.partition and self.batch is None:
            raise InvalidJobError(
                f"sink partition has {BATCH_COLUMN!r}, which a stream adds itself: a folder for every batch"
            )
        if self.stream.max_rows_per_trigger is not None and self.source.kind != "kafka":
            raise InvalidJobError(
                f"max_rows_per_trigger counts messages of Kafka, and {self.source} is read by files: give "
                "the source the option maxFilesPerTrigger"
            )
        if self.sink.partition_by:
            raise InvalidJobError(
                f"sink {self.sink} has partition_by, and a stream writes each of its batches into a folder "
                "of its own: leave partition_by out, and keep its columns"
            )
        written = [("sink", self.sink.folder or self.sink.uri), ("quarantine", self.quarantine_uri)]
        self._check_loop(written)
        for name, place in [("source", self.source.uri), *written]:
            checkpoint = self.stream.checkpoint_uri
            if place is not None and (uris.holds(place, checkpoint) or uris.holds(checkpoint, place)):
                raise InvalidJobError(
                    f"checkpoint_uri {checkpoint!r} and {name} {place!r} lie in each other: give the "
                    "checkpoint a folder of its own"
                )

    def _check_sink_of_stream(self) -> None:
        if self.sink.mode not in _SINKS_OF_STREAMS.get(self.sink.kind, ()):
            raise InvalidJobError(
                "a stream is written to Sink.parquet(uri) or Sink.delta(uri), without a mode, which have "
                "each of its batches once, to Sink.kafka, or with mode='merge' and keys to Sink.delta or "
                "Sink.jdbc: no other way knows a batch that is done again; "
                f"found {self.sink.kind} with mode={self.sink.mode!r}"
            )
        if self.sink.mode == "merge" and self.source.payload == "parquet":
            raise InvalidJobError(
                "mode='merge' keeps the last row of a key by the place of its message, which all rows of a "
                "message of payload='parquet' share: name a sink without mode='merge'"
            )

    def _check_loop(self, written: Iterable[tuple[str, str | None]]) -> None:
        """Refuse a stream that would read what it writes."""
        source, sink = self.source, self.sink
        of_topics = (source.kind, source.topic, source.servers, source.conn_id)
        if source.kind == "kafka" and of_topics == (sink.kind, sink.topic, sink.servers, sink.conn_id):
            raise InvalidJobError(
                f"sink {sink} is the source as well: the stream would score its own scores, without an end; "
                "name another topic"
            )
        for name, place in written:
            if source.uri is None or place is None:
                continue
            if uris.holds(source.uri, place) or uris.holds(place, source.uri):
                raise InvalidJobError(
                    f"source {source.uri!r} and {name} {place!r} lie in each other: the stream would read "
                    f"what it writes; give the {name} a folder of its own"
                )

    def _check_bad_rows(self) -> None:
        if self.on_bad_row not in ON_BAD_ROW:
            raise InvalidJobError(
                f"on_bad_row must be one of {', '.join(map(repr, ON_BAD_ROW))}, found {self.on_bad_row!r}"
            )
        if self.max_bad_rows is not None:
            if self.on_bad_row == "fail":
                raise InvalidJobError(
                    "max_bad_rows says how many bad rows there may be, and with on_bad_row='fail' the first "
                    "one fails the task: set on_bad_row to 'drop' or 'quarantine', or leave max_bad_rows out"
                )
            _require_limit("max_bad_rows", self.max_bad_rows)
        if self.on_bad_row != "quarantine":
            if self.quarantine is not None:
                raise InvalidJobError(
                    "quarantine says where bad rows go with on_bad_row='quarantine', found "
                    f"on_bad_row={self.on_bad_row!r}"
                )
            return
        if self.quarantine is None and self.sink.uri is None:
            raise InvalidJobError(
                f"sink {self.sink} has no folder beside which bad rows could go: let "
                "quarantine=Sink.parquet(uri) name one"
            )
        if self.quarantine is None and uris.is_root(str(self.sink.uri)):
            raise InvalidJobError(
                f"sink {self.sink.uri!r} is a whole bucket or filesystem, which has nothing beside it: let "
                "quarantine=Sink.parquet(uri) name a folder of another one"
            )
        place = self.quarantine_sink
        if place.kind != "parquet" or place.mode != "replace":
            raise InvalidJobError(
                f"quarantine must be Parquet files, Sink.parquet(uri), which are replaced; found {place}"
            )
        if place.partition_by != self.sink.partition_by or place.partitions != self.sink.partitions:
            raise InvalidJobError(
                f"quarantine {place} has partitions of its own, and is written in those of the sink "
                f"{self.sink}: leave its own out"
            )
        if place.partition != self._quarantine_partition:
            raise InvalidJobError(
                f"quarantine has partition {dict(place.partition)!r}, and is written in the sink's partition "
                f"{dict(self._quarantine_partition)!r}: leave its own out"
            )
        uris.require_folder("quarantine", str(place.folder))
        if self.sink.uri is None:
            return
        if uris.holds(str(place.uri), self.sink.uri) or uris.holds(self.sink.uri, str(place.uri)):
            raise InvalidJobError(
                f"quarantine {place.uri!r} and sink {self.sink.uri!r} lie in each other: readers of the one "
                "would find the rows of the other; give the quarantine a folder of its own"
            )

    @property
    def snapshot_uri(self) -> str:
        """Where the run's first try notes what it reads, for as long as there may be another one."""
        run = hashlib.sha256(repr(self.run).encode()).hexdigest()[:12]
        return uris.sibling(self.sink.folder or self.sink.home or self.model_uri, f"snapshot-{run}.json")

    @property
    def quarantine_sink(self) -> Sink:
        """Where quarantined rows go: what the job says, else a sibling of the sink's table."""
        place = self.quarantine
        if place is None:
            place = Sink.parquet(uris.beside_table(str(self.sink.uri), "_quarantine"))
        if self.sink.partition_by and not place.partition_columns:
            return dataclasses.replace(
                place, partition_by=self.sink.partition_by, partitions=self.sink.partitions
            )
        return dataclasses.replace(
            place.with_partitions(), partition=place.partition or self._quarantine_partition
        )

    @property
    def quarantine_uri(self) -> str | None:
        """The folder that bad rows replace; None where they go nowhere."""
        return self.quarantine_sink.folder if self.on_bad_row == "quarantine" else None

    @property
    def _quarantine_partition(self) -> Mapping[str, str]:
        """That of the sink, where it has one of all that it gets."""
        if self.batch is not None:
            return {**self.sink.partition, BATCH_COLUMN: str(self.batch.number)}
        if self.sink.mode == "merge" and self.run is not None and self.stream is None:
            # The rows of other runs stay, and so do the bad ones among them.
            return {**self.sink.partition, **run_partition(self.run)}
        return self.sink.partition

    @property
    def sources(self) -> list[Source]:
        """All sources, those that others are made of included."""
        return list(self.source.walk())

    @property
    def places(self) -> list[Source | Sink]:
        """All that Spark needs connectors and connections for."""
        return [*self.sources, self.sink]

    @property
    def buckets(self) -> dict[str, str]:
        """The buckets of S3 that the job names, and a place in each."""
        written = [self.sink.uri, self.sink.work_uri, self.quarantine_uri]
        checkpoint = None if self.stream is None else self.stream.checkpoint_uri
        return buckets_of([self.model_uri, *(source.uri for source in self.sources), *written, checkpoint])

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "contract_version": CONTRACT_VERSION,
            "kind": self.KIND,
            "model_uri": self.model_uri,
            "source": self.source.to_dict(),
            "sink": self.sink.to_dict(),
            "report_uri": self.report_uri,
            "prepare": self.prepare,
            "prepare_kwargs": dict(self.prepare_kwargs),
            "predictor": self.predictor,
            "engine": self.engine,
            "keep_columns": None if self.keep_columns is None else list(self.keep_columns),
            "output_columns": dict(self.output_columns),
            "batch_rows": self.batch_rows,
            "on_bad_row": self.on_bad_row,
            "quarantine": self.quarantine.to_dict() if self.quarantine else None,
            "max_bad_rows": self.max_bad_rows,
            **unless_none("gpus_per_task", self.gpus_per_task or None),
            "run": dataclasses.asdict(self.run) if self.run else None,
            **unless_none("stream", self.stream.to_dict() if self.stream else None),
            **unless_none("report_nonce", self.report_nonce),
            **unless_none("spark_log_uri", self.spark_log_uri),
            **unless_none("access", _plain(self.access)),
            **unless_none("s3", self.s3.to_dict() if self.s3 else None),
            **unless_none("connect", self.connect.to_dict() if self.connect else None),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> InferenceJob:
        """Read the JSON form.

        Raises:
            ContractVersionError: written by another version of the package.
            InvalidJobError: an unknown field, a missing field or a value that cannot work.
        """
        fields = _checked_fields(cls, document)
        fields["source"] = Source.from_dict(fields["source"])
        fields["sink"] = Sink.from_dict(fields["sink"])
        fields["quarantine"] = Sink.from_dict(fields["quarantine"]) if fields.get("quarantine") else None
        fields["stream"] = StreamOptions.from_dict(fields["stream"]) if fields.get("stream") else None
        fields["run"] = Run(**fields["run"]) if fields["run"] else None
        fields["s3"] = _s3_of(fields)
        fields["connect"] = _connect_of(fields)
        return cls(**fields)


Job = TrainJob | InferenceJob


def nonce_uri(report_uri: str) -> str:
    """Where Airflow leaves a job's `report_nonce` for the driver: a hidden neighbour of the report."""
    return uris.sibling(report_uri, "nonce")


_JOBS: dict[str, type[TrainJob] | type[InferenceJob]] = {job.KIND: job for job in (TrainJob, InferenceJob)}


def dumps(job: Job) -> str:
    """The text of a job file. Mappings keep their order: a partition's is that of its folders."""
    return json.dumps(job.to_dict(), indent=2)


def loads(text: str) -> Job:
    """Read the text of a job file.

    Raises:
        ContractVersionError: written by another version of the package.
        InvalidJobError: not a job.
    """
    document = json.loads(text)
    kind = document.get("kind")
    if kind not in _JOBS:
        raise InvalidJobError(f"job kind {kind!r} is not known; expected one of {', '.join(_JOBS)}")
    return _JOBS[kind].from_dict(document)


def _checked_fields(cls: type[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(document)
    require_version(fields, "the job file")
    fields.pop("kind", None)
    refuse_unknown_fields(cls, fields)
    return fields


def _plain(access: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]] | None:
    return {name: dict(options) for name, options in access.items()} or None


def _s3_of(fields: Mapping[str, Any]) -> S3Access | None:
    return S3Access.from_dict(fields["s3"]) if fields.get("s3") else None


def _connect_of(fields: Mapping[str, Any]) -> ConnectAccess | None:
    return ConnectAccess.from_dict(fields["connect"]) if fields.get("connect") else None


def _require_limit(argument: str, value: object) -> None:
    """A number of rows, or a share of them."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return
    if isinstance(value, float) and 0 < value < 1:
        return
    raise InvalidJobError(
        f"{argument} must be a number of rows (an integer, 0 or more) or a share of all rows (between 0 and "
        f"1), found {value!r}"
    )


def _require_uri(argument: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip():
        raise InvalidJobError(f"{argument} must be a URI or a path, found {value!r}")
    uris.parse(value, argument)


def _require_import_path(argument: str, value: object) -> None:
    if value is not None and not (isinstance(value, str) and is_import_path(value)):
        raise InvalidJobError(f"{argument} must have the form 'package.module:function', found {value!r}")
