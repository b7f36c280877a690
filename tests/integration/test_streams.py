"""Streams: files and messages scored in micro-batches, every row once, whatever dies in between."""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import functions

from airflow_hydrogen.contract.errors import (
    BatchesLostError,
    CheckpointMismatchError,
    ColumnCollisionError,
    EntrypointError,
    InvalidJobError,
    MergeKeysError,
    MessageIdError,
    MissingColumnError,
    PartitionTakenError,
    SinkError,
    SourceError,
    StreamTakenError,
    TableMismatchError,
    TopicError,
    UndecodableError,
)
from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.contract.reports import InferenceReport
from airflow_hydrogen.contract.streams import StreamOptions
from airflow_hydrogen.runtime.data import kafka as kafka_client
from airflow_hydrogen.runtime.models import aliases, directory
from airflow_hydrogen.runtime.scoring import positions, streams
from airflow_hydrogen.runtime.scoring.streams import Batches, run_stream
from airflow_hydrogen.runtime.sinks import delta, delta_files, placements
from airflow_hydrogen.runtime.sinks import kafka as kafka_sink
from airflow_hydrogen.runtime.storage import filesystems
from tests.integration import daemons
from tests.integration.broker import PASSWORD, USER, Kafka
from tests.integration.models import dense, matrix_layout, publish

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("spark"), pytest.mark.timeout(300)]

SCHEMA = "id BIGINT, a DOUBLE, b INT"


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> str:
    """prediction = a + 10 b."""
    uri = str(tmp_path_factory.mktemp("models") / "linear")
    return publish(dense([[1.0], [10.0]]), uri, matrix_layout("a", "b"))


@pytest.fixture
def incoming(tmp_path: Path) -> Callable[..., None]:
    """Files that come into a folder, one at a time."""
    folder = tmp_path / "incoming"
    folder.mkdir()

    def arrive(first: int, last: int) -> None:
        ids = np.arange(first, last)
        table = pa.table({"id": ids, "a": ids.astype("float64"), "b": (ids % 7).astype("int32")})
        pq.write_table(table, folder / f".{first}")
        (folder / f".{first}").rename(folder / f"{first}.parquet")

    return arrive


@pytest.fixture
def stream(tmp_path: Path, linear: str) -> Callable[..., InferenceReport]:
    """Run a stream of files into Parquet, or what is changed of it, until it has drained."""

    def run(trigger: str = "available_now", options: dict[str, Any] | None = None, **changes: Any) -> Any:
        fields = {
            "model_uri": linear,
            "source": Source.files_stream(str(tmp_path / "incoming")),
            "sink": Sink.parquet(str(tmp_path / "scores")),
            "report_uri": str(tmp_path / "report.json"),
            "batch_rows": 16,
        }
        checkpoint = str(tmp_path / "checkpoint")
        stream = StreamOptions(**{"trigger": trigger, "checkpoint_uri": checkpoint, **(options or {})})
        return run_stream(InferenceJob(**{**fields, **changes}, stream=stream))

    return run


@pytest.fixture
def scores(tmp_path: Path) -> Callable[[], Any]:
    def read() -> Any:
        return pq.read_table(tmp_path / "scores").to_pandas().sort_values("id", ignore_index=True)

    return read


def without_key(spark: Any, rows: Any) -> Any:
    """A `prepare` that loses what is sent beside a row."""
    return rows.drop("kafka_key")


def with_version(spark: Any, rows: Any) -> Any:
    """A `prepare` that adds a column of ours, in other capitals."""
    return rows.withColumn("Model_Version", rows.id)


def spread(spark: Any, rows: Any) -> Any:
    """A `prepare` that makes two rows of one message, and none of another."""
    return rows.where("id <> 1").union(rows.where("id = 0"))


# --- files -------------------------------------------------------------------------------------------------


def test_files_are_drained_and_drained_again_every_row_once(incoming, stream, scores, tmp_path):
    incoming(0, 50)
    first = stream()
    assert (first.rows, first.rows_in, first.stream["batches"], first.stream["stopped"]) == (
        50,
        50,
        1,
        "drained",
    )
    nothing = stream()
    assert (nothing.rows, nothing.stream["batches"], nothing.stream["last_batch"]) == (0, 0, None)
    assert nothing.source["offsets"] == first.source["offsets"]
    incoming(50, 60)
    assert stream().rows == 10
    found = scores()
    assert found["id"].tolist() == list(range(60))
    assert np.allclose(found["prediction"], found["a"] + 10 * found["b"])
    assert set(found["model_version"]) == {first.model_version}
    assert found["batch"].astype(int).tolist() == [0] * 50 + [1] * 10


def test_a_batch_whose_driver_dies_before_spark_has_noted_it_replaces_itself(
    incoming, stream, scores, monkeypatch
):
    incoming(0, 20)
    with monkeypatch.context() as patched:
        patched.setattr(Batches, "_note", lambda *_given: (_ for _ in ()).throw(MemoryError("it dies here")))
        with pytest.raises(MemoryError, match="it dies here"):
            stream()
    assert scores()["id"].tolist() == list(range(20))
    incoming(20, 30)
    report = stream()
    assert report.rows == 30  # the first batch once more, and then what has come since
    assert report.stream["last_batch"] == 1
    assert scores()["id"].tolist() == list(range(30))


def test_a_checkpoint_that_is_not_that_of_the_sinks_batches_is_refused(incoming, stream, scores, tmp_path):
    incoming(0, 5)
    stream()
    other = {"checkpoint_uri": str(tmp_path / "other")}
    with pytest.raises(CheckpointMismatchError, match="is not that of the batches at sink"):
        stream(options=other)
    with pytest.raises(CheckpointMismatchError, match="is that of another stream"):
        stream(sink=Sink.parquet(str(tmp_path / "elsewhere")))
    for folder in ("offsets", "commits", "metadata"):
        filesystems.remove(str(tmp_path / "checkpoint" / folder))
    with pytest.raises(CheckpointMismatchError, match="was set back.* has batch 0"):
        stream()
    shutil.rmtree(tmp_path / "checkpoint")
    with pytest.raises(CheckpointMismatchError, match="is not that of the batches at sink"):
        stream()
    (tmp_path / "by hand").mkdir()
    shutil.copytree(tmp_path / "scores" / "batch=0", tmp_path / "by hand", dirs_exist_ok=True)
    with pytest.raises(CheckpointMismatchError, match="files that no stream has written"):
        stream(options=other, sink=Sink.parquet(str(tmp_path / "by hand")))
    assert scores()["id"].tolist() == list(range(5))


