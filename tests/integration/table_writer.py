"""A driver of its own that writes a partition of a database's table, to be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from scripts.jars import jars

ROOT = Path(__file__).resolve().parents[2]


class Writer:
    """The process, and its Spark with it.

    Args:
        options: that open the database.
        sink: what is written, `id` and `p` of so many rows.
        master: of its Spark.
        log: a file for what Spark says.
    """

    def __init__(
        self, options: dict[str, str], sink: dict[str, Any], rows: int, master: str, log: Path
    ) -> None:
        given = json.dumps({"options": options, "sink": sink, "rows": rows, "master": master})
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdin
        self._process.stdin.write(given + "\n")
        self._process.stdin.close()

    def staged(self) -> dict[str, int]:
        """Wait until rows are staged, and learn how many the tasks and the database have counted."""
        assert self._process.stdout
        for line in self._process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise AssertionError(f"the writer has ended with {self._process.wait()}")

    def kill(self) -> None:
        """kill -9, at once and all of it."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout
        self._process.stdout.close()


def main(options: dict[str, str], sink: dict[str, Any], rows: int, master: str) -> None:
    """Write the partition, and say when rows are staged."""
    from pyspark.sql import SparkSession

    from airflow_hydrogen.contract.jobs import Sink
    from airflow_hydrogen.runtime.sinks import placements

    builder = SparkSession.builder.master(master).config("spark.jars", ",".join(map(str, jars("postgresql"))))
    spark = builder.config("spark.ui.enabled", "false").getOrCreate()
    frame = spark.range(0, rows, 1, 2).selectExpr("id", "double(id) AS p")
    place = Sink.from_dict(sink)
    with placements.placing(spark, place, None, {str(place.conn_id): options}) as placement:
        counted, _ = placement.stage(frame, None)
        print(json.dumps({"counted": counted, "found": placement.count()}), flush=True)
        placement.commit(rows=counted, model=None)


if __name__ == "__main__":
    main(**json.loads(sys.stdin.readline()))
