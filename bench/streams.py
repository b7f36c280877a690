"""Flights replayed through a Kafka broker: rows a second of draining a topic, and how long one event takes.

The baseline scores the same rows from Parquet files that Spark reads, with the same model in the same warm
session. What a stream pays beside it is the JSON of its messages, and the notes of its checkpoint.
"""

from __future__ import annotations

import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.contract.streams import StreamOptions
from airflow_hydrogen.runtime.data import streams
from airflow_hydrogen.runtime.data.messages import VALUE
from airflow_hydrogen.runtime.scoring.application import run_inference
from airflow_hydrogen.runtime.scoring.streams import run_stream
from bench.flights_model import prepare_flights
from bench.measure import RANKS, Result, Target, alternate, compare
from bench.scoring import publish_model
from bench.spark import local_spark
from scripts.jars import jars
from tests.integration.broker import Kafka, kafka_broker

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

KEY = "flight"
EVENTS_PER_S = 1_000
_SLICE_S = 0.05
_WAIT_S = 300.0


def measure(folder: Path, quick: bool) -> list[Result]:
    """Drain a year of flights, and follow 1,000 events a second for a minute."""
    from flights.features import NUMBERS

    (folder / "broker").mkdir()
    with kafka_broker(folder / "broker") as kafka, local_spark(jars=jars("kafka")) as spark:
        where = "month = 1 and day < 8" if quick else "month <= 12"
        prepared, _rows = prepare_flights(spark, folder, where)
        rows = _rows_of(spark, prepared, folder / "rows", tuple(NUMBERS))
        model = publish_model(folder, rows, tuple(NUMBERS))
        messages = [json.dumps(row).encode() for row in pq.read_table(rows).to_pylist()]
        topic = kafka.topic(partitions=RANKS)
        kafka.produce(topic, [(str(number).encode(), value) for number, value in enumerate(messages)])
        schema = ", ".join([f"{KEY} BIGINT", *(f"{name} FLOAT" for name in NUMBERS)])
        given = {"model_uri": model, "keep_columns": [KEY]}
        numbers = itertools.count()
        ours = partial(_drained, kafka, topic, schema, given, len(messages), folder, numbers)
        baseline = partial(_scored, rows, given, len(messages), folder)
        ours(), baseline()  # imports TensorFlow and loads the model
        throughput = compare(
            "a stream drained",
            alternate(ours, baseline, 2 if quick else 5),
            unit="rows/s",
            against="the same rows from Parquet, read by Spark",
            target=Target(">=", 0.7),
            rows=len(messages),
            bytes_per_message=round(sum(map(len, messages)) / len(messages)),
            stages_s=_stages(spark, kafka, topic, schema, given, messages[0], folder),
        )
        return [throughput, _latency(spark, kafka, schema, given, messages, folder, 10 if quick else 60)]


def _rows_of(spark: SparkSession, prepared: str, target: Path, features: tuple[str, ...]) -> str:
    """Flights with a number each, in as many files as there are task slots."""
    from pyspark.sql import functions

    frame = spark.read.parquet(prepared).select(functions.monotonically_increasing_id().alias(KEY), *features)
    frame.repartition(RANKS).write.parquet(str(target))
    return str(target)


def _scored(rows: str, given: dict[str, Any], count: int, folder: Path) -> float:
    """Rows per second from Parquet; a condition that computes makes Spark read them."""
    job = InferenceJob(
        source=Source.parquet(rows, where=f"{KEY} % 2 < 2"),
        sink=Sink.parquet(str(folder / "scored")),
        report_uri=str(folder / "report.json"),
        **given,
    )
    started = time.perf_counter()
    assert run_inference(job).rows == count
    return count / (time.perf_counter() - started)


def _drained(
    kafka: Kafka,
    topic: str,
    schema: str,
    given: dict[str, Any],
    count: int,
    folder: Path,
    numbers: Iterator[int],
) -> float:
    """Rows per second from the topic, by a stream that begins anew."""
    place = folder / f"stream-{next(numbers)}"
    started = time.perf_counter()
    report = run_stream(_stream(kafka, topic, schema, given, place, "available_now"))
    seconds = time.perf_counter() - started
    assert report.rows == count
    shutil.rmtree(place)
    return count / seconds


