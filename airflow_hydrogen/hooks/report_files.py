"""Read the report of an application from where it wrote it."""

from __future__ import annotations

from pathlib import Path

from airflow_hydrogen.contract import reports
from airflow_hydrogen.contract.reports import Report


def read(uri: str) -> Report | None:
    """The report at a path or URI, or None when there is none.

    Raises:
        ContractVersionError: written by another version of this package.
    """
    try:
        if (path := _local(uri)) is not None:
            text = path.read_text()
        else:
            from airflow.sdk import ObjectStoragePath

            text = ObjectStoragePath(uri).read_text()
    except FileNotFoundError:
        return None
    return reports.loads(text)


def write(uri: str, text: str) -> None:
    """Write a report, as an application does."""
    if (path := _local(uri)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return
    from airflow.sdk import ObjectStoragePath

    ObjectStoragePath(uri).write_text(text)


def delete(uri: str) -> None:
    """Remove the report of an earlier application, if there is one."""
    if (path := _local(uri)) is not None:
        path.unlink(missing_ok=True)
        return
    from airflow.sdk import ObjectStoragePath

    ObjectStoragePath(uri).unlink(missing_ok=True)


def _local(uri: str) -> Path | None:
    """A path without a scheme, or with `file:` in any of its spellings."""
    if uri.startswith("file:"):
        return Path("/" + uri.removeprefix("file:").lstrip("/"))
    return None if "://" in uri else Path(uri)
