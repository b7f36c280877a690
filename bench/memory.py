"""Memory of a rank that reads 200 windows of data, against one that reads 20.

A window is what a shard holds to shuffle: 65,536 rows or 32 MB, here both at once (128 float32 columns). The
figure is the peak of resident memory while a fresh rank process reads one epoch, less what was resident
before the first row: TensorFlow alone is half a gigabyte and would hide growth. The peak is the kernel's high
water mark (`VmHWM`), set back first, because `ru_maxrss` survives fork and exec and counts the imports.
"""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.measure import Result, Target, alternate, compare

_ROWS = 65_536
_COLUMNS = 128
_BATCH_ROWS = 1_024
_FEW, _MANY = 20, 200


def measure(folder: Path, quick: bool) -> list[Result]:
    """Read with both readers."""
    few, many = (4, 20) if quick else (_FEW, _MANY)
    window = folder / "window.parquet"
    random = np.random.default_rng(0)
    table = pa.table({f"f{n:03d}": random.standard_normal(_ROWS, dtype="float32") for n in range(_COLUMNS)})
    pq.write_table(table, window, use_dictionary=False, row_group_size=_ROWS // 4)
    short, long = (_links(window, folder / f"windows-{windows}", windows) for windows in (few, many))
    results = []
    for reader in ("to_batches", "to_tf"):
        seconds: dict[int, float] = {}
        pairs = alternate(
            lambda reader=reader, seconds=seconds: _peak_mb(reader, long, many, seconds),
            lambda reader=reader, seconds=seconds: _peak_mb(reader, short, few, seconds),
            1 if quick else 3,
        )
        results.append(
            compare(
                f"memory of a rank, {reader}, {many} windows of data",
                pairs,
                unit="MB",
                against=f"{few} windows",
                target=Target("<=", 1.2),
                window_mb=_ROWS * _COLUMNS * 4 / 2**20,
                rows_per_second=round(many * _ROWS / seconds[many]),
            )
        )
    return results


def _links(file: Path, folder: Path, count: int) -> str:
    """A dataset of `count` files that takes the room of one."""
    folder.mkdir()
    for number in range(count):
        (folder / f"part-{number:03d}.parquet").hardlink_to(file)
    return str(folder)


def _peak_mb(reader: str, uri: str, windows: int, seconds: dict[int, float]) -> float:
    from airflow_hydrogen.runtime import HorovodRunner

    # A gang of one, without Spark: the process is the same as under Spark.
    runner = HorovodRunner(-1, driver_log_verbosity="log_callback_only")
    answer = runner.run("bench.memory:read", reader=reader, uri=uri, rows=windows * _ROWS)
    seconds[windows] = answer["seconds"]
    return float(answer["peak_mb"])


def read(reader: str, uri: str, rows: int) -> dict[str, Any]:
    """On the rank: read one epoch and say how far memory rose."""
    import tensorflow as tf

    from airflow_hydrogen.runtime.data.dataset import DatasetShard

    shard = DatasetShard(uri)
    tf.reduce_sum(tf.ones((8, 8))).numpy()  # TensorFlow's thread pools
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before, started = status_mb("VmRSS"), time.perf_counter()
    found = 0
    if reader == "to_batches":
        for batch in shard.to_batches(_BATCH_ROWS):
            found += batch.num_rows
    else:
        for features, _label in shard.to_tf(_BATCH_ROWS, label="f000"):
            found += features.shape[0]
    assert found == rows == len(shard), (os.getpid(), found)
    return {"peak_mb": status_mb("VmHWM") - before, "seconds": time.perf_counter() - started}


def status_mb(field: str, process: int | str = "self") -> float:
    """A line of /proc/PID/status, such as `VmHWM`, in MB."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/{process}/status has no {field}")
