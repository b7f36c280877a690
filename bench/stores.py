"""Warm scoring from and to an S3 server on this machine, against the same in local folders.

The server computes on the same cores: what it takes, the workers lack.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from airflow_hydrogen.runtime.storage import filesystems, s3
from bench.measure import Result, Target, alternate, compare
from bench.scoring import publish_model, score_rows, write_rows
from bench.spark import local_spark
from scripts.jars import jars
from tests.integration.object_store import BUCKET, object_store


def measure(folder: Path, quick: bool) -> list[Result]:
    """Score 5,000,000 rows from both, and to both."""
    rows = 200_000 if quick else 5_000_000
    local = write_rows(folder / "rows", rows)
    model = publish_model(folder, local)
    (folder / "objects").mkdir()
    with (
        object_store(folder / "objects") as store,
        s3.using(store.access),
        local_spark(jars=jars("s3a"), settings=store.access.spark_settings()) as spark,
    ):
        remote = f"s3://{BUCKET}/rows"
        filesystems.upload(Path(local), remote)
        to_store = partial(score_rows, spark, model, remote, f"s3://{BUCKET}/scores", rows, s3=store.access)
        to_folder = partial(score_rows, spark, model, local, str(folder / "scores"), rows)
        to_store(), to_folder()  # imports TensorFlow and loads the model
        pairs = alternate(to_store, to_folder, 1 if quick else 5)
    return [
        compare(
            "warm scoring, from and to an S3 server",
            pairs,
            unit="rows/s",
            against="the same in local folders",
            target=Target(">=", 0.7),
            rows=rows,
        )
    ]
