"""How a URI is spelled: for this package, for Spark, for Arrow and for Airflow. Pure.

A URI is `scheme://authority/path`, and **the characters of its path are the name of the file or the key of
the object**, as Hadoop's `Path` reads them: nothing is decoded, `%20` is three characters, `#` and `?` begin
nothing. What has no scheme is a path on this machine. As Hadoop does, `//`, `.` and `..` are resolved
without a look at the filesystem, and a slash at the end says nothing.

Others read URIs differently: Arrow decodes `%XX` and refuses blanks, Python's `urlsplit` cuts at `#`, Spark
lists its files encoded. So nobody else in this package takes a URI apart or puts one together.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from airflow_hydrogen.contract.errors import InvalidUriError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_URI = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://([^/]*)(/.*)?|(/.*))", re.DOTALL)
_S3 = ("s3", "s3a", "s3n")
_STORES = (*_S3, "gs", "abfs", "abfss")
_PATTERN = re.compile(r"([{}\[\]*?\\])")
_NO_AUTHORITY = re.compile(r"[?#\\\s]")
# What Spark and Hive escape in the names of partition folders (ExternalCatalogUtils.escapePathName).
_ESCAPED = re.compile("[\x01-\x1f\x7f\"#%'*/:=?\\[\\\\\\]^{]")


@dataclass(frozen=True)
class Location:
    """A URI, taken apart.

    Attributes:
        scheme: in small letters; `file` for this machine.
        authority: a bucket, a host, or nothing.
        path: absolute, resolved, not decoded; `/` is the root.
    """

    scheme: str
    authority: str
    path: str

    @property
    def store(self) -> str:
        """The scheme without regard to the client: `s3` for `s3a` and `s3n`."""
        return "s3" if self.scheme in _S3 else self.scheme


def parse(uri: str, argument: str = "URI") -> Location:
    """Take a URI apart.

    Args:
        uri: a URI, or a path on this machine.
        argument: how an error calls it.

    Raises:
        InvalidUriError: as much a URI as a path, a store without a bucket, a file of another host.
    """
    found = _URI.fullmatch(uri)
    if found is None:
        if _SCHEME.match(uri.lstrip()):
            raise InvalidUriError(
                uri,
                "can be read as a URI and as a path: write scheme://bucket/key for a URI; let a path begin "
                "with / or ./",
                argument,
            )
        return Location("file", "", _resolved(os.path.abspath(os.path.expanduser(uri))))
    scheme, authority = found[1].lower(), found[2] or ""
    if scheme in _STORES and not authority:
        raise InvalidUriError(uri, f"names no bucket: expected {scheme}://bucket/key", argument)
    if wrong := _NO_AUTHORITY.search(authority):
        problem = f"has {wrong[0]!r} in the name of its bucket or host {authority!r}"
        raise InvalidUriError(uri, problem, argument)
    if scheme == "file":
        if authority not in ("", "localhost"):
            raise InvalidUriError(
                uri,
                f"is a file of host {authority!r}: a local file has three slashes, file:///folder/file",
                argument,
            )
        authority = ""
    return Location(scheme, authority, _resolved(found[3] or found[4] or "/"))


def _resolved(path: str) -> str:
    return posixpath.normpath("/" + path.lstrip("/"))


def local_path(uri: str) -> Path | None:
    """The path of a local URI, absolute, or None for a URI of another filesystem."""
    location = parse(uri)
    return Path(location.path) if location.scheme == "file" else None


def canonical(uri: str) -> str:
    """The URI that XComs and manifests carry: an absolute path for local ones, no slash at the end."""
    location = parse(uri)
    return location.path if location.scheme == "file" else _spelled(location.scheme, location)


def spark_uri(uri: str) -> str:
    """The spelling for Spark's readers and writers."""
    location = parse(uri)
    return _spelled("s3a" if location.store == "s3" else location.scheme, location)


