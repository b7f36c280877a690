"""A client of the local server, in a process of its own: what it sees of its workers, as JSON.

`python local_server_client.py URL`, with the token on standard input.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from pyspark.sql.connect.session import SparkSession

FRAMEWORKS = ("tensorflow", "keras", "onnxruntime")


def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """What a Python worker is, for each row."""
    for batch in batches:
        said = {
            "had": [name for name in FRAMEWORKS if name in sys.modules],
            "environment": dict(os.environ),
            "pid": os.getpid(),
            "parent": os.getppid(),
            "hash": hash("a string"),
        }
        yield pa.RecordBatch.from_pydict({"said": [json.dumps(said)] * batch.num_rows})


def main(url: str, token: str) -> dict[str, Any]:
    """Two sessions that run something, and what clients without the token are told."""
    workers = []
    for _ in range(2):
        spark = SparkSession.builder.remote(f"{url}/;token={token}").create()
        (row,) = spark.range(1).coalesce(1).mapInArrow(look, "said string").collect()
        workers.append(json.loads(row[0]))
    refused = []
    for wrong in (f"{url}/;token={token[::-1]}", url):
        try:
            SparkSession.builder.remote(wrong).create().range(1).count()
            refused.append("")
        except Exception as error:  # whatever it is, the test looks at it
            refused.append(str(error))
    return {"workers": workers, "refused": refused}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.stdin.readline().strip())), flush=True)
    os._exit(0)  # a client with several sessions may hang at its end
