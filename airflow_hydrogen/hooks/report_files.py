"""Reports of applications, and the nonces that prove their places shared, on this machine or elsewhere."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_hydrogen.contract import jobs, reports, uris
from airflow_hydrogen.contract.errors import SharedStorageError, UnwritableUriError
from airflow_hydrogen.contract.reports import Report

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

_log = logging.getLogger(__name__)
_PACKAGES = {
    "s3": "s3fs, as airflow-hydrogen[s3] and apache-airflow-providers-amazon[s3fs] do",
    "s3a": "s3fs, as airflow-hydrogen[s3] and apache-airflow-providers-amazon[s3fs] do",
    "gs": "gcsfs, as apache-airflow-providers-google does",
    "abfs": "adlfs, as apache-airflow-providers-microsoft-azure does",
    "abfss": "adlfs, as apache-airflow-providers-microsoft-azure does",
    "hdfs": "pyarrow, and Hadoop's libhdfs",
}


def read(uri: str) -> Report | None:
    """The report at a path or URI, or None when there is none.

    Raises:
        ContractVersionError: written by another version of this package.
        SharedStorageError: this machine has nothing to read such a URI with.
    """
    text = _read_text(uri)
    return None if text is None else reports.loads(text)


def write(uri: str, text: str) -> None:
    """Write a report, as an application does.

    Raises:
        SharedStorageError: this machine has nothing to write such a URI with.
    """
    with _path(uri) as path:
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def delete(uri: str) -> None:
    """Remove the report of an earlier application, and its nonce, if there are some.

    Raises:
        SharedStorageError: this machine has nothing to reach such a URI with.
    """
    for name in (uri, jobs.nonce_uri(uri)):
        with _path(name) as path:
            _unlink(path)


def leave_nonce(uri: str, nonce: str) -> None:
    """Make a place ready for a report: remove an earlier one, and leave the nonce that the driver looks for.

    Raises:
        SharedStorageError: this machine has nothing to reach the place with.
        UnwritableUriError: it cannot be written, or what is written cannot be read.
    """
    try:
        delete(uri)
        write(jobs.nonce_uri(uri), nonce)
        found = _read_text(jobs.nonce_uri(uri))
    except SharedStorageError:
        raise
    except Exception as error:  # of whatever store it is: botocore's, gcsfs's and others have no common base
        raise UnwritableUriError("the report's place", uri, f"{type(error).__name__}: {error}") from error
    if found != nonce:
        raise UnwritableUriError("the report's place", uri, f"what was written beside it reads {found!r}")


def remove_nonce(uri: str) -> None:
    """Remove the nonce of a report's place, whose driver has ended. What was done must not be lost for it."""
    try:
        with _path(jobs.nonce_uri(uri)) as path:
            _unlink(path)
    except Exception as error:  # as above
        _log.warning("%s is left behind: %s: %s", jobs.nonce_uri(uri), type(error).__name__, error)


def _unlink(path: Path | ObjectStoragePath) -> None:
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    # `unlink` takes the key for a pattern: it misses one with brackets, and with a star removes others.
    # Newer Airflow's path wraps fsspec's; its own `fs` knows the schemes of providers alone.
    with contextlib.suppress(FileNotFoundError):
        getattr(path, "__wrapped__", path).fs.rm_file(path.path)


def _read_text(uri: str) -> str | None:
    try:
        with _path(uri) as path:
            text: str = path.read_text()
            return text
    except FileNotFoundError:
        return None


@contextmanager
def _path(uri: str) -> Iterator[Path | ObjectStoragePath]:
    if (local := uris.local_path(uri)) is not None:
        yield local
        return
    from airflow.sdk import ObjectStoragePath

    scheme = uri.partition(":")[0]
    try:
        root, key = uris.airflow_parts(uri)
        yield ObjectStoragePath(root) / key
    except ImportError as error:
        package = _PACKAGES.get(scheme, "the fsspec package for it")
        raise SharedStorageError(
            uri, f"this machine cannot speak {scheme}:// ({error}): install {package}"
        ) from None
