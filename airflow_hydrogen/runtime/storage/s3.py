"""How this process reaches S3: with the keys and the endpoint of its job's connection, or by what it finds.

A process is told once, when it has its job or its task, and nothing is left in the environment: Spark keeps
Python workers from one job of a session to the next.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract.stores import S3Access, is_s3

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    from airflow_hydrogen.contract.uris import Location

_access: S3Access | None = None


def use(access: S3Access | None) -> None:
    """Reach S3 so from now on.

    Args:
        access: a job's; None: by what the libraries find in the environment.
    """
    global _access
    _access = access


@contextmanager
def using(access: S3Access | None) -> Iterator[None]:
    """Reach S3 so as long as the block lasts."""
    before = _access
    use(access)
    try:
        yield
    finally:
        use(before)


def current() -> S3Access | None:
    """What this process was told."""
    return _access


def is_open_to_all(uri: str | None) -> bool:
    """Whether a URI is one of S3, and Spark and all processes of the job reach it in the same way."""
    return _access is not None and is_s3(uri)


def filesystem(access: S3Access, location: Location) -> FileSystem:
    """S3 as pyarrow reaches it.

    Args:
        access: the keys and the endpoint.
        location: of the bucket.
    """
    from pyarrow.fs import S3FileSystem

    options: dict[str, Any] = {
        "access_key": access.access_key,
        "secret_key": access.secret_key,
        "session_token": access.session_token,
        "region": access.known_region or _region(location.authority),
        "scheme": access.scheme,
        "endpoint_override": access.host,
        "force_virtual_addressing": access.virtual_hosts,
    }
    return S3FileSystem(**{name: value for name, value in options.items() if value is not None})


@functools.cache
def _region(bucket: str) -> str:
    """That of a bucket of Amazon's, which has to be asked."""
    from pyarrow.fs import resolve_s3_region

    return str(resolve_s3_region(bucket))
