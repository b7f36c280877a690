"""Arguments from the form that Airflow can template to the values of a job."""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_hydrogen.contract import brokers, uris
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.jobs import BatchRows, Sink
from airflow_hydrogen.contract.pickling import callable_name
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.contract.streams import StreamOptions

_TEXT_OF_ONE = "a template renders to text unless the DAG has render_template_as_native_obj=True"
_SOURCE_TEXTS = (
    *("uri", "format", "table_name", "timestamp", "conn_id", "partition_column"),
    *("where", "query", "servers", "topic", "payload", "schema"),
)
_SINK_TEXTS = ("uri", "table_name", "conn_id", "mode", "work_uri", "servers", "topic")
_NATIVE = "a template of a DAG with render_template_as_native_obj=True renders to such values"


def to_text(argument: str, value: Any) -> str:
    """Text, also where a template rendered to a number or a date.

    Raises:
        InvalidJobError: nobody can tell what the text should be: None, a boolean, a time, a list.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        return value.isoformat()
    raise InvalidJobError(f"{argument} must be a string, found {value!r}; {_NATIVE}")


def to_uri(argument: str, value: Any) -> str:
    """A URI or a path.

    Raises:
        InvalidJobError: it is none, such as the XCom of a task that did not run.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        raise InvalidJobError(f"{argument} must be a URI or a path, found {value!r}")
    return to_text(argument, value)


def to_texts(argument: str, value: Any) -> list[str]:
    """A list of strings.

    Raises:
        InvalidJobError: it is no list, or something in it is no text.
    """
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InvalidJobError(f"{argument} must be a list of strings, found {value!r}")
    return [to_text(f"{argument}[{index}]", item) for index, item in enumerate(value)]


def to_columns(argument: str, value: Any) -> Any:
    """Columns of a model's inputs: a name, one with a width, a list of these, or a mapping to them.

    Raises:
        InvalidJobError: something in it is no text, or the text of a list.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        raise InvalidJobError(f"{argument} must be a list or a mapping, found {value!r}; {_TEXT_OF_ONE}")
    if isinstance(value, Mapping):
        found = {str(name): to_columns(f"{argument}[{name!r}]", item) for name, item in value.items()}
        if set(found) == {"name", "width"} and str(found["width"]).isdigit():
            found["width"] = int(found["width"])
        return found
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [to_columns(f"{argument}[{index}]", item) for index, item in enumerate(value)]
    return to_text(argument, value)


def to_mapping(argument: str, value: Any) -> dict[str, Any]:
    """A mapping; None is an empty one.

    Raises:
        InvalidJobError: it is none, such as the text of one.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        hint = f"; {_TEXT_OF_ONE}" if isinstance(value, str) else ""
        raise InvalidJobError(f"{argument} must be a mapping, found {value!r}{hint}")
    return dict(value)


def refuse_callable(argument: str, value: Any) -> None:
    """Say at once that a function cannot be given as itself; Airflow would call it when it renders.

    Raises:
        TypeError: it is callable.
    """
    if callable(value):
        raise TypeError(
            f"{argument} must be 'package.module:function', found the callable {callable_name(value)}: it is "
            "imported where Spark runs; put it into a module beside the DAG file and pass its path"
        )


def to_source(argument: str, value: Any) -> Source:
    """The source of a rendered argument.

    Raises:
        InvalidJobError: it is no source, or its URI names no place.
    """
    value = as_template(value)
    if not isinstance(value, Mapping):
        raise InvalidJobError(
            f"{argument} must be a Source, such as Source.parquet(uri), or its to_dict(), found {value!r}"
        )
    document = _source_document(argument, value)
    try:
        source = Source.from_dict(document)
    except InvalidJobError as error:
        raise InvalidJobError(f"{argument}: {error}") from None
    if source.uri is not None:
        uris.parse(source.uri, f"{argument} uri")
    return source


def to_sink(argument: str, value: Any) -> Sink:
    """The sink of a rendered argument.

    Raises:
        InvalidJobError: it is no sink, or its URI names no place.
    """
    if not isinstance(value, Mapping):
        raise InvalidJobError(
            f"{argument} must be a Sink, such as Sink.parquet(uri), or its to_dict(), found {value!r}"
        )
    document = _sink_document(argument, value)
    try:
        sink = Sink.from_dict(document)
    except InvalidJobError as error:
        raise InvalidJobError(f"{argument}: {error}") from None
    for name in ("uri", "work_uri"):
        if (uri := getattr(sink, name)) is not None:
            uris.parse(uri, f"{argument} {name}")
    return sink


def _source_document(argument: str, value: Mapping[str, Any]) -> dict[str, Any]:
    document = _with_servers(_with_texts(argument, value, _SOURCE_TEXTS))
    for name in ("version", "partitions"):
        if document.get(name) is not None:
            document[name] = to_integer(f"{argument} {name}", document[name])
    if document.get("columns") is not None:
        document["columns"] = to_texts(f"{argument} columns", document["columns"])
    for name in ("where_args", "query_args"):
        if isinstance(values := document.get(name), Mapping):
            document[name] = {
                key: item.isoformat() if isinstance(item, datetime.date) else item
                for key, item in values.items()
            }
    if "options" in document:
        options = to_mapping(f"{argument} options", document["options"])
        document["options"] = {
            # As Spark spells booleans.
            key: str(item).lower() if isinstance(item, bool) else to_text(f"{argument} option {key!r}", item)
            for key, item in options.items()
        }
    if "tables" in document:
        tables = to_mapping(f"{argument} tables", document["tables"])
        document["tables"] = {
            name: to_source(f"{argument} table {name!r}", table).to_dict() for name, table in tables.items()
        }
    return document


