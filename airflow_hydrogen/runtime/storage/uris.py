"""How a URI is spelled: for this package, for Spark, for pyarrow. Pure."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit


def local_path(uri: str) -> Path | None:
    """The path of a local URI, absolute, or None for a URI of another filesystem."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(parts.path)
    if "://" in uri:
        return None
    return Path(uri.removeprefix("file:")).expanduser().absolute()


def canonical(uri: str) -> str:
    """The URI that XComs and manifests carry: an absolute path for local ones, no slash at the end."""
    path = local_path(uri)
    return str(path) if path is not None else uri.rstrip("/")


def spark_uri(uri: str) -> str:
    """The spelling that Spark's readers and writers want."""
    path = local_path(uri)
    if path is not None:
        return f"file://{path}"  # Hadoop's Path decodes no %XX
    return f"s3a://{uri.removeprefix('s3://')}" if uri.startswith("s3://") else uri


def join(uri: str, *names: str) -> str:
    """A URI below another."""
    return "/".join([uri.rstrip("/"), *names])


def sibling(uri: str, purpose: str) -> str:
    """A hidden neighbour of `uri`, on the same filesystem, that readers of the parent folder skip."""
    parent, _, name = canonical(uri).rpartition("/")
    return f"{parent}/.{name}.{purpose}"
