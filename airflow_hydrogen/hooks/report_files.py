"""Reports of applications, and the nonces that prove their places shared, on this machine or elsewhere.

What is on S3 is reached with the keys of the connection that the job names, or else as Airflow reaches it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import jobs, reports, uris
from airflow_hydrogen.contract.errors import SharedStorageError, UnwritableUriError
from airflow_hydrogen.contract.reports import Report
from airflow_hydrogen.contract.stores import S3Access, is_s3
from airflow_hydrogen.hooks.stores import client_options

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


@dataclass(frozen=True)
class _Object:
    """An object of S3, as far as paths are used here."""

    client: Any
    key: str

    def read_text(self) -> str:
        return str(self.client.cat_file(self.key).decode())

    def write_text(self, text: str) -> None:
        self.client.pipe_file(self.key, text.encode())

    def remove(self) -> None:
        self.client.rm_file(self.key)


def read(uri: str, s3: S3Access | None = None) -> Report | None:
    """The report at a path or URI, or None when there is none.

    Raises:
        ContractVersionError: written by another version of this package.
        SharedStorageError: this machine has nothing to read such a URI with.
    """
    text = _read_text(uri, s3)
    return None if text is None else reports.loads(text)


def write(uri: str, text: str, s3: S3Access | None = None) -> None:
    """Write a report, as an application does.

    Raises:
        SharedStorageError: this machine has nothing to write such a URI with.
    """
    with _path(uri, s3) as path:
        if isinstance(path, Path):
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def delete(uri: str, s3: S3Access | None = None) -> None:
    """Remove the report of an earlier application, and its nonce, if there are some.

    Raises:
        SharedStorageError: this machine has nothing to reach such a URI with.
    """
    for name in (uri, jobs.nonce_uri(uri)):
        with _path(name, s3) as path:
            _unlink(path)


def leave_nonce(uri: str, nonce: str, s3: S3Access | None = None) -> None:
    """Make a place ready for a report: remove an earlier one, and leave the nonce that the driver looks for.

    Raises:
        SharedStorageError: this machine has nothing to reach the place with.
        UnwritableUriError: it cannot be written, or what is written cannot be read.
    """
    try:
        delete(uri, s3)
        write(jobs.nonce_uri(uri), nonce, s3)
        found = _read_text(jobs.nonce_uri(uri), s3)
    except SharedStorageError:
        raise
    except Exception as error:  # of whatever store it is: botocore's, gcsfs's and others have no common base
        raise UnwritableUriError("the report's place", uri, f"{type(error).__name__}: {error}") from error
    if found != nonce:
        raise UnwritableUriError("the report's place", uri, f"what was written beside it reads {found!r}")


def remove_nonce(uri: str, s3: S3Access | None = None) -> None:
    """Remove the nonce of a report's place, whose driver has ended. What was done must not be lost for it."""
    try:
        with _path(jobs.nonce_uri(uri), s3) as path:
            _unlink(path)
    except Exception as error:  # as above
        _log.warning("%s is left behind: %s: %s", jobs.nonce_uri(uri), type(error).__name__, error)


def _unlink(path: Path | ObjectStoragePath | _Object) -> None:
    if isinstance(path, Path):
        path.unlink(missing_ok=True)
        return
    if isinstance(path, _Object):
        with contextlib.suppress(FileNotFoundError):
            path.remove()
        return
    # `unlink` takes the key for a pattern: it misses one with brackets, and with a star removes others.
    # Newer Airflow's path wraps fsspec's; its own `fs` knows the schemes of providers alone.
    with contextlib.suppress(FileNotFoundError):
        getattr(path, "__wrapped__", path).fs.rm_file(path.path)


def _read_text(uri: str, s3: S3Access | None = None) -> str | None:
    try:
        with _path(uri, s3) as path:
            text: str = path.read_text()
            return text
    except FileNotFoundError:
        return None


@contextmanager
def _path(uri: str, s3: S3Access | None) -> Iterator[Path | ObjectStoragePath | _Object]:
    if (local := uris.local_path(uri)) is not None:
        yield local
        return
    scheme = uri.partition(":")[0]
    try:
        if s3 is not None and is_s3(uri):
            import fsspec

            location = uris.parse(uri)
            client = fsspec.filesystem("s3", **client_options(s3))
            yield _Object(client, f"{location.authority}{location.path}")
            return
        from airflow.sdk import ObjectStoragePath

        root, key = uris.airflow_parts(uri)
        yield ObjectStoragePath(root) / key
    except ImportError as error:
        package = _PACKAGES.get(scheme, "the fsspec package for it")
        raise SharedStorageError(
            uri, f"this machine cannot speak {scheme}:// ({error}): install {package}"
        ) from None