def test_a_checkpoint_whose_batches_are_gone_is_refused(incoming, stream, tmp_path):
    incoming(0, 5)
    stream()
    shutil.rmtree(tmp_path / "scores")
    with pytest.raises(CheckpointMismatchError, match="goes on after batch 0, and sink .* has none"):
        stream()


def test_an_older_try_leaves_the_stream_to_a_newer_one(incoming, stream, scores, monkeypatch):
    incoming(0, 5)
    claim = positions.claim

    def claimed_twice(*given: Any) -> Any:
        first = claim(*given)
        claim(*given)
        return first

    with monkeypatch.context() as patched:
        patched.setattr(positions, "claim", claimed_twice)
        with pytest.raises(StreamTakenError, match="another try"):
            stream()
    assert stream().rows == 5
    assert scores()["id"].tolist() == list(range(5))


def test_a_try_that_stood_still_before_it_staged_writes_over_nothing_of_a_newer_one(
    incoming, stream, scores, tmp_path, monkeypatch
):
    incoming(0, 5)
    claim = positions.claim
    claimed: list[tuple[Any, ...]] = []

    def noted(*given: Any) -> Any:
        claimed.append(given)
        return claim(*given)

    with monkeypatch.context() as patched:
        patched.setattr(positions, "claim", noted)
        # The batch has been found to be this try's; a newer one begins, and is done, before it goes on.
        patched.setattr(Batches, "_renew_model", lambda *_given: claim(*claimed[0]))
        with pytest.raises(StreamTakenError):
            stream()
    assert not list((tmp_path / "scores").glob("batch=*"))
    assert stream().rows == 5
    assert scores()["id"].tolist() == list(range(5))


def features_alone(spark: Any, rows: Any) -> Any:
    """A `prepare` that loses what tells rows apart that could not be decoded."""
    return rows.select("id", "a", "b")


def doubled(spark: Any, rows: Any) -> Any:
    """A `prepare` that adds to what is there."""
    return rows.withColumn("a", rows.a * 2)


def test_prepare_gets_every_batch_and_keeps_the_marks_of_what_is_broken(stream, scores, tmp_path):
    folder = tmp_path / "incoming"
    folder.mkdir()
    (folder / "lines.json").write_text('{"id": 1, "a": 1.0, "b": 2}\nno json')
    given = {
        "source": Source.files_stream(str(folder), format="json", schema=SCHEMA),
        "on_bad_row": "drop",
    }
    with pytest.raises(EntrypointError, match="without raw_value, _hydrogen_fault"):
        stream(**given, prepare="tests.integration.test_streams:features_alone")
    report = stream(**given, prepare="tests.integration.test_streams:doubled")
    assert (report.rows, report.rows_dropped) == (1, 1)
    assert scores()["prediction"].tolist() == [22.0]


def test_lines_that_are_not_json_are_dead_letters(stream, scores, tmp_path):
    folder = tmp_path / "incoming"
    folder.mkdir()
    lines = ['{"id": 1, "a": 1.0, "b": 2}', "no json", '{"id": 2, "a": null, "b": 2}', '{"id": 3, "a": "x"}']
    (folder / "lines.json").write_text("\n".join(lines))
    source = Source.files_stream(str(folder), format="json", schema=SCHEMA)
    with pytest.raises(UndecodableError, match="2 of 4 rows.*'no json'"):
        stream(source=source)
    report = stream(source=source, on_bad_row="quarantine")
    assert (report.rows_in, report.rows, report.rows_quarantined) == (4, 1, 3)
    assert scores()["id"].tolist() == [1]
    assert "raw_value" not in scores().columns
    letters = pq.read_table(report.quarantine_uri).to_pandas()
    found = {(raw, reason) for raw, reason in zip(letters["raw_value"], letters["reason"], strict=True)}
    broken = "the line is not JSON of the schema"
    assert {("no json", broken), ('{"id": 3, "a": "x"}', broken)} < found
    assert report.bad_rows[broken] == 2


def test_a_csv_file_is_read_by_the_names_in_its_header(stream, scores, tmp_path):
    folder = tmp_path / "incoming"
    folder.mkdir()
    (folder / "1.csv").write_text("id,a,b\n1,1.0,2\n2,nothing,2\n")
    source = Source.files_stream(str(folder), format="csv", schema=SCHEMA)
    report = stream(source=source, on_bad_row="drop")
    assert (report.rows, report.rows_dropped) == (1, 1)
    (folder / "2.csv").write_text("id,b,a\n3,2,1.0\n")
    with pytest.raises(SourceError, match="(?s)cannot be read.*header does not conform to the schema"):
        stream(source=source, on_bad_row="drop")
    assert scores()["prediction"].tolist() == [21.0]


def test_a_file_of_other_types_than_the_stream_is_told(incoming, stream, tmp_path):
    incoming(0, 5)
    pq.write_table(pa.table({"id": [5], "a": ["five"], "b": [5]}), tmp_path / "incoming" / "other.parquet")
    with pytest.raises(SourceError, match="other.parquet. Data type mismatches when reading Parquet column"):
        stream(source=Source.files_stream(str(tmp_path / "incoming"), schema=SCHEMA))
    assert not list((tmp_path / "scores").glob("batch=*"))


def test_a_quarantine_is_of_one_stream_alone(stream, tmp_path):
    folder, letters = tmp_path / "incoming", str(tmp_path / "letters")
    folder.mkdir()
    (folder / "lines.json").write_text("no json")
    given = {
        "source": Source.files_stream(str(folder), format="json", schema=SCHEMA),
        "on_bad_row": "quarantine",
        "quarantine": Sink.parquet(letters),
    }
    assert stream(**given).rows_quarantined == 1
    other = {"sink": Sink.parquet(str(tmp_path / "other")), "options": {"checkpoint_uri": f"{tmp_path}/b"}}
    with pytest.raises(CheckpointMismatchError, match="not that of the batches at quarantine .*letters"):
        stream(**given, **other)
    assert pq.read_table(letters)["raw_value"].to_pylist() == ["no json"]
    # A folder that is new to a stream may join it.
    (folder / "more.json").write_text("none either")
    later = stream(**{**given, "quarantine": Sink.parquet(str(tmp_path / "later"))})
    assert pq.read_table(later.quarantine_uri)["raw_value"].to_pylist() == ["none either"]


