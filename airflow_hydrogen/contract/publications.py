"""Publishing a model that was trained elsewhere: the job, and what comes of it.

No Spark takes part, so that these are no jobs of `contract.jobs`; their files look alike.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from airflow_hydrogen.contract import CONTRACT_VERSION, uris
from airflow_hydrogen.contract.aliases import SUFFIX, is_alias
from airflow_hydrogen.contract.errors import InvalidJobError, InvalidUriError
from airflow_hydrogen.contract.jobs import Run
from airflow_hydrogen.contract.reports import Failure
from airflow_hydrogen.contract.stores import S3Access, buckets_of
from airflow_hydrogen.contract.values import refuse_unknown_fields, require_json, require_version, unless_none

ONNX, SAVED_MODEL, KERAS, TORCH = "onnx", "tensorflow", "keras", "torch"
EXPECTED = "a .onnx file, a .pt2 file of torch.export, a .keras file or the folder of a TensorFlow SavedModel"
"""What can be published, for messages."""

_SUFFIXES = {".onnx": ONNX, ".keras": KERAS, ".pt2": TORCH}
_CONVERTED_BY = {
    ".pt": "torch.export.save(torch.export.export(model.eval(), ...), 'model.pt2')",
    ".pth": "torch.export.save(torch.export.export(model.eval(), ...), 'model.pt2')",
    ".h5": "keras.Model.save('model.keras')",
    ".hdf5": "keras.Model.save('model.keras')",
    ".pkl": "skl2onnx",
    ".joblib": "skl2onnx",
    ".json": "onnxmltools",
    ".ubj": "onnxmltools",
    ".tflite": "tf2onnx",
}
_FORM = (
    "columns must be names in the order of the model's one input, as in ['temp', 'wind'], or input -> column "
    "or columns, as in {'x': ['temp', 'wind'], 'carrier': 'carrier'}; a column of lists has a width, as in "
    "{'name': 'pixels', 'width': 784}"
)
# Another one makes no other model.
_NOT_THE_MODELS = ("kind", "contract_version", "report_uri", "run", "alias", "s3")


@dataclass(frozen=True)
class GivenColumn:
    """A column that fills an input, or a part of it.

    Attributes:
        name: the column's.
        width: numbers in each of its lists; None where that is to be seen from the model.
    """

    name: str
    width: int | None = None


def given_columns(columns: Any) -> dict[str | None, tuple[GivenColumn, ...]]:
    """The columns of each input.

    Args:
        columns: as users give them.

    Returns:
        Input -> its columns; None stands for the one input that there is.

    Raises:
        InvalidJobError: with the form that was expected.
    """
    if isinstance(columns, Mapping) and not _is_wide(columns):
        found: dict[str | None, tuple[GivenColumn, ...]] = {
            str(name): _of_input(given) for name, given in columns.items()
        }
    else:
        found = {None: _of_input(columns)}
    if not found:
        raise InvalidJobError(f"{_FORM}; found {columns!r}")
    widths: dict[str, int | None] = {}
    for column in (column for given in found.values() for column in given):
        if widths.setdefault(column.name, column.width) != column.width:
            raise InvalidJobError(f"columns gives column {column.name!r} two widths")
    return found


def framework_of(model: str) -> str:
    """The framework of the model at a URI, by its name: "onnx", "torch", "keras"; "tensorflow" of a folder.

    Raises:
        InvalidJobError: a file of a kind that cannot be published, with what converts it.
    """
    name = uris.parse(model, "model").path.rpartition("/")[2]
    suffix = name[name.rfind(".") :].lower() if "." in name else ""
    if suffix in _CONVERTED_BY:
        raise InvalidJobError(
            f"model {model!r} is none that can be published: expected {EXPECTED}; "
            f"{_CONVERTED_BY[suffix]} makes one of it"
        )
    return _SUFFIXES.get(suffix, SAVED_MODEL)


@dataclass(frozen=True, kw_only=True)
class PublishJob:
    """One publication: bring the model, find out what it takes and gives, score made-up rows, publish.

    Attributes:
        model: the file or the folder of the model.
        model_uri: where it is published.
        columns: what fills its inputs: names, or input -> name or names; see `given_columns`.
        outputs: which of its outputs become columns; None: all of them.
        example: column -> value of one real row, for models that refuse made-up ones; None: made-up rows.
        alias: an alias that names the model once it is published, or None.
        metrics: what is known of it, such as {"auc": 0.91}.
        run: the Airflow run, or None outside Airflow.
        report_uri: where the report goes; None: nobody wants it.
        s3: what opens S3, as in a TrainJob.
    """

    KIND: ClassVar[str] = "publish"

    model: str
    model_uri: str
    columns: Sequence[Any] | Mapping[str, Any] | str
    outputs: Sequence[str] | None = None
    example: Mapping[str, Any] | None = None
    alias: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    run: Run | None = None
    report_uri: str | None = None
    s3: S3Access | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for argument in ("model", "model_uri"):
            value = getattr(self, argument)
            if not isinstance(value, str) or not value.strip():
                raise InvalidJobError(f"{argument} must be a URI or a path, found {value!r}")
            uris.require_folder(argument, value)
        if framework_of(self.model) == KERAS and self.outputs is not None:
            raise InvalidJobError("outputs of a .keras file cannot be chosen: leave outputs out")
        if is_alias(self.model_uri):
            raise InvalidJobError(
                f"model_uri {self.model_uri!r} is the name of an alias, and a model is published in a "
                f"folder: let the name of that not end in {SUFFIX!r}, and give the alias as alias="
            )
        if uris.holds(self.model_uri, self.model) or uris.holds(self.model, self.model_uri):
            raise InvalidJobError(
                f"model {self.model!r} and model_uri {self.model_uri!r} are one folder, or one lies in the "
                "other, and what is published takes the place of all that is there: publish it elsewhere"
            )
        if self.alias is not None and not (isinstance(self.alias, str) and is_alias(self.alias)):
            raise InvalidUriError(
                str(self.alias), f"is no name of an alias: expected one that ends in {SUFFIX!r}", "alias"
            )
        if self.alias is not None and uris.holds(self.model_uri, self.alias):
            raise InvalidUriError(
                self.alias,
                f"lies in the folder of the model {self.model_uri!r}, where the next one takes the place of "
                "all that is there: give the alias a name beside that folder",
                "alias",
            )
        given_columns(self.columns)
        if self.outputs is not None:
            object.__setattr__(self, "outputs", _names("outputs", self.outputs))
        if self.example is not None and not (isinstance(self.example, Mapping) and self.example):
            raise InvalidJobError(f"example must be column -> value of one row, found {self.example!r}")
        require_json("example", self.example)
        _require_metrics(self.metrics)

    @property
    def buckets(self) -> dict[str, str]:
        """The buckets of S3 that the job names, and a place in each."""
        return buckets_of([self.model, self.model_uri, self.alias])

    def parts(self) -> dict[str, Any]:
        """What decides the published model, as JSON."""
        return {name: value for name, value in self.to_dict().items() if name not in _NOT_THE_MODELS}

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        columns = self.columns if isinstance(self.columns, (str, Mapping)) else list(self.columns)
        return {
            "contract_version": CONTRACT_VERSION,
            "kind": self.KIND,
            "model": self.model,
            "model_uri": self.model_uri,
            "columns": columns,
            "outputs": None if self.outputs is None else list(self.outputs),
            "example": None if self.example is None else dict(self.example),
            "alias": self.alias,
            "metrics": dict(self.metrics),
            "run": dataclasses.asdict(self.run) if self.run else None,
            "report_uri": self.report_uri,
            **unless_none("s3", self.s3.to_dict() if self.s3 else None),
        }

    @classmethod
    def loads(cls, text: str) -> PublishJob:
        """Read the text of a job file.

        Raises:
            ContractVersionError: written by another version of the package.
            InvalidJobError: not such a job.
        """
        fields = _fields(text, cls.KIND, "the job file")
        refuse_unknown_fields(cls, fields)
        fields["run"] = Run(**fields["run"]) if fields.get("run") else None
        fields["s3"] = S3Access.from_dict(fields["s3"]) if fields.get("s3") else None
        return cls(**fields)

    def dumps(self) -> str:
        """The text of a job file."""
        return json.dumps(self.to_dict(), indent=2)


@dataclass(frozen=True, kw_only=True)
class PublishReport:
    """What a publication did.

    Attributes:
        model_uri: the published model; None on failure.
        model_version: its version: the SHA-256 of its manifest, with that of every file in it.
        alias: the alias that names it now, or None.
        framework: "onnx", "tensorflow", "keras" or "torch".
        inputs: input -> its columns, dtype and the shape of a row.
        outputs: output -> its dtype and the shape of a row.
        metrics: what was given.
        reused: the model was there already, published by an earlier try.
        seconds: seconds in total.
        failure: None on success.
    """

    KIND: ClassVar[str] = "publish"

    model_uri: str | None = None
    model_version: str | None = None
    alias: str | None = None
    framework: str | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    reused: bool = False
    seconds: Mapping[str, float] = field(default_factory=dict)
    failure: Failure | None = None

    def dumps(self) -> str:
        """The text of a report file."""
        document = {"contract_version": CONTRACT_VERSION, "kind": self.KIND, **dataclasses.asdict(self)}
        return json.dumps(document, indent=2, sort_keys=True)

    @classmethod
    def loads(cls, text: str) -> PublishReport:
        """Read the text of a report file.

        Raises:
            ContractVersionError: written by another version of the package.
            InvalidJobError: not such a report.
        """
        fields = _fields(text, cls.KIND, "the report")
        fields["failure"] = Failure(**fields["failure"]) if fields.get("failure") else None
        return cls(**fields)


def _of_input(given: Any) -> tuple[GivenColumn, ...]:
    parts: Any = [given] if isinstance(given, (str, Mapping)) else given
    if isinstance(parts, bytes) or not isinstance(parts, Sequence) or not parts:
        raise InvalidJobError(f"{_FORM}; found {given!r}")
    columns = tuple(map(_column, parts))
    names = [column.name for column in columns]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidJobError(f"columns gives one input {', '.join(map(repr, twice))} twice")
    return columns


def _column(given: Any) -> GivenColumn:
    if isinstance(given, str) and given:
        return GivenColumn(given)
    if isinstance(given, Mapping) and _is_wide(given) and given["name"] and given["width"] > 0:
        return GivenColumn(str(given["name"]), int(given["width"]))
    raise InvalidJobError(f"{_FORM}; found {given!r}")


def _is_wide(given: Mapping[str, Any]) -> bool:
    """Whether it is one column with its width, and not the columns of inputs of these names."""
    return set(given) == {"name", "width"} and type(given["width"]) is int and isinstance(given["name"], str)


def _names(argument: str, value: Any) -> tuple[str, ...]:
    is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not is_list or not value or not all(isinstance(name, str) and name for name in value):
        raise InvalidJobError(f"{argument} must be a list of names, found {value!r}")
    if len(set(value)) != len(value):
        raise InvalidJobError(f"{argument} names an output twice: {value!r}")
    return tuple(value)


def _require_metrics(metrics: Any) -> None:
    is_mapping = isinstance(metrics, Mapping)
    for name, value in metrics.items() if is_mapping else ():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not isinstance(name, str) or not is_number or not math.isfinite(value):
            raise InvalidJobError(f"metrics must be name -> finite number, found {name!r}: {value!r}")
    if not is_mapping:
        raise InvalidJobError(f"metrics must be name -> finite number, found {metrics!r}")


def _fields(text: str, kind: str, what: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(text)
    require_version(fields, what)
    if (found := fields.pop("kind", None)) != kind:
        raise InvalidJobError(f"{what} has kind {found!r}, expected {kind!r}")
    return fields
