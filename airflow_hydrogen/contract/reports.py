"""What Spark answers: reports, written as one JSON file where the job said."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from airflow_hydrogen.contract import CONTRACT_VERSION
from airflow_hydrogen.contract.errors import ApplicationError, HydrogenError, InvalidJobError
from airflow_hydrogen.contract.values import require_version


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why an application failed.

    Attributes:
        error_type: class name of the error, for example `RankFailedError`.
        message: its message, the failing rank's traceback included.
        retryable: whether the same job may succeed when it is run again.
    """

    error_type: str
    message: str
    retryable: bool

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Describe an exception: anything that this package did not raise may succeed when run again."""
        retryable = error.retryable if isinstance(error, HydrogenError) else True
        return cls(error_type=type(error).__name__, message=str(error) or repr(error), retryable=retryable)

    def to_error(self) -> ApplicationError:
        """The exception that the Airflow side raises for it."""
        return ApplicationError(
            f"{self.error_type}: {self.message}", error_type=self.error_type, retryable=self.retryable
        )


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a training did.

    Attributes:
        model_uri: the published model; None when `main` returned something else, or failed.
        model_version: its version: the SHA-256 of its manifest, with that of every file in it.
        result: what `main` returned on rank 0, where that was not a model.
        metrics: the last line of history.
        epochs: lines of history.
        np: ranks that trained.
        rows: rows of the "train" dataset.
        seconds: seconds by stage: prepare, train, publish, total.
        rows_per_second: rows read by all ranks per second of training.
        resumed_from_epoch: the checkpoint that training went on from, or None.
        restarts: why the gang was started again within the application, a line each.
        reused: the model was there already, trained by an earlier try.
        sources: what each dataset was made of: its source, and the version, rows or files that it had.
        versions: package -> version.
        failure: None on success.
    """

    KIND: ClassVar[str] = "train"

    model_uri: str | None = None
    model_version: str | None = None
    result: Any = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 0
    np: int = 0
    rows: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    rows_per_second: float | None = None
    resumed_from_epoch: int | None = None
    restarts: Sequence[str] = ()
    reused: bool = False
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    failure: Failure | None = None


@dataclass(frozen=True, kw_only=True)
class InferenceReport:
    """What a scoring did.

    Attributes:
        output_uri: the partition that was replaced, or the table of many; None on failure.
        model_uri: the model that scored.
        model_version: its version: the SHA-256 of its manifest, with that of every file in it.
        model_alias: the alias that named it; None where the job names the model itself.
        engine: what has run it: "tensorflow", "onnx", "torch", or "predictor" for a loader of the user's.
        batch_rows: rows of one call of the model; where workers have found out how many are the fastest, what
            most rows were scored with. None where there was no row to try.
        rows: rows written.
        rows_in: rows read: those written, dropped and quarantined.
        rows_dropped: bad rows that are nowhere.
        rows_quarantined: bad rows at `quarantine_uri`.
        partitions: of a sink with `partition_by`: folder below `output_uri` of every partition that was
            replaced, `ds=2013-01-01` -> rows written; {} of others.
        quarantine_uri: the partition of quarantined rows that was replaced; None where bad rows go elsewhere.
        bad_rows: what is wrong with bad rows, without their values -> how many.
        columns: the columns of what was written -> Spark's names of their types.
        seconds: seconds by stage: score, commit, total.
        rows_per_second: rows per second of the score stage, start of the Python workers included.
        source: what was scored: the source, and the version, rows, files or offsets that it had.
        stream: of a stream: batches, last_batch, stopped (why it has ended), lag (messages that wait) and
            models (version -> rows that it has scored); {} of what is none.
        versions: package -> version.
        failure: None on success.
    """

    KIND: ClassVar[str] = "inference"

    output_uri: str | None = None
    model_uri: str | None = None
    model_version: str | None = None
    model_alias: str | None = None
    engine: str | None = None
    batch_rows: int | None = None
    rows: int = 0
    rows_in: int = 0
    rows_dropped: int = 0
    rows_quarantined: int = 0
    partitions: Mapping[str, int] = field(default_factory=dict)
    quarantine_uri: str | None = None
    bad_rows: Mapping[str, int] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    rows_per_second: float | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    stream: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    failure: Failure | None = None


Report = TrainReport | InferenceReport
_REPORTS: dict[str, type[TrainReport] | type[InferenceReport]] = {
    report.KIND: report for report in (TrainReport, InferenceReport)
}


def dumps(report: Report) -> str:
    """The text of a report file."""
    document = {"contract_version": CONTRACT_VERSION, "kind": report.KIND, **dataclasses.asdict(report)}
    return json.dumps(document, indent=2, sort_keys=True)


def loads(text: str) -> Report:
    """Read the text of a report file.

    Raises:
        ContractVersionError: written by another version of the package.
        InvalidJobError: not a report.
    """
    document = json.loads(text)
    require_version(document, "the report")
    kind = document.pop("kind", None)
    if kind not in _REPORTS:
        raise InvalidJobError(f"report kind {kind!r} is not known; expected one of {', '.join(_REPORTS)}")
    if document.get("failure"):
        document["failure"] = Failure(**document["failure"])
    if "restarts" in document:
        document["restarts"] = tuple(document["restarts"])
    return _REPORTS[kind](**document)
