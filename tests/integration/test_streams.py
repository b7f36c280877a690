"""Streams: files and messages scored in micro-batches, every row once, whatever dies in between."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.contract.errors import CheckpointMismatchError
from airflow_hydrogen.contract.jobs import InferenceJob, Sink, Source
from airflow_hydrogen.contract.reports import InferenceReport
from airflow_hydrogen.contract.streams import StreamOptions
from airflow_hydrogen.runtime.scoring.streams import run_stream
from tests.integration.broker import Kafka
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


# --- files ---------------------------------------------------------------------------------------------------


def test_files_are_drained_and_drained_again_every_row_once(incoming, stream, scores, tmp_path):
    incoming(0, 50)
    first = stream()
    assert (first.rows, first.rows_in, first.stream["batches"], first.stream["stopped"]) == (50, 50, 1, "drained")
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