def _sink_document(argument: str, value: Mapping[str, Any]) -> dict[str, Any]:
    document = _with_servers(_with_texts(argument, value, _SINK_TEXTS))
    if "keys" in document:
        document["keys"] = to_texts(f"{argument} keys", document["keys"])
    if "partition_by" in document:
        document["partition_by"] = to_texts(f"{argument} partition_by", document["partition_by"])
    if "partitions" in document:
        document["partitions"] = _partition_texts(f"{argument} partitions", document["partitions"])
    if "partition" in document:
        partition = to_mapping(f"{argument} partition", document["partition"])
        document["partition"] = {
            key: to_text(f"{argument} partition {key!r}", item) for key, item in partition.items()
        }
    return document


def _partition_texts(argument: str, value: Any) -> Any:
    """The texts of partitions, in whatever form they are declared; the sink says whether it is one."""
    if isinstance(value, Mapping):
        return {key: _partition_texts(f"{argument} {key!r}", item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [_partition_texts(f"{argument}[{index}]", item) for index, item in enumerate(value)]
    return to_text(argument, value)


def _with_texts(argument: str, value: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    texts = {
        name: to_text(f"{argument} {name}", value[name]) for name in names if value.get(name) is not None
    }
    return {**value, **texts}


def _with_servers(document: dict[str, Any]) -> dict[str, Any]:
    """Tell Kafka's servers from a connection once more: a template does not show what it renders to."""
    places = [document[name] for name in ("servers", "conn_id") if document.get(name) is not None]
    if document.get("kind") != "kafka" or len(places) != 1:
        return document
    others = {name: item for name, item in document.items() if name not in ("servers", "conn_id")}
    return {**others, **brokers.named_by(places[0])}


def to_integer(argument: str, value: Any) -> int:
    """An integer, also as the text that a template renders to.

    Raises:
        InvalidJobError: it is neither.
    """
    if isinstance(value, str):
        try:
            return int(value.strip())
        except ValueError:
            raise InvalidJobError(f"{argument} must be an integer, found {value!r}") from None
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidJobError(f"{argument} must be an integer, found {value!r}")
    return value


def to_batch_rows(argument: str, value: Any) -> BatchRows:
    """A number of rows, also as the text that a template renders to, or "auto".

    Raises:
        InvalidJobError: it is neither.
    """
    if isinstance(value, str) and value.strip() == "auto":
        return "auto"
    try:
        return to_integer(argument, value)
    except InvalidJobError:
        raise InvalidJobError(f"{argument} must be an integer or 'auto', found {value!r}") from None


def at_least(argument: str, value: Any, minimum: int) -> int:
    """An integer that is not too small, also as the text that a template renders to.

    Raises:
        InvalidJobError: it is no integer, or too small.
    """
    number = to_integer(argument, value)
    if number < minimum:
        raise InvalidJobError(f"{argument} must be at least {minimum}, found {number}")
    return number


def to_seconds(argument: str, value: Any) -> float | None:
    """A number of seconds, also as the text that a template renders to; None stays None.

    Raises:
        InvalidJobError: the text of something else. What the number may be says the job.
    """
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    try:
        return float(value)
    except ValueError:
        raise InvalidJobError(f"{argument} must be a number of seconds, found {value!r}") from None


def to_stream(
    trigger: Any, checkpoint_uri: Any, max_rows_per_trigger: Any, stop_after_s: Any
) -> StreamOptions | None:
    """How a stream is scored; None where no argument speaks of one.

    Raises:
        InvalidJobError: one of them cannot work, or is there without `trigger`.
    """
    given = {
        "checkpoint_uri": checkpoint_uri,
        "max_rows_per_trigger": max_rows_per_trigger,
        "stop_after_s": stop_after_s,
    }
    if trigger is None:
        if named := [name for name, value in given.items() if value is not None]:
            raise InvalidJobError(
                f"{', '.join(named)} belong to a stream, which needs a trigger: 'available_now' or an "
                "interval such as '30 seconds'"
            )
        return None
    return StreamOptions(
        trigger=to_text("trigger", trigger),
        checkpoint_uri=to_uri("checkpoint_uri", checkpoint_uri),
        max_rows_per_trigger=(
            None if max_rows_per_trigger is None else to_integer("max_rows_per_trigger", max_rows_per_trigger)
        ),
        stop_after_s=to_seconds("stop_after_s", stop_after_s),
    )


def to_limit(argument: str, value: Any) -> int | float | None:
    """A number of rows or a share of them, also as the text that a template renders to; None: no limit.

    Raises:
        InvalidJobError: the text of something else. What the number may be says the job.
    """
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(value.strip())
    raise InvalidJobError(
        f"{argument} must be a number of rows or a share of all rows, such as 100 or 0.01, found {value!r}"
    )


def as_template(value: Any) -> Any:
    """The form in which an argument waits for its templates: Airflow cannot render a frozen value.

    What holds none stays the object that it is: by that Airflow knows what a mapped task got from another one
    and is no template.
    """
    if isinstance(value, (Source, Sink)):
        return value.to_dict()
    if isinstance(value, Mapping) and any(isinstance(item, Source) for item in value.values()):
        return {name: as_template(item) for name, item in value.items()}
    return value


def finite(value: Any) -> Any:
    """A JSON value without NaN and infinity, which databases refuse: they become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