def spark_file(uri: str) -> str:
    """The spelling of one file for Spark's readers, which take names for patterns."""
    return _PATTERN.sub(r"\\\1", spark_uri(uri))


def arrow_uri(uri: str) -> str:
    """The spelling for `pyarrow.fs.FileSystem.from_uri`, which decodes it."""
    location = parse(uri)
    return _spelled(location.store, location, quote(location.path))


def airflow_parts(uri: str) -> tuple[str, str]:
    """The spelling for `ObjectStoragePath`: the root, and what is joined to it.

    Airflow cuts what it is given as a whole at `?` and `#` and puts it together again, in part.
    """
    location = parse(uri)
    return f"{location.store}://{location.authority}/", location.path[1:]


def asset_uri(uri: str) -> str:
    """The URI under which Airflow knows an asset: `file:///models/m`, `s3://bucket/key`.

    Airflow drops what follows `#` and sorts what follows `?`: both are encoded, as is what no URI may hold.
    """
    location = parse(uri)
    return _spelled(location.store, location, quote(location.path, safe="/%:=+,@!$&'()*;~"))


def is_root(uri: str) -> bool:
    """Whether a URI is a whole bucket or filesystem: it has no name and nothing beside it."""
    return parse(uri).path == "/"


def require_folder(argument: str, uri: str) -> None:
    """Check that something can be put at a URI and beside it.

    Raises:
        InvalidUriError: names the argument.
    """
    if parse(uri, argument).path == "/":
        raise InvalidUriError(uri, "is a whole bucket or filesystem: name a folder in it", argument)


def join(uri: str, *names: str) -> str:
    """A URI below another."""
    folder = canonical(uri)
    return "/".join([folder.removesuffix("/"), *names]) if names else folder


def holds(folder: str, uri: str) -> bool:
    """Whether a folder is a URI's own place or lies above it, whatever the spelling of the two."""
    outer, inner = parse(folder), parse(uri)
    same_store = (outer.store, outer.authority) == (inner.store, inner.authority)
    return same_store and f"{inner.path}/".startswith(outer.path.rstrip("/") + "/")


def beside_table(uri: str, suffix: str) -> str:
    """A table beside another, of the same name with a suffix.

    Partition folders at the end of the URI stay folders of the new table: `/lake/scored/ds=1` with `_bad` is
    `/lake/scored_bad/ds=1`, and no partition of the table `/lake/scored`.

    Raises:
        InvalidUriError: the table is a whole bucket or filesystem.
    """
    folder = canonical(uri)
    partitions: list[str] = []
    while "=" in (name := folder.rpartition("/")[2]):
        folder = folder.rpartition("/")[0]
        partitions.insert(0, name)
    require_folder("URI", folder or "/")
    return "/".join([f"{folder}{suffix}", *partitions])


def sibling(uri: str, purpose: str) -> str:
    """A hidden neighbour of `uri`, on the same filesystem, that readers of the parent folder skip.

    Raises:
        InvalidUriError: `uri` is a whole bucket or filesystem. `require_folder` says so earlier.
    """
    require_folder("URI", uri)
    parent, _, name = canonical(uri).rpartition("/")
    return f"{parent}/.{name}.{purpose}"


def partition_uri(uri: str, partition: Mapping[str, str]) -> str:
    """The folder of one partition of a table, named as Spark and Hive name it: `uri/hour=T00%3A00`."""
    return join(uri, *([partition_folders(partition)] if partition else []))


def partition_folders(partition: Mapping[str, str]) -> str:
    """The folders of one partition below its table's; "" where there is none."""
    return "/".join(f"{_escaped(key)}={_escaped(value)}" for key, value in partition.items())


def _escaped(name: str) -> str:
    return _ESCAPED.sub(lambda found: f"%{ord(found[0]):02X}", name)


def _spelled(scheme: str, location: Location, path: str | None = None) -> str:
    path = location.path if path is None else path
    if location.authority and path == "/":
        return f"{scheme}://{location.authority}"
    return f"{scheme}://{location.authority}{path}"