def test_a_stream_takes_another_model_between_two_batches(incoming, stream, scores, linear, tmp_path):
    model = str(tmp_path / "model")
    shutil.copytree(linear, model)
    incoming(0, 5)
    first = stream(model_uri=model)
    shutil.rmtree(model)
    publish(dense([[2.0], [20.0]]), model, matrix_layout("a", "b"))
    incoming(5, 10)
    second = stream(model_uri=model)
    found = scores()
    assert found["model_version"].tolist() == [first.model_version] * 5 + [second.model_version] * 5
    factor = np.array([1.0] * 5 + [2.0] * 5)
    assert np.allclose(found["prediction"], factor * (found["a"] + 10 * found["b"]))


def test_an_alias_is_looked_up_before_every_batch(incoming, stream, scores, linear, tmp_path, monkeypatch):
    alias = str(tmp_path / "production.alias")
    other = publish(dense([[2.0], [20.0]]), str(tmp_path / "other"), matrix_layout("a", "b"))
    first = aliases.set_alias(alias, linear)
    for start in (0, 5):
        incoming(start, start + 5)
    note = Batches._note

    def set_then_note(self: Batches, *given: Any) -> None:
        aliases.set_alias(alias, other)
        note(self, *given)

    monkeypatch.setattr(Batches, "_note", set_then_note)
    source = Source.files_stream(str(tmp_path / "incoming"), maxFilesPerTrigger="1")
    report = stream(model_uri=alias, source=source)
    assert (report.model_alias, report.model_uri) == (alias, other)
    assert report.stream["models"] == {first.model_version: 5, report.model_version: 5}
    files = scores().assign(file=lambda found: found["id"] // 5).groupby("file")["model_version"]
    assert files.nunique().tolist() == [1, 1]  # whichever of the two came first


def test_a_column_of_the_sources_own_that_is_called_raw_value_is_kept(stream, scores, tmp_path):
    folder = tmp_path / "incoming"
    folder.mkdir()
    table = pa.table({"id": [1], "a": [1.0], "b": pa.array([2], pa.int32()), "raw_value": ["mine"]})
    pq.write_table(table, folder / "1.parquet")
    stream()
    assert scores()["raw_value"].tolist() == ["mine"]


def test_a_model_that_does_not_fit_is_refused_and_the_old_one_goes_on(
    incoming, stream, scores, linear, tmp_path, monkeypatch, capfd
):
    """The old one's files are still there, for workers that have to load it."""
    alias = str(tmp_path / "production.alias")
    aliases.set_alias(alias, linear)
    others = [
        publish(dense([[1.0], [1.0]]), str(tmp_path / "misfit"), matrix_layout("a", "absent")),
        publish(dense([[1.0, 2.0], [1.0, 2.0]]), str(tmp_path / "wide"), matrix_layout("a", "b")),
        publish(dense([[3.0], [30.0]]), str(tmp_path / "good"), matrix_layout("a", "b")),
    ]
    for first in range(0, 20, 5):
        incoming(first, first + 5)
    note = Batches._note

    def swap_then_note(self: Batches, number: int, *given: Any) -> None:
        if number in (0, 1, 2):
            aliases.set_alias(alias, others.pop(0))
        note(self, number, *given)

    monkeypatch.setattr(Batches, "_note", swap_then_note)
    source = Source.files_stream(str(tmp_path / "incoming"), maxFilesPerTrigger="1")
    report = stream(model_uri=alias, source=source)
    out = capfd.readouterr().out
    assert out.count("is refused") == 2
    assert "MissingColumnError" in out
    assert "rows would have the columns" in out
    assert report.stream["batches"] == 4
    # Files that came within a millisecond may be scored in any order.
    first_version = directory.read_manifest(linear).version
    assert report.stream["models"] == {first_version: 15, report.model_version: 5}
    assert scores()["model_version"].value_counts().to_dict() == report.stream["models"]


def test_an_interval_goes_on_until_the_stop_file_is_there(incoming, stream, scores, tmp_path):
    incoming(0, 5)
    stop = tmp_path / ".checkpoint.stop"

    def more() -> None:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "checkpoint" / "commits").glob("0")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        incoming(5, 9)
        while not list((tmp_path / "checkpoint" / "commits").glob("1")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        stop.touch()

    thread = threading.Thread(target=more)
    thread.start()
    report = stream("1 second", {"stop_after_s": 240})
    thread.join()
    assert (report.rows, report.stream["batches"], report.stream["stopped"]) == (9, 2, "stop file")
    assert not stop.exists()
    assert scores()["id"].tolist() == list(range(9))


def test_an_interval_ends_after_its_time(incoming, stream, scores):
    incoming(0, 5)
    report = stream("1 second", {"stop_after_s": 5})
    assert report.stream["stopped"] == "stop_after_s"
    assert stream().rows + report.rows == 5  # however far it came
    assert scores()["id"].tolist() == list(range(5))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"source": Source.files_stream("{folder}/absent")}, SourceError, "read: .PATH_NOT_FOUND."),
        ({"source": Source.files_stream("{folder}/absent", schema="a DOUBLE")}, SourceError, "(?i)path"),
        (
            {"source": Source.files_stream("{folder}/empty", format="orc")},
            SourceError,
            "there are no orc files in it, by which its columns are known. Give it a schema",
        ),
        ({"source": Source.files_stream("{folder}", schema="a b c")}, InvalidJobError, "Spark's DDL"),
        (
            {"source": Source.files_stream("{folder}", schema="a STRUCT<b: VARCHAR(5)>")},
            InvalidJobError,
            r"varchar\(5\) is for tables alone; use STRING",
        ),
        (
            {"source": Source.files_stream("{folder}", schema="a INT, A INT")},
            InvalidJobError,
            "a more than once",
        ),
        ({"source": Source.files_stream("{folder}", schema="a DOUBLE")}, MissingColumnError, "'b'"),
        (
            {"source": Source.files_stream("{folder}", schema=f"{SCHEMA}, batch INT")},
            ColumnCollisionError,
            "batch",
        ),
        ({"keep_columns": ["absent"]}, MissingColumnError, "absent"),
        ({"prepare": "tests.integration.test_streams:with_version"}, ColumnCollisionError, "Model_Version"),
        ({"output_columns": {"prediction": "BATCH"}}, ColumnCollisionError, "'BATCH'"),
    ],
)
def test_what_cannot_work_is_refused_before_the_stream_begins(
    incoming, stream, tmp_path, changes, error, match
):
    incoming(0, 1)
    (tmp_path / "incoming" / "empty").mkdir()
    if source := changes.get("source"):
        uri = source.uri.format(folder=tmp_path / "incoming")
        changes = {"source": dataclasses.replace(source, uri=uri)}
    with pytest.raises(error, match=match):
        stream(**changes)
    assert not (tmp_path / "checkpoint").exists()


