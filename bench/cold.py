"""Seconds of a scoring job from the launch of spark-submit to its end, and where they go.

A partition of 1,000 rows on this machine, with Spark's classes kept as the operators' hook keeps them. The
baseline is what one would write by hand: the same model in `predict_batch_udf`, the same rows and columns.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from airflow_hydrogen.contract import jobs, reports
from airflow_hydrogen.contract.jobs import Engine, InferenceJob, Run, Sink, Source
from airflow_hydrogen.contract.reports import InferenceReport
from bench.marks import MARKS, mark
from bench.measure import Result, Target, alternate, compare

ROWS = 1_000


def measure(folder: Path, quick: bool) -> list[Result]:
    """Score the partition with both, in turns."""
    from bench.scoring import publish_model, write_rows

    rows = write_rows(folder / "rows", ROWS)
    model = publish_model(folder, rows)
    timelines: list[tuple[float, dict[str, float]]] = []

    def ours() -> float:
        timelines.append(score(folder, model, rows))
        return timelines[-1][0]

    def in_onnx() -> float:
        return score(folder, model, rows, engine="onnx", predictor=None)[0]

    for _ in range(2):
        ours()  # the second one on a machine keeps the classes, which those behind it use
    timelines.clear()
    pairs = alternate(ours, partial(_by_hand, folder, model, rows), 1 if quick else 3)
    in_turns = alternate(in_onnx, ours, 1 if quick else 3)
    return [
        compare(
            "cold scoring of 1,000 rows",
            pairs,
            unit="s",
            against="spark-submit of a script with predict_batch_udf",
            target=Target("<=", 1.0),
            timeline=min(timelines, key=lambda found: found[0])[1],
        ),
        compare(
            "cold scoring of 1,000 rows, ONNX Runtime",
            in_turns,
            unit="s",
            against="the same with TensorFlow",
            target=Target("<=", 1.0),
        ),
    ]


def score(
    folder: Path,
    model: str,
    rows: str,
    *,
    engine: Engine = "auto",
    predictor: str | None = "bench.marks:load",
) -> tuple[float, dict[str, float]]:
    """Submit a scoring as the operator does. Returns its seconds, and those of its stages."""
    job = InferenceJob(
        model_uri=model,
        source=Source.parquet(rows),
        sink=Sink.parquet(str(folder / "scores"), partition={"ds": "2013-01-01"}),
        report_uri=str(folder / "report.json"),
        keep_columns=["id"],
        predictor=predictor,
        engine=engine,
        run=Run(dag_id="bench", task_id="score", run_id="cold"),
    )
    seconds, report, timeline = submit(folder, job)
    assert report.rows == pq.read_table(str(report.output_uri), partitioning=None).num_rows == ROWS
    return seconds, timeline


def submit(folder: Path, job: InferenceJob) -> tuple[float, InferenceReport, dict[str, float]]:
    """Submit a job as the operator does. Returns its seconds, its report, and the seconds of its stages."""
    (folder / "job.json").write_text(jobs.dumps(job))
    marks = folder / "marks"
    marks.write_text("")
    began = time.time()
    seconds = _submit(folder, "run", str(folder / "job.json"), **{MARKS: str(marks)})
    report = reports.loads(Path(job.report_uri).read_text())
    assert isinstance(report, InferenceReport) and report.failure is None, report.failure
    return seconds, report, _timeline(began, marks, began + seconds)


def _by_hand(folder: Path, model: str, rows: str) -> float:
    target = str(folder / "by-hand")
    seconds = _submit(folder, "by_hand", model, rows, target)
    assert pq.read_table(target).num_rows == ROWS
    return seconds


# --- what spark-submit runs ------------------------------------------------------------------------------


def run() -> None:
    """The operators' application, with a mark at each stage."""
    mark("Python of the driver")
    from airflow_hydrogen.runtime.__main__ import main
    from airflow_hydrogen.runtime.scoring import application, sinks
    from airflow_hydrogen.runtime.storage import swap

    mark("imports of the driver")
    _mark_around(application, "spark_session", "checks of model and places", "Spark session")
    _mark_around(application, "score", "source opened", "planned")
    _mark_around(sinks, "_computed", "", "written")
    _mark_around(swap.Replacement, "commit", "counted again", "committed")
    try:
        main()
    finally:
        mark("report written")


def by_hand() -> None:
    """The baseline: arguments are the model, the rows and the folder to write."""
    from pyspark.ml.functions import predict_batch_udf
    from pyspark.sql import SparkSession
    from pyspark.sql.types import FloatType

    from bench.scoring import FEATURES, KEY, make_columns_predict

    model, rows, target = sys.argv[1:]
    spark = SparkSession.builder.getOrCreate()
    predict = predict_batch_udf(
        partial(make_columns_predict, model), return_type=FloatType(), batch_size=ROWS
    )
    frame = spark.read.parquet(rows).select(KEY, predict(*FEATURES).alias("prediction"))
    frame.write.mode("overwrite").parquet(target)


def _submit(folder: Path, function: str, *arguments: str, **environment: str) -> float:
    """Seconds of spark-submit, from its launch to its end."""
    from airflow_hydrogen.hooks.class_archives import find_class_archive
    from airflow_hydrogen.hooks.launchers import find_java, find_spark_submit

    application = folder / f"{function}.py"
    application.write_text(f"from bench.cold import {function}\n\n{function}()\n")
    command = [find_spark_submit("spark-submit", os.environ), "--master", "local[*]"]
    environ = {**os.environ, "PYSPARK_PYTHON": sys.executable, "XDG_CACHE_HOME": str(folder), **environment}
    archive = find_class_archive(command[0], find_java(environ), environ) if function == "run" else None
    started = time.monotonic()
    if archive is not None:
        environ["SPARK_SUBMIT_OPTS"] = archive.begin()
    with application.with_suffix(".log").open("w") as log:
        done = subprocess.run(
            [*command, str(application), *arguments], env=environ, stdout=log, stderr=log, check=False
        )
    if archive is not None:
        archive.finish(ended_well=done.returncode == 0)
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{Path(log.name).read_text()}")
    return time.monotonic() - started


# --- the timeline ----------------------------------------------------------------------------------------


def _mark_around(owner: Any, name: str, before: str, after: str) -> None:
    inner = getattr(owner, name)

    def outer(*args: Any, **kwargs: Any) -> Any:
        mark(before)
        answer = inner(*args, **kwargs)
        mark(after)
        return answer

    setattr(owner, name, outer)


def _timeline(began: float, marks: Path, ended: float) -> dict[str, float]:
    """Seconds from each mark to the next, by the name of the mark that ends them."""
    found = sorted(map(json.loads, marks.read_text().splitlines()))
    timeline: dict[str, float] = {}
    for at, name in [*found, (ended, "Spark stopped")]:
        timeline[name] = round(timeline.get(name, 0.0) + at - began, 2)
        began = at
    return timeline
