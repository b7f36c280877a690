"""A process of its own that looks at a model and a source: `python -m airflow_hydrogen.schemas < question`.

What it imports and connects to is gone with it, and a store that hangs ends with it: no thread could be
stopped in the middle of pyarrow or of a database's driver.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.signatures import MANIFEST
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.schemas import databases, delta, files, iceberg
from airflow_hydrogen.schemas.stores import Store
from airflow_hydrogen.schemas.types import Columns
from airflow_hydrogen.schemas.unsure import UnsureError

EARLIER_TRY = "an earlier try of this run has opened it"


def answer_to(question: dict[str, Any]) -> dict[str, Any]:
    """Look at what a question names.

    Args:
        question: `model`, the URI of a model; `source`, the JSON form of a source, or None; `snapshot`, what
            an earlier try has left where it has opened the source, or None; `client`, what opens a database
            or a catalog; `s3`, what opens S3.

    Returns:
        `manifest`, the model's, as text; `columns` of the source, None where nobody asked; or `unsure`: why
        it is all left to Spark.
    """
    try:
        return _look(question)
    except UnsureError as unsure:
        return {"unsure": str(unsure)}
    except Exception as error:  # of whatever store or database it is
        return {"unsure": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}


def _look(question: dict[str, Any]) -> dict[str, Any]:
    if question["snapshot"] is not None:
        store = Store(question["snapshot"])
        if store.entry(store.path) is not None:
            raise UnsureError(EARLIER_TRY)
    store = Store(uris.join(question["model"], MANIFEST))
    manifest = store.read(store.path).decode()
    columns = None
    if question["source"] is not None:
        columns = _columns_of(Source.from_dict(question["source"]), question["client"])
    return {"manifest": manifest, "columns": columns}


def _columns_of(source: Source, client: dict[str, Any] | None) -> Columns:
    if source.kind == "jdbc":
        return databases.columns_of(source, client)
    if source.kind == "iceberg":
        return iceberg.columns_of(source, client or {})
    return delta.columns_of(source) if source.kind == "delta" else files.columns_of(source)


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    # By the kernel: also where its parent is gone, or where it is inside a library that never comes back.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(asked["timeout_s"])
    if asked["s3"] is not None:
        S3Access.from_dict(asked["s3"]).set_variables(os.environ)
    sys.stdout.write("\n" + json.dumps(answer_to(asked)))