def test_a_column_may_be_called_as_a_type_that_is_refused(incoming, stream, tmp_path):
    incoming(0, 3)
    source = Source.files_stream(str(tmp_path / "incoming"), schema=f"{SCHEMA}, `char(5)` STRING")
    assert stream(source=source, keep_columns=["id"]).rows == 3


# --- Kafka -------------------------------------------------------------------------------------------------


def events(first: int, last: int) -> list[tuple[bytes, bytes]]:
    return [
        (f"key {n}".encode(), json.dumps({"id": n, "a": float(n), "b": n % 7}).encode())
        for n in range(first, last)
    ]


def test_messages_are_drained_and_drained_again_every_key_once(kafka: Kafka, stream, scores):
    topic = kafka.topic(partitions=2)
    source = Source.kafka(kafka.bootstrap, topic, schema=SCHEMA)
    kafka.produce(topic, events(0, 50), headers=[("from", b"test")])
    first = stream(source=source, options={"max_rows_per_trigger": 20})
    assert (first.rows, first.rows_in, first.stream["lag"]) == (50, 50, 0)
    assert first.stream["batches"] == 3
    assert sum(first.source["offsets"][topic].values()) == 50
    kafka.produce(topic, events(50, 60))
    assert stream(source=source).rows == 10
    found = scores()
    assert found["id"].tolist() == list(range(60))
    assert found["kafka_key"].tolist() == [f"key {n}".encode() for n in range(60)]
    assert np.allclose(found["prediction"], found["a"] + 10 * found["b"])
    assert set(found["kafka_topic"]) == {topic}
    assert Counter(found["kafka_partition"]) == Counter(
        {int(number): offset for number, offset in stream(source=source).source["offsets"][topic].items()}
    )
    assert found["kafka_headers"][0][0]["key"] == "from"
    assert found["kafka_timestamp"].notna().all()


@pytest.mark.parametrize("schema", [SCHEMA, f"{SCHEMA}, at TIMESTAMP"], ids=["by workers", "by Spark"])
@pytest.mark.parametrize("kept", ["kafka_key", "kafka_headers"])
def test_what_is_kept_of_a_message_beside_its_value_is_there(kafka: Kafka, stream, scores, schema, kept):
    topic = kafka.topic()
    kafka.produce(topic, events(0, 3), headers=[("from", b"test")])
    stream(source=Source.kafka(kafka.bootstrap, topic, schema=schema), keep_columns=["id", kept])
    found = scores()
    assert {"kafka_key", "kafka_headers"} & set(found.columns) == {kept}
    expected = {"kafka_key": b"key 2", "kafka_headers": [{"key": "from", "value": b"test"}]}
    value = found[kept][2]
    assert (value if kept == "kafka_key" else [*value]) == expected[kept]


@pytest.mark.parametrize("schema", [SCHEMA, f"{SCHEMA}, at TIMESTAMP"], ids=["by workers", "by Spark"])
def test_poison_is_set_aside_as_it_came_and_no_password_is_told(kafka: Kafka, stream, scores, capfd, schema):
    topic = kafka.topic()
    poison = [b"{", b"\xff\xfe", b"{'id': 0, 'a': 1.0, 'b': 1}", b"", b"[]", b"null"]
    one = b'{"id": 0, "a": 1.0, "b": 1}'
    poison += [one + one, one + b"\n," + one, one + b" and more", one + b'"}']
    kafka.produce(topic, [*events(0, 5), *((b"poison", value) for value in poison), (b"tombstone", None)])
    kafka.produce(topic, [(b"null", b'{"id": 9, "b": 1}'), *events(5, 8)])
    source = Source.kafka("events", topic, schema=schema)
    login = 'org.apache.kafka.common.security.plain.PlainLoginModule required username="u" password="hush-1";'
    access = {"events": {"kafka.bootstrap.servers": kafka.bootstrap, "kafka.sasl.jaas.config": login}}
    with pytest.raises(UndecodableError, match="11 of 20 rows"):
        stream(source=source, access=access, keep_columns=["id"], batch_rows=100)
    report = stream(source=source, access=access, keep_columns=["id"], on_bad_row="quarantine")
    assert (report.rows_in, report.rows, report.rows_quarantined) == (20, 8, 12)
    found = scores()
    assert found["id"].tolist() == list(range(8))
    assert set(found.columns) == {"id", "prediction", "model_version", "batch"}
    letters = pq.read_table(report.quarantine_uri).to_pandas().sort_values("kafka_offset")
    assert letters["kafka_offset"].tolist() == list(range(5, 17))
    assert letters["raw_value"].tolist() == [*poison, None, None]
    assert letters["reason"].tolist()[:11] == ["the value is not JSON of the schema"] * 10 + [
        "the message has no value"
    ]
    assert "'a'" in letters["reason"].tolist()[11]
    told = capfd.readouterr()
    assert "hush-1" not in told.out + told.err


def parquet(ids: list[int]) -> bytes:
    sink = pa.BufferOutputStream()
    columns = {"id": ids, "a": [float(n) for n in ids], "b": [n % 7 for n in ids]}
    moments = pa.array([1_700_000_000_000_000 + n for n in ids], pa.timestamp("us", "UTC"))
    pq.write_table(pa.table({**columns, "at": moments}), sink)
    return sink.getvalue().to_pybytes()


def test_messages_that_are_parquet_files_give_all_of_their_rows(kafka: Kafka, stream, scores):
    topic = kafka.topic()
    kafka.produce(topic, [(b"x", parquet([0, 1, 2])), (b"y", b"no file"), (b"z", parquet([3, 4]))])
    source = Source.kafka(kafka.bootstrap, topic, payload="parquet", schema=f"{SCHEMA}, at TIMESTAMP")
    report = stream(source=source, on_bad_row="quarantine", keep_columns=["id", "at", "kafka_offset"])
    assert (report.rows_in, report.rows, report.rows_quarantined) == (6, 5, 1)
    found = scores()
    assert found["id"].tolist() == [0, 1, 2, 3, 4]
    assert found["prediction"].tolist() == [n + 10.0 * (n % 7) for n in range(5)]
    assert found["kafka_offset"].tolist() == [0, 0, 0, 2, 2]
    assert [int(at.timestamp() * 1e6) % 10 for at in found["at"]] == [0, 1, 2, 3, 4]
    assert pq.read_table(report.quarantine_uri)["raw_value"].to_pylist() == [b"no file"]


