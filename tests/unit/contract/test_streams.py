from __future__ import annotations

import dataclasses

import pytest

from airflow_hydrogen.contract import jobs
from airflow_hydrogen.contract.errors import InvalidJobError, InvalidUriError
from airflow_hydrogen.contract.jobs import Entrypoint, InferenceJob, Run, Sink, Source, TrainJob
from airflow_hydrogen.contract.streams import Batch, StreamOptions

EVENTS = Source.kafka("broker:9092", "events", schema="a DOUBLE")
FILES = Source.files_stream("/lake/incoming")


def options(**changes: object) -> StreamOptions:
    return StreamOptions(**{"trigger": "available_now", "checkpoint_uri": "/lake/checkpoint", **changes})


def job(**changes: object) -> InferenceJob:
    fields = {
        "model_uri": "/models/m",
        "source": EVENTS,
        "sink": Sink.parquet("/lake/scores"),
        "report_uri": "/tmp/report.json",
        "stream": options(),
    }
    return InferenceJob(**{**fields, **changes})


@pytest.mark.parametrize(
    "given",
    [
        job(),
        job(source=FILES, stream=options(trigger="30 seconds", stop_after_s=1.5)),
        job(source=Source.delta_stream("/lake/t", version=3)),
        job(sink=Sink.kafka("events", "scores"), stream=options(max_rows_per_trigger=10)),
        job(sink=Sink.jdbc("shop", table="t", mode="merge", keys=["id"])),
        job(sink=Sink.delta("/lake/t", mode="merge", keys=["id"], partition={"from": "a"})),
        job(source=Source.kafka("events", "t", payload="avro", schema="{}", startingOffsets="latest")),
    ],
)
def test_a_job_of_a_stream_survives_its_file(given):
    assert jobs.loads(jobs.dumps(given)) == given


def test_what_has_no_port_is_a_connection():
    assert (EVENTS.servers, EVENTS.conn_id) == ("broker:9092", None)
    assert Source.kafka("events", "t", schema="a INT").conn_id == "events"
    assert (Sink.kafka("a:1,b:2", "t").servers, Sink.kafka("events", "t").conn_id) == ("a:1,b:2", "events")
    assert str(EVENTS) == "kafka events at broker:9092"


def test_the_file_that_ends_a_stream_is_beside_its_checkpoint():
    assert options().stop_uri == "/lake/.checkpoint.stop"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"trigger": "now"}, "trigger must be 'available_now' or an interval"),
        ({"trigger": "0 seconds"}, "trigger must be"),
        ({"trigger": "30"}, "trigger must be"),
        ({"checkpoint_uri": ""}, "checkpoint_uri must name a folder"),
        ({"max_rows_per_trigger": 0}, "at least 1"),
        ({"max_rows_per_trigger": True}, "must be an integer"),
        ({"stop_after_s": 0}, "more than 0 seconds"),
        ({"stop_after_s": float("inf")}, "more than 0 seconds"),
    ],
)
def test_options_that_cannot_work(changes, match):
    with pytest.raises(InvalidJobError, match=match):
        options(**changes)