def _stages(
    spark: SparkSession,
    kafka: Kafka,
    topic: str,
    schema: str,
    given: dict[str, Any],
    message: bytes,
    folder: Path,
) -> dict[str, float]:
    """Seconds of parts of a drain, the fastest of three: what any stream costs, and what its messages do.

    The latter are queries of their own, each of which does what the one before it does, and one thing more.
    """
    one = kafka.topic(partitions=RANKS)
    kafka.produce(one, [(b"one", message)])
    rows = streams.open_stream(
        spark, Source.kafka(kafka.bootstrap, topic, schema=schema), {}, None, (streams.KEY, streams.HEADERS)
    )

    def counted(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"rows": [sum(batch.num_rows for batch in batches)]})

    def drained(do: Callable[[DataFrame], object]) -> None:
        def take(batch: DataFrame, _number: int) -> None:
            do(batch.select(VALUE))

        place = folder / "stages"
        writer = rows.frame.writeStream.foreachBatch(take).option("checkpointLocation", str(place))
        writer.trigger(availableNow=True).start().awaitTermination()
        shutil.rmtree(place)

    stages: dict[str, Callable[[], object]] = {
        "a stream of one message": partial(
            _drained, kafka, one, schema, given, 1, folder, itertools.count(1000)
        ),
        "read": lambda: drained(lambda batch: batch.write.format("noop").mode("append").save()),
        "and given to workers": lambda: drained(
            lambda batch: batch.mapInArrow(counted, "rows LONG").collect()
        ),
    }
    return {name: round(min(_seconds(stage) for _ in range(3)), 2) for name, stage in stages.items()}


def _seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _stream(
    kafka: Kafka, topic: str, schema: str, given: dict[str, Any], place: Path, trigger: str
) -> InferenceJob:
    return InferenceJob(
        source=Source.kafka(kafka.bootstrap, topic, schema=schema),
        sink=Sink.parquet(str(place / "scores")),
        report_uri=str(place / "report.json"),
        stream=StreamOptions(trigger=trigger, checkpoint_uri=str(place / "checkpoint")),
        **given,
    )


def _latency(
    spark: SparkSession,
    kafka: Kafka,
    schema: str,
    given: dict[str, Any],
    messages: list[bytes],
    folder: Path,
    seconds: int,
) -> Result:
    """From an event's own time to the moment in which Spark notes that its batch is done."""
    topic, place = kafka.topic(partitions=RANKS), folder / "followed"
    kafka.produce(topic, [(b"first", messages[0])])
    job = _stream(kafka, topic, schema, {**given, "keep_columns": ["kafka_timestamp"]}, place, "1 second")
    commits = place / "checkpoint" / "commits"
    failures: list[BaseException] = []

    def replay() -> None:
        try:
            _until(lambda: (commits / "0").exists())
            _produce_evenly(kafka, topic, messages, seconds)
            last = seconds * EVENTS_PER_S + 1
            _until(lambda: _rows_there(place / "scores") == last)
        except BaseException as error:
            failures.append(error)
        finally:
            assert job.stream is not None
            Path(job.stream.stop_uri).touch()

    thread = threading.Thread(target=replay)
    thread.start()
    report = run_stream(job)
    thread.join()
    if failures:
        raise failures[0]
    happened = spark.read.parquet(str(place / "scores")).selectExpr(
        "int(batch) as batch", "unix_micros(kafka_timestamp) / 1e6 as seconds"
    )
    events = happened.where("batch > 0").toPandas()  # the first one starts the workers
    done_at = {int(file.name): file.stat().st_mtime for file in commits.iterdir() if file.name.isdigit()}
    latencies = events["batch"].map(done_at) - events["seconds"]
    p50, p99 = (float(np.percentile(latencies, part)) for part in (50, 99))
    assert report.stream is not None
    return Result(
        name="latency of a stream, p99",
        value=p99,
        unit="s",
        against="the interval of its trigger",
        baseline_value=1.0,
        ratio=p99,
        compared=p99,
        target=Target("<=", 5, "s"),
        details={
            "events_per_s": EVENTS_PER_S,
            "events": len(events),
            "p50_s": round(p50, 2),
            "batches": report.stream["batches"],
        },
    )


def _produce_evenly(kafka: Kafka, topic: str, messages: list[bytes], seconds: int) -> None:
    """So many events a second, in slices."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": kafka.bootstrap, "linger.ms": 5})
    values = itertools.cycle(messages)
    began, sent = time.monotonic(), 0
    while sent < seconds * EVENTS_PER_S:
        due = min(int((time.monotonic() - began) * EVENTS_PER_S) + 1, seconds * EVENTS_PER_S)
        for value in itertools.islice(values, due - sent):
            producer.produce(topic, value, str(sent).encode())
            sent += 1
        producer.poll(0)
        time.sleep(_SLICE_S)
    left = producer.flush(60)
    if left:
        raise RuntimeError(f"{left} events were not sent")


def _rows_there(scores: Path) -> int:
    files = [file for file in scores.rglob("*.parquet") if file.parent.name.startswith("batch=")]
    return sum(pq.read_metadata(file).num_rows for file in files)


def _until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WAIT_S
    while not holds():
        if time.monotonic() > deadline:
            raise RuntimeError(f"the stream has not come so far within {_WAIT_S:g} s")
        time.sleep(0.5)