@pytest.mark.parametrize(
    ("payload", "frame"),
    [("avro", b""), ("confluent-avro", b"\x00\x00\x00\x00\x07")],
    ids=["plain", "of Confluent"],
)
def test_avro_messages(kafka: Kafka, stream, scores, payload, frame):
    schema = {
        "type": "record",
        "name": "event",
        "fields": [
            {"name": "id", "type": "long"},
            {"name": "a", "type": "double"},
            {"name": "b", "type": ["null", "int"]},
        ],
    }

    def encoded(id: int, a: float, b: int | None) -> bytes:
        """As Avro writes them: small numbers doubled, a union's branch before its value."""
        value = struct.pack("<d", a) + (b"\x00" if b is None else bytes([2, 2 * b]))
        return frame + bytes([2 * id]) + value

    topic = kafka.topic()
    of_another_frame = b"\x01" + encoded(id=1, a=2.0, b=3)[1:] if frame else b"\x02"
    values = [encoded(id=1, a=2.0, b=3), of_another_frame, encoded(id=2, a=1.0, b=None)]
    kafka.produce(topic, [(None, value) for value in values])
    source = Source.kafka(kafka.bootstrap, topic, payload=payload, schema=json.dumps(schema))
    report = stream(source=source, on_bad_row="quarantine")
    assert (report.rows, report.rows_quarantined) == (1, 2)
    assert scores()["prediction"].tolist() == [32.0]
    letters = pq.read_table(report.quarantine_uri).to_pandas().sort_values("kafka_offset")
    assert letters["raw_value"].tolist() == [of_another_frame, None]


def test_scores_go_into_a_topic_with_an_id_that_a_second_sending_shares(kafka: Kafka, stream, monkeypatch):
    topic, scored = kafka.topic(), kafka.topic()
    kafka.produce(topic, events(0, 6), headers=[("trace", b"1")])
    given = {
        "source": Source.kafka(kafka.bootstrap, topic, schema=SCHEMA),
        "sink": Sink.kafka(kafka.bootstrap, scored),
        "keep_columns": ["id"],
        "on_bad_row": "drop",
    }
    with monkeypatch.context() as patched:
        patched.setattr(Batches, "_note", lambda *_given: (_ for _ in ()).throw(MemoryError("it dies here")))
        with pytest.raises(MemoryError):
            stream(**given)
    report = stream(**given)
    assert (report.rows, report.output_uri) == (6, scored)
    sent = kafka.consume(scored)
    assert len(sent) == 12
    by_id = {json.loads(record.value)["hydrogen_id"]: record for record in sent}
    assert len(by_id) == 6
    values = {
        n: json.loads(record.value) for n, record in enumerate(sorted(by_id.values(), key=lambda r: r.key))
    }
    assert values[3] == {
        "id": 3,
        "prediction": 33.0,
        "model_version": report.model_version,
        "hydrogen_id": values[3]["hydrogen_id"],
    }
    assert values[3]["hydrogen_id"].endswith(f"/{topic}/0/3")
    assert {record.key for record in sent} == {f"key {n}".encode() for n in range(6)}
    assert {record.headers for record in sent} == {(("trace", b"1"),)}


def test_the_quarantine_beside_a_topic_keeps_the_bad_rows_of_every_batch(kafka: Kafka, stream, tmp_path):
    topic, scored = kafka.topic(), kafka.topic()
    kafka.produce(topic, [(b"bad", b"no json")])
    given = {
        "source": Source.kafka(kafka.bootstrap, topic, schema=SCHEMA),
        "sink": Sink.kafka(kafka.bootstrap, scored),
        "on_bad_row": "quarantine",
        "quarantine": Sink.parquet(str(tmp_path / "letters")),
    }
    assert stream(**given).rows_quarantined == 1
    kafka.produce(topic, events(0, 3))
    report = stream(**given)
    assert (report.rows, report.rows_quarantined) == (3, 0)
    assert len(kafka.consume(scored)) == 3
    letters = pq.read_table(report.quarantine_uri).to_pandas()
    assert [(row.raw_value, int(row.batch)) for row in letters.itertuples()] == [(b"no json", 0)]


def test_the_checkpoint_of_another_topic_or_of_another_query_is_refused(kafka: Kafka, stream, tmp_path):
    topic, other = kafka.topic(), kafka.topic()
    kafka.produce(topic, events(0, 3))
    assert stream(source=Source.kafka(kafka.bootstrap, topic, schema=SCHEMA)).rows == 3
    with pytest.raises(
        CheckpointMismatchError, match=f"from kafka {topic} into .*and not from kafka {other}"
    ):
        stream(source=Source.kafka(kafka.bootstrap, other, schema=SCHEMA))
    (tmp_path / "checkpoint" / "hydrogen.json").unlink()
    with pytest.raises(CheckpointMismatchError, match="is that of a query that this package has not started"):
        stream(source=Source.kafka(kafka.bootstrap, topic, schema=SCHEMA))


def test_messages_that_are_gone_before_they_were_scored_are_told(kafka: Kafka, stream, scores):
    topic = kafka.topic()
    source = Source.kafka(kafka.bootstrap, topic, schema=SCHEMA)
    kafka.produce(topic, events(0, 3))
    assert stream(source=source).rows == 3
    kafka.produce(topic, events(3, 9))
    kafka.forget(topic, before=5)
    with pytest.raises(SourceError, match="data may have been lost .*failOnDataLoss='false'"):
        stream(source=source)
    assert scores()["id"].tolist() == [0, 1, 2]


def test_brokers_that_let_nobody_in_are_told_and_no_password_is(kafka: Kafka, stream, tmp_path, monkeypatch):
    monkeypatch.setattr(kafka_client, "ANSWER_S", 4)

    def login(password: str) -> dict[str, str]:
        module = "org.apache.kafka.common.security.plain.PlainLoginModule"
        return {
            "kafka.bootstrap.servers": kafka.secured,
            "kafka.security.protocol": "SASL_PLAINTEXT",
            "kafka.sasl.mechanism": "PLAIN",
            "kafka.sasl.jaas.config": f'{module} required username="{USER}" password="{password}";',
        }

    topic = kafka.topic()
    access = {
        "right": login(PASSWORD),
        "wrong": login("geheim"),
        "nobody": {"kafka.bootstrap.servers": kafka.secured},
    }
    said = {
        "wrong": "at wrong cannot be (read|written): Authentication failed: Invalid username or password$",
        "nobody": "no broker answered within 4 s; are bootstrap.servers and security.protocol right",
    }
    for name, match in said.items():
        with pytest.raises(SourceError, match=match) as told:
            stream(source=Source.kafka(name, topic, schema=SCHEMA), access=access)
        assert "geheim" not in str(told.value)
    right = Source.kafka("right", topic, schema=SCHEMA)
    with pytest.raises(TopicError, match=said["wrong"]):
        stream(source=right, sink=Sink.kafka("wrong", topic), access=access)
    assert not (tmp_path / "checkpoint").exists()
    kafka.produce(topic, events(0, 3))
    assert stream(source=right, access=access).rows == 3


