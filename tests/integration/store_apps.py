"""What jobs run that reach S3 by an Airflow connection."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import airflow_hydrogen.runtime as hydrogen


def look(uri: str) -> dict[str, Any]:
    """Read the dataset, and look at a folder with a library that knows nothing of this package's."""
    from pyarrow.fs import FileSelector, FileSystem

    found = [
        batch.to_pydict() for batch in hydrogen.get_dataset_shard("train", shuffle=False).to_batches(1000)
    ]
    filesystem, path = FileSystem.from_uri(uri)
    return {
        "ids": sorted(number for batch in found for number in batch["id"]),
        "days": sorted({day for batch in found for day in batch["day"]}),
        "files": len(filesystem.get_file_info(FileSelector(path, recursive=True))),
    }


def multiplying(path: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A predictor that multiplies `a`; the model is a file that holds by what."""
    factor = float(Path(path).read_text())
    return lambda arrays: {"p": arrays["a"] * factor}