def test_a_checkpoint_is_no_bucket():
    with pytest.raises(InvalidUriError, match="checkpoint_uri"):
        options(checkpoint_uri="s3://bucket")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"stream": None}, "is a stream: say by trigger"),
        ({"source": Source.parquet("/lake/t")}, "is for streams, and source parquet '/lake/t' is none"),
        ({"sink": Sink.delta("/lake/t", mode="append")}, "found delta with mode='append'"),
        ({"sink": Sink.jdbc("shop", table="t")}, "found jdbc with mode='replace'"),
        (
            {
                "source": Source.kafka("events", "t", payload="parquet", schema="id INT"),
                "sink": Sink.delta("/lake/t", mode="merge", keys=["id"]),
            },
            "which all rows of a message of payload='parquet' share",
        ),
        ({"sink": Sink.hive("lake.t", partition={"ds": "1"})}, "found hive with mode='replace'"),
        ({"sink": Sink.parquet("/lake/t", mode="append")}, "found parquet with mode='append'"),
        ({"source": FILES, "sink": Sink.kafka("b:1", "t"), "quarantine": None}, "by their offsets"),
        (
            {"sink": Sink.parquet("/lake/t", mode="append"), "run": Run(dag_id="d", task_id="t", run_id="r")},
            "found parquet with mode='append'",
        ),
        ({"sink": Sink.kafka("broker:9092", "events")}, "is the source as well"),
        ({"source": Source.delta_stream("/lake/t"), "sink": Sink.delta("/lake/t")}, "read what it writes"),
        (
            {"sink": Sink.delta("/lake"), "stream": options()},
            "checkpoint_uri .* and sink .* lie in each other",
        ),
        ({"source": FILES, "sink": Sink.parquet("/lake/incoming/scores")}, "read what it writes"),
        ({"source": FILES, "sink": Sink.parquet("/lake")}, "read what it writes"),
        (
            {
                "source": FILES,
                "on_bad_row": "quarantine",
                "quarantine": Sink.parquet("file:///lake/incoming/bad"),
            },
            "and quarantine .* read what it writes",
        ),
        ({"sink": Sink.parquet("/lake/t", partition={"batch": "1"})}, "which a stream adds itself"),
        ({"source": FILES, "stream": options(max_rows_per_trigger=5)}, "maxFilesPerTrigger"),
        (
            {"stream": options(checkpoint_uri="/lake/scores/c")},
            "checkpoint_uri .* and sink .* lie in each other",
        ),
        (
            {"source": FILES, "stream": options(checkpoint_uri="/lake/incoming/c")},
            "and source .* lie in each",
        ),
        (
            {"on_bad_row": "quarantine", "stream": options(checkpoint_uri="/lake/scores_quarantine/c")},
            "and quarantine .* lie in each",
        ),
    ],
)
def test_jobs_that_cannot_work(changes, match):
    with pytest.raises(InvalidJobError, match=match):
        job(**changes)


def test_a_batch_job_does_not_write_into_a_topic():
    with pytest.raises(InvalidJobError, match="takes the rows of a Kafka stream"):
        job(source=Source.parquet("/lake/t"), sink=Sink.kafka("b:1", "t"), stream=None)


def test_the_job_of_a_batch_has_its_partition():
    one = job()
    sink, seventh = Sink.parquet("/lake/scores", partition={"batch": "7"}), Batch(number=7, stream="s")
    assert dataclasses.replace(one, batch=seventh, sink=sink).sink.folder == "/lake/scores/batch=7"


@pytest.mark.parametrize("merged", [{}, {"mode": "merge", "keys": ["id"]}])
def test_the_bad_rows_of_a_batch_lie_in_a_folder_of_its_number_beside_a_table(merged):
    run = Run(dag_id="d", task_id="t", run_id="r")
    sink = Sink.delta("/lake/t", partition={"from": "a"}, **merged)
    whole = job(sink=sink, on_bad_row="quarantine", run=run)
    assert whole.quarantine_uri == "/lake/t_quarantine/from=a"
    one = dataclasses.replace(whole, batch=Batch(number=7, stream="s"))
    assert one.quarantine_uri == "/lake/t_quarantine/from=a/batch=7"


def test_nothing_is_trained_on_a_stream():
    with pytest.raises(InvalidJobError, match="'train' are streams"):
        TrainJob(
            entrypoint=Entrypoint.parse("a.b:c"),
            np=1,
            model_uri="/m",
            report_uri="/r",
            datasets={"train": EVENTS},
        )


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Source.kafka("b:1", "", schema="a INT"), "needs a topic"),
        (lambda: Source.kafka("b:1", "t", schema=""), "needs the schema of its messages"),
        (lambda: Source.kafka("b:1", "t", payload="xml", schema="a INT"), "payload of a kafka source"),
        (lambda: Source(kind="kafka", topic="t", payload="json", schema="a INT"), "either servers"),
        (
            lambda: Source.kafka("b:1", "t", schema="a INT", **{"kafka.sasl.jaas.config": "x"}),
            "a DAG holds no password",
        ),
        (
            lambda: Source.kafka("b:1", "t", schema="a INT", **{"kafka.Bootstrap.servers": "c:2"}),
            "or from the servers",
        ),
        (lambda: Source.files_stream("/a", format="json"), "needs a schema"),
        (lambda: Source.files_stream("/a", format="xml"), "format of a files_stream must be one of"),
        (lambda: Source(kind="files_stream", uri="/a", format="parquet", where="a > 1"), "has no where"),
        (lambda: Source.sql("select * from t", t=EVENTS), "tables of a sql source are no streams"),
        (lambda: Sink(kind="kafka", topic="t"), "either servers"),
        (lambda: Sink(kind="kafka", topic="t", servers="b:1", partition={"a": "1"}), "has no partition"),
    ],
)
def test_sources_and_sinks_that_cannot_work(make, match):
    with pytest.raises(InvalidJobError, match=match):
        make()