def test_a_topic_that_was_made_anew_is_another_one(kafka: Kafka, stream):
    topic = kafka.topic()
    kafka.produce(topic, events(0, 3))
    source = Source.kafka(kafka.bootstrap, topic, schema=SCHEMA)
    assert stream(source=source).rows == 3
    kafka.remove(topic)
    kafka.topic(name=topic)
    kafka.produce(topic, events(0, 5))
    with pytest.raises(CheckpointMismatchError, match="was made anew since"):
        stream(source=source)


def test_rows_that_share_an_id_are_not_sent(kafka: Kafka, stream):
    topic, scored = kafka.topic(), kafka.topic()
    kafka.produce(topic, events(0, 3))
    with pytest.raises(MessageIdError, match="3 rows .* have 2 values of hydrogen_id"):
        stream(
            source=Source.kafka(kafka.bootstrap, topic, schema=SCHEMA),
            sink=Sink.kafka(kafka.bootstrap, scored),
            prepare="tests.integration.test_streams:spread",
        )
    assert kafka.consume(scored) == []


def test_what_prepare_loses_of_a_message_is_told_before_the_stream_begins(kafka: Kafka, stream, tmp_path):
    topic, scored = kafka.topic(), kafka.topic()
    with pytest.raises(EntrypointError, match="without kafka_key"):
        stream(
            source=Source.kafka(kafka.bootstrap, topic, schema=SCHEMA),
            sink=Sink.kafka(kafka.bootstrap, scored),
            prepare="tests.integration.test_streams:without_key",
        )
    assert not (tmp_path / "checkpoint").exists()


def test_brokers_that_do_not_take_what_is_sent_are_tried_again(kafka: Kafka, spark, tmp_path):
    rows = spark.sql("SELECT 'x' AS hydrogen_id, binary('k') AS kafka_key, 1 AS a").withColumn(
        "kafka_headers", functions.expr("cast(null AS array<struct<key: string, value: binary>>)")
    )
    down = f"127.0.0.1:{daemons.free_port('127.0.0.1')}"
    access = {"events": {"kafka.bootstrap.servers": down, "kafka.max.block.ms": "2000"}}
    sink = dataclasses.replace(Sink.kafka("events", "scores"), work_uri=str(tmp_path / "outbox"))
    with kafka_sink.placing(spark, sink, None, access) as messages:
        messages.stage(rows, None)
        with pytest.raises(TopicError, match="cannot be written") as caught:
            messages.commit(rows=1, model=None)
    assert caught.value.retryable


def test_a_topic_that_is_not_there_and_a_broker_that_does_not_answer(
    kafka: Kafka, stream, tmp_path, monkeypatch
):
    absent = Source.kafka(kafka.bootstrap, "absent", schema=SCHEMA)
    with pytest.raises(SourceError, match="there is no topic 'absent'"):
        stream(source=absent)
    topic = kafka.topic()
    there = Source.kafka(kafka.bootstrap, topic, schema=SCHEMA)
    with pytest.raises(TopicError, match="there is no topic 'absent'"):
        stream(source=there, sink=Sink.kafka(kafka.bootstrap, "absent"))
    with pytest.raises(InvalidJobError, match="Spark's DDL"):
        stream(source=Source.kafka(kafka.bootstrap, topic, schema="no ddl at all"))
    with pytest.raises(InvalidJobError, match="the JSON of an Avro record"):
        stream(source=Source.kafka(kafka.bootstrap, topic, payload="avro", schema="a INT"))
    monkeypatch.setattr(kafka_client, "ANSWER_S", 4)
    down = Source.kafka(f"127.0.0.1:{daemons.free_port('127.0.0.1')}", "t", schema=SCHEMA)
    with pytest.raises(SourceError, match="no broker answered within 4 s"):
        stream(source=down)
    assert not (tmp_path / "checkpoint").exists()


# --- Delta -------------------------------------------------------------------------------------------------


def test_what_is_no_delta_table_is_told(warehouse: Any, stream, incoming, tmp_path, monkeypatch):
    monkeypatch.setattr(streams, "scoring_session", lambda *_given: warehouse)
    incoming(0, 5)
    for folder in ("absent", "incoming"):
        with pytest.raises(SourceError, match="cannot be read: there is no Delta table in this folder$"):
            stream(source=Source.delta_stream(str(tmp_path / folder)))
    assert not (tmp_path / "checkpoint").exists()


def test_what_is_appended_to_a_delta_table_is_scored_once(
    warehouse: Any, stream, scores, tmp_path, monkeypatch
):
    monkeypatch.setattr(streams, "scoring_session", lambda *_given: warehouse)
    table = str(tmp_path / "table")

    def append(first: int, last: int) -> None:
        rows = warehouse.sql(f"SELECT id, double(id) AS a, int(id % 7) AS b FROM range({first}, {last})")
        rows.write.format("delta").mode("append").save(table)

    append(0, 5)
    append(5, 10)
    source = Source.delta_stream(table, version=1)
    assert stream(source=source).rows == 5
    append(10, 12)
    assert stream(source=source).rows == 2
    found = scores()
    assert found["id"].tolist() == list(range(5, 12))
    assert np.allclose(found["prediction"], found["a"] + 10 * found["b"])
    warehouse.sql(f"DELETE FROM delta.`{table}` WHERE id = 6")
    with pytest.raises(SourceError, match=r"cannot be read: \[DELTA_SOURCE_TABLE_IGNORE_CHANGES\] Detected"):
        stream(source=source)
    assert scores().equals(found)


@pytest.fixture
def into_delta(warehouse: Any, stream, tmp_path: Path, monkeypatch) -> Callable[..., InferenceReport]:
    """Run a stream of lines of JSON into a Delta table, whose bad ones are quarantined."""
    monkeypatch.setattr(streams, "scoring_session", lambda *_given: warehouse)
    given = {
        "source": Source.files_stream(str(tmp_path / "incoming"), format="json", schema=SCHEMA),
        "sink": Sink.delta(str(tmp_path / "table")),
        "on_bad_row": "quarantine",
    }
    return lambda **changes: stream(**{**given, **changes})


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., None]:
    """Files of JSON that come into a folder; the last line of each is none."""
    folder = tmp_path / "incoming"
    folder.mkdir()

    def arrive(first: int, last: int) -> None:
        found = [json.dumps({"id": n, "a": float(n), "b": n % 7}) for n in range(first, last)]
        (folder / f".{first}").write_text("\n".join([*found, f"poison {first}"]))
        (folder / f".{first}").rename(folder / f"{first}.json")

    return arrive


