"""Days scored in a second: a year of them in one application, against one application for each day.

Both submit as the operators do, with Spark's classes kept by an earlier submission, and import TensorFlow.
What Airflow needs for a task is not counted: it would be 365 times that of one.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pyarrow.dataset
import pyarrow.parquet as pq

from airflow_hydrogen.contract.jobs import InferenceJob, Run, Sink, Source, days
from bench.cold import submit
from bench.measure import Result, Target, alternate, compare

FIRST = datetime.date(2013, 1, 1)
FLIGHTS = 1_000
_DAYS_A_PAIR = 5


def measure(folder: Path, quick: bool) -> list[Result]:
    """Score a year at once, and ten of its days alone, in turns."""
    from bench.scoring import publish_model, write_rows

    number, pairs, alone = (40, 1, 2) if quick else (365, 2, _DAYS_A_PAIR)
    rows = write_rows(folder / "rows", 8 * FLIGHTS)
    lake = _write_days(rows, folder / "lake", number)
    model = publish_model(folder, rows)
    timelines: list[dict[str, float]] = []
    waiting = [_day(place * number // (pairs * alone)) for place in range(pairs * alone)]

    def at_once() -> float:
        sink = Sink.parquet(
            str(folder / "at-once"), partition_by=["ds"], partitions=days(_day(0), _day(number))
        )
        seconds, report, timeline = submit(folder, _job(folder, model, lake, sink))
        timelines.append(timeline)
        assert list(report.partitions.values()) == [FLIGHTS] * number
        _require_days(folder / "at-once", number)
        return number / seconds

    def one_by_one() -> float:
        seconds = 0.0
        for _ in range(alone):
            day = waiting.pop()
            sink = Sink.parquet(str(folder / "alone"), partition={"ds": day})
            took, report, _timeline = submit(folder, _job(folder, model, f"{lake}/ds={day}", sink))
            assert report.rows == FLIGHTS
            seconds += took
        return alone / seconds

    for _ in range(2):  # the second one on a machine keeps the classes, which those behind it use
        submit(folder, _job(folder, model, lake, Sink.parquet(str(folder / "before"))))
    found = alternate(at_once, one_by_one, pairs)
    return [
        compare(
            f"{number} days in one application",
            found,
            unit="days/s",
            against="an application for each day",
            target=Target(">=", 50),
            flights_a_day=FLIGHTS,
            days_alone=pairs * alone,
            timeline=timelines[-1],
        )
    ]


def _job(folder: Path, model: str, rows: str, sink: Sink) -> InferenceJob:
    return InferenceJob(
        model_uri=model,
        source=Source.parquet(rows),
        sink=sink,
        report_uri=str(folder / "report.json"),
        keep_columns=["id"],
        predictor="bench.marks:load",
        run=Run(dag_id="bench", task_id="score", run_id="ranges"),
    )


def _write_days(rows: str, lake: Path, number: int) -> str:
    """A folder for each day, with a file of flights."""
    table = pq.read_table(rows)
    for day in range(number):
        target = lake / f"ds={_day(day)}"
        target.mkdir(parents=True)
        first = FLIGHTS * (day % (table.num_rows // FLIGHTS))
        pq.write_table(table.slice(first, FLIGHTS), target / "part-0.parquet", use_dictionary=False)
    return str(lake)


def _require_days(table: Path, number: int) -> None:
    """Look at what a reader finds, past all that the job says."""
    rows: Any = pyarrow.dataset.dataset(table, format="parquet", partitioning="hive")
    found = rows.to_table(columns=["ds"]).column("ds").value_counts()
    assert len(found) == number and {item["counts"].as_py() for item in found} == {FLIGHTS}


def _day(number: int) -> str:
    return str(FIRST + datetime.timedelta(number))
