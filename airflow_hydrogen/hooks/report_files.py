"""Read the report of an application from where it wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_hydrogen.contract import reports, uris
from airflow_hydrogen.contract.reports import Report

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath


def read(uri: str) -> Report | None:
    """The report at a path or URI, or None when there is none.

    Raises:
        ContractVersionError: written by another version of this package.
    """
    path = uris.local_path(uri)
    try:
        text = path.read_text() if path is not None else _remote(uri).read_text()
    except FileNotFoundError:
        return None
    return reports.loads(text)


def write(uri: str, text: str) -> None:
    """Write a report, as an application does."""
    path = uris.local_path(uri)
    if path is None:
        _remote(uri).write_text(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def delete(uri: str) -> None:
    """Remove the report of an earlier application, if there is one."""
    path = uris.local_path(uri)
    if path is not None:
        path.unlink(missing_ok=True)
    else:
        _remote(uri).unlink(missing_ok=True)


def _remote(uri: str) -> ObjectStoragePath:
    from airflow.sdk import ObjectStoragePath

    root, key = uris.airflow_parts(uri)
    return ObjectStoragePath(root) / key