@pytest.fixture
def table(warehouse: Any, tmp_path: Path) -> Callable[[], list[int]]:
    """The ids in the Delta table."""
    return lambda: sorted(
        row.id for row in warehouse.read.format("delta").load(f"{tmp_path}/table").collect()
    )


def dies(*_given: Any, **_more: Any) -> Any:
    raise MemoryError("it dies here")


def test_a_delta_table_has_every_row_once_wherever_the_driver_dies(
    warehouse, lines, into_delta, table, tmp_path, monkeypatch, capfd
):
    lines(0, 5)
    with monkeypatch.context() as patched:
        patched.setattr(delta_files.Transaction, "commit", dies)
        with pytest.raises(MemoryError):
            into_delta()
    assert table() == []  # it is made, and the bad rows are in their place
    with monkeypatch.context() as patched:
        patched.setattr(Batches, "_note", dies)
        with pytest.raises(MemoryError):
            into_delta()
    assert table() == list(range(5))  # committed, and Spark does not know
    lines(5, 8)
    report = into_delta()
    assert "batch 0 is left out" in capfd.readouterr().out
    assert (report.rows, report.rows_quarantined, report.stream["last_batch"]) == (3, 1, 1)
    assert table() == list(range(8))
    letters = pq.read_table(report.quarantine_uri).to_pandas()
    assert dict(zip(letters["raw_value"], letters["batch"].astype(int), strict=True)) == {
        "poison 0": 0,
        "poison 5": 1,
    }
    found = warehouse.read.format("delta").load(report.output_uri).toPandas()
    assert np.allclose(found["prediction"], found["a"] + 10 * found["b"])
    assert set(found["model_version"]) == {report.model_version}
    assert list(found.columns) == ["id", "a", "b", "prediction", "model_version"]
    history = warehouse.sql(f"describe history delta.`{report.output_uri}`").toPandas()
    assert json.loads(history["userMetadata"][0])["batch"]["number"] == 1


def test_a_batch_that_another_try_has_committed_meanwhile_is_not_added_again(
    lines, into_delta, table, monkeypatch
):
    """Both have found that it is to come; Delta itself lets one of them in."""
    lines(0, 5)
    with monkeypatch.context() as patched:
        patched.setattr(Batches, "_note", dies)
        with pytest.raises(MemoryError):
            into_delta()
        patched.undo()
        patched.setattr(placements, "batches", lambda *_given: {})
        patched.setattr(delta.Rows, "_require_next", lambda _self: None)
        with pytest.raises(PartitionTakenError):
            into_delta()
    assert table() == list(range(5))
    assert into_delta().rows == 0


def test_a_checkpoint_that_is_not_that_of_a_delta_tables_batches_is_refused(
    lines, into_delta, table, tmp_path
):
    lines(0, 3)
    into_delta()
    lines(3, 5)
    shutil.copytree(tmp_path / "checkpoint", tmp_path / "old")
    into_delta()
    kept = tmp_path / "kept"
    (tmp_path / "checkpoint").rename(kept)
    with pytest.raises(CheckpointMismatchError, match="is not that of the stream that has written delta"):
        into_delta()
    (tmp_path / "old").rename(tmp_path / "checkpoint")
    with pytest.raises(CheckpointMismatchError, match="was set back: delta .* has batch 1"):
        into_delta()
    shutil.rmtree(tmp_path / "checkpoint")
    kept.rename(tmp_path / "checkpoint")
    shutil.move(tmp_path / "table", tmp_path / "moved")
    with pytest.raises(CheckpointMismatchError, match="goes on after batch 1, and delta .* has none"):
        into_delta()
    assert not (tmp_path / "table").exists()
    shutil.move(tmp_path / "moved", tmp_path / "table")
    lines(5, 6)
    assert into_delta().rows == 1
    assert table() == list(range(6))


def test_a_delta_table_that_changes_while_a_stream_writes_it(
    warehouse, lines, into_delta, table, tmp_path, monkeypatch
):
    lines(0, 2)
    source = Source.files_stream(
        str(tmp_path / "incoming"), format="json", schema=SCHEMA, maxFilesPerTrigger="1"
    )
    into_delta()
    # Others add rows, and a batch goes in between them.
    others = (
        warehouse.read.format("delta")
        .load(f"{tmp_path}/table")
        .selectExpr("bigint(-1) as id", "* except (id)")
    )
    write, commit = delta_files.Transaction.commit, delta.Rows.commit

    def overtaken(self: delta_files.Transaction, *given: Any) -> None:
        others.limit(1).write.format("delta").mode("append").save(f"{tmp_path}/table")
        write(self, *given)

    lines(2, 4)
    with monkeypatch.context() as patched:
        patched.setattr(delta_files.Transaction, "commit", overtaken)
        assert into_delta(source=source).rows == 2
    assert table() == [-1, 0, 1, 2, 3]
    # It gets a column more: nothing of the batch is there, until somebody takes it away again.
    lines(4, 6)
    warehouse.sql(f"alter table delta.`{tmp_path}/table` add column extra int")
    with pytest.raises(TableMismatchError, match="'extra' is not among the scored ones"):
        into_delta(source=source)
    warehouse.sql(f"restore table delta.`{tmp_path}/table` to version as of 3")
    assert table() == [-1, 0, 1, 2, 3]

    # It is dropped in mid-batch: no new one is made of the rows that are left.
    def dropped(self: delta.Rows, **given: Any) -> Any:
        shutil.rmtree(tmp_path / "table")
        return commit(self, **given)

    with monkeypatch.context() as patched:
        patched.setattr(delta.Rows, "commit", dropped)
        with pytest.raises(BatchesLostError, match="has none of its stream's batches, and batch 2"):
            into_delta(source=source)
    assert not (tmp_path / "table" / "_delta_log").exists()


