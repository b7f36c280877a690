"""What the soak kills: a process that replaces one partition and one model, again and again."""

from __future__ import annotations

import itertools
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.signatures import Signature
from airflow_hydrogen.runtime.models import directory
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.storage import filesystems, partition_files, swap

FILES, ROWS = 3, 100


def replace_partition(uri: str, value: int) -> None:
    """Put rows of one value in the place of those that are there, as a sink of Parquet files does."""
    with swap.replacing(uri, {"run_id": str(value)}) as replacement:
        for number in range(FILES):
            part = uris.join(replacement.staged, f"part-{number:05d}.parquet")
            filesystems.write_bytes(part, _parquet(value))
        replacement.commit(rows=FILES * ROWS)


def read_partition(uri: str) -> int:
    """The value of its rows, all of which have to be there."""
    rows: list[int] = []
    for name, _size in partition_files.listed_files(uri):
        content = filesystems.read_bytes(uris.join(uri, name))
        rows += pq.read_table(pa.BufferReader(content))["x"].to_pylist()
    assert len(rows) == FILES * ROWS and len(set(rows)) == 1, f"{len(rows)} rows of {set(rows)} in {uri}"
    return rows[0]


def publish_model(uri: str, value: int) -> None:
    """Publish a model of two files, both of which say the same."""
    staged = directory.staging_uri(uri)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        for file in ("weights", "graph"):
            (folder / "model" / file).write_text(str(value))
        filesystems.upload(folder, staged)
        files = directory.describe_files(folder, ["model"])
    manifest = Manifest(framework="soak", entry="model", signature=Signature((), ()), files=files)
    directory.publish(staged, uri, manifest, keep_checkpoints=False)


def read_model(uri: str) -> int:
    """What both files of the model say."""
    manifest, folder = directory.open_model(uri)
    values = {(folder / manifest.entry / file).read_text() for file in ("weights", "graph")}
    assert len(values) == 1, f"{values} in {uri}"
    return int(values.pop())


def _parquet(value: int) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [value] * ROWS}), sink)
    return sink.getvalue().to_pybytes()


_parquet(0)  # pyarrow imports what it needs for this now, and not in every process that is forked


def write(partition: str, model: str, first: int, said: Connection) -> None:
    """Replace both until killed, and say after each what is in place."""
    filesystems.list_files(partition)  # the client of the store is made
    said.send(("ready", 0))
    for number in itertools.count(first):
        replace_partition(partition, number)
        said.send(("partition", number))
        publish_model(model, number)
        said.send(("model", number))