def test_streams_share_a_delta_table_by_partitions(warehouse, lines, into_delta, table, tmp_path):
    lines(0, 2)
    uri = str(tmp_path / "table")
    for name in ("a", "b"):
        options = {"checkpoint_uri": str(tmp_path / name)}
        into_delta(sink=Sink.delta(uri, partition={"source": name}), options=options)
    assert table() == [0, 0, 1, 1]
    with pytest.raises(CheckpointMismatchError, match="into"):
        into_delta(
            sink=Sink.delta(uri, partition={"source": "b"}), options={"checkpoint_uri": f"{tmp_path}/a"}
        )


def test_two_streams_that_begin_a_delta_table_at_the_same_time_are_told(
    lines, into_delta, table, tmp_path, monkeypatch
):
    lines(0, 2)
    into_delta(options={"checkpoint_uri": str(tmp_path / "one")}, on_bad_row="drop")
    with monkeypatch.context() as patched:
        patched.setattr(placements, "batches", lambda *_given: {})  # as if none had been there yet
        with pytest.raises(SinkError, match="has batches of another stream.* no row of batch 0 was written"):
            into_delta(on_bad_row="drop")
        assert table() == [0, 1]
        patched.setattr(delta.Rows, "_require_next", lambda _self: None)
        into_delta(on_bad_row="drop")
    assert table() == [0, 0, 1, 1]
    for checkpoint in ("one", "checkpoint"):
        with pytest.raises(CheckpointMismatchError, match="2 streams have begun it at the same time"):
            into_delta(options={"checkpoint_uri": str(tmp_path / checkpoint)}, on_bad_row="drop")


def two_of_one(spark: Any, rows: Any) -> Any:
    """A `prepare` that makes two rows of every message."""
    return rows.union(rows)


def test_of_the_rows_of_a_key_the_last_one_is_merged_into_a_delta_table(
    kafka: Kafka, warehouse, stream, table, tmp_path, monkeypatch
):
    monkeypatch.setattr(streams, "scoring_session", lambda *_given: warehouse)
    topic = kafka.topic(partitions=2)
    for partition in (0, 1):
        ids = (1, 2, 1) if partition == 0 else (3, 3, 4)
        values = [json.dumps({"id": n, "a": float(at), "b": 0}).encode() for at, n in enumerate(ids)]
        kafka.produce(topic, [(None, value) for value in values], partition)
    given = {
        "source": Source.kafka(kafka.bootstrap, topic, schema=SCHEMA),
        "sink": Sink.delta(str(tmp_path / "table"), mode="merge", keys=["id"]),
        "keep_columns": ["id"],
    }
    with monkeypatch.context() as patched:
        patched.setattr(Batches, "_note", dies)
        with pytest.raises(MemoryError):
            stream(**given)
    kafka.produce(topic, [(None, b'{"id": 4, "a": 9.0, "b": 0}'), (None, b'{"id": 5, "a": 7.0, "b": 0}')])
    assert stream(**given).rows == 2
    found = warehouse.read.format("delta").load(f"{tmp_path}/table")
    assert found.columns == ["id", "prediction", "model_version"]
    assert {row.id: row.prediction for row in found.collect()} == {1: 2.0, 2: 1.0, 3: 1.0, 4: 9.0, 5: 7.0}
    kafka.produce(topic, [(None, b'{"id": 6, "a": 1.0, "b": 0}')])
    with pytest.raises(MergeKeysError, match="1 keys stand more than once"):
        stream(**given, prepare="tests.integration.test_streams:two_of_one")
    assert table() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("server", ["postgres", "mariadb"])
def test_of_the_rows_of_a_key_the_last_one_is_merged_into_a_database(
    kafka: Kafka, stream, server, request, monkeypatch, tmp_path
):
    database = request.getfixturevalue(server).database()
    topic = kafka.topic()

    def say(*rows: tuple[str | None, float]) -> None:
        kafka.produce(topic, [(None, json.dumps({"name": n, "a": a, "b": 0}).encode()) for n, a in rows])

    def found() -> dict[str, float]:
        return dict(database.rows("SELECT name, prediction FROM scores"))

    given = {
        "source": Source.kafka(kafka.bootstrap, topic, schema="name STRING, a DOUBLE, b INT"),
        "sink": Sink.jdbc("shop", table="scores", mode="merge", keys=["name"]),
        "access": {"shop": database.options},
        "keep_columns": ["name"],
        "on_bad_row": "quarantine",
        "quarantine": Sink.parquet(str(tmp_path / "letters")),
    }
    say(("x", 1.0), ("y", 2.0), ("x", 3.0))
    kafka.produce(topic, [(None, b"poison")])
    with monkeypatch.context() as patched:
        patched.setattr(Batches, "_note", dies)
        with pytest.raises(MemoryError):
            stream(**given)
    assert found() == {"x": 3.0, "y": 2.0}
    say(("z", 5.0), ("y", 4.0), ("y", 6.0))
    report = stream(**given)
    assert (report.rows, report.rows_quarantined, report.stream["batches"]) == (6, 1, 2)
    assert found() == {"x": 3.0, "y": 6.0, "z": 5.0}
    assert pq.read_table(tmp_path / "letters")["raw_value"].to_pylist() == [b"poison"]
    say((None, 1.0), ("x", 7.0))
    with pytest.raises(MergeKeysError, match="1 rows have a key that is null"):
        stream(**given)
    assert found() == {"x": 3.0, "y": 6.0, "z": 5.0}
    database.execute("ALTER TABLE scores DROP COLUMN model_version")
    with pytest.raises(TableMismatchError, match="it has no column 'model_version'"):
        stream(**given)
    database.execute("DROP TABLE scores")
    with pytest.raises(BatchesLostError, match="none of its stream's batches, and batch 2"):
        stream(**given)
    names = "SELECT table_name FROM information_schema.tables WHERE table_name LIKE 'hydrogen%'"
    assert database.rows(names) == []


def test_a_key_that_stands_twice_in_files_is_refused(lines, into_delta, table, tmp_path):
    lines(0, 2)
    given = {"sink": Sink.delta(str(tmp_path / "table"), mode="merge", keys=["b"])}
    assert into_delta(**given).rows == 2
    lines(6, 14)
    with pytest.raises(MergeKeysError, match="1 keys stand more than once"):
        into_delta(**given)
    assert table() == [0, 1]


def test_what_a_delta_table_does_not_hold_is_refused_before_the_stream_begins(
    warehouse, lines, into_delta, tmp_path
):
    lines(0, 2)
    warehouse.sql(f"create table delta.`{tmp_path}/table` (id bigint, a string) using delta")
    with pytest.raises(TableMismatchError, match="'a' is string.*double"):
        into_delta(keep_columns=["id", "a"])
    assert not (tmp_path / "checkpoint").exists()
