"""One meaning of a URI for Spark, Arrow and Airflow: the characters of its path are the key."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pyarrow.fs import FileSystem

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import InvalidUriError
from airflow_hydrogen.runtime.storage import filesystems

HOSTILE = "% #?:+=&'\"\\[]{}*~^|<>@;,!$ü€😀.aZ0-_\n\t"
NAMES = st.lists(
    st.text(st.one_of(st.sampled_from(HOSTILE), st.characters(exclude_categories=["Cs", "Cc"])), min_size=1)
    .filter(lambda name: "/" not in name and name not in (".", ".."))
    .filter(lambda name: len(name.encode()) < 200),
    min_size=1,
    max_size=3,
)
ROOTS = st.sampled_from(
    [
        *("", "file://", "file:", "s3://lake", "s3a://lake", "s3n://lake", "gs://lake"),
        *("hdfs:", "hdfs://", "hdfs://nn:8020", "viewfs://cluster", "abfs://box@us.dfs.core.windows.net"),
    ]
)


def hadoop(text: str) -> tuple[str | None, str | None, str]:
    """What `org.apache.hadoop.fs.Path` makes of an absolute URI; `test_hadoops_path` holds it to examples."""
    head, colon, rest = text.partition(":")
    scheme, rest = (head, rest) if colon and "/" not in head else (None, text)
    authority = None
    if rest.startswith("//"):
        authority, slash, rest = rest[2:].partition("/")
        rest = slash + rest
    path = "/".join(["", *(part for part in rest.split("/") if part not in ("", "."))])
    return scheme, authority or None, path


@pytest.mark.parametrize(
    ("text", "path"),
    # From Hadoop 3.5 itself: new Path(text).toUri(), its scheme, authority and (decoded) path.
    [
        ("s3a://b/a%3Ab", ("s3a", "b", "/a%3Ab")),
        ("s3a://b/a b", ("s3a", "b", "/a b")),
        ("s3a://b/a#b", ("s3a", "b", "/a#b")),
        ("s3a://b/a?b", ("s3a", "b", "/a?b")),
        ("s3a://b/a:b", ("s3a", "b", "/a:b")),
        ("s3a://b/a+b", ("s3a", "b", "/a+b")),
        ("s3a://b/a=b", ("s3a", "b", "/a=b")),
        ("s3a://b/aüb", ("s3a", "b", "/aüb")),
        ("s3a://b/a/", ("s3a", "b", "/a")),
        ("s3a://b//a//b", ("s3a", "b", "/a/b")),
        ("s3a://b/a%b", ("s3a", "b", "/a%b")),
        ("s3a://b/a\\b", ("s3a", "b", "/a\\b")),
        ("s3a://b/a[b]", ("s3a", "b", "/a[b]")),
        ("s3a://b/a/./c", ("s3a", "b", "/a/c")),
        ("s3a://b/a\nb", ("s3a", "b", "/a\nb")),
        ("s3a://b/ a ", ("s3a", "b", "/ a ")),
        ("s3a://b", ("s3a", "b", "")),
        ("file:///a#b", ("file", None, "/a#b")),
        ("file:/a b", ("file", None, "/a b")),
        ("file:////a", ("file", None, "/a")),
        ("hdfs:/x", ("hdfs", None, "/x")),
        ("hdfs:///x", ("hdfs", None, "/x")),
        ("hdfs://nn:8020/x%20y", ("hdfs", "nn:8020", "/x%20y")),
        ("abfs://c@a.dfs.core.windows.net/k %", ("abfs", "c@a.dfs.core.windows.net", "/k %")),
    ],
)
def test_hadoops_path(text: str, path: tuple[str | None, str | None, str]) -> None:
    assert hadoop(text) == path
    location = uris.parse(text)
    assert (location.scheme, location.authority, location.path) == (path[0], path[1] or "", path[2] or "/")


@given(ROOTS, NAMES)
@example("s3://lake", ["hour=T00%3A00"])
@example("s3://lake", ["a b", "#", "?"])
def test_spark_arrow_and_airflow_are_told_of_the_same_key(root: str, names: list[str]) -> None:
    key = "/".join(names)
    uri = f"{root}/{key}"
    assert hadoop(uris.spark_uri(uri))[2] == f"/{key}"
    arrow = uris.arrow_uri(uri)
    assert unquote(arrow.split("/", 3)[3]) == key
    assert set(arrow).isdisjoint(" #?[]") and arrow.isascii()
    assert uris.airflow_parts(uri)[1] == key
    assert uris.parse(uri).authority == (hadoop(uris.spark_uri(uri))[1] or "")


@settings(max_examples=30)
@given(
    st.sampled_from(
        ["s3://lake", "s3a://lake", "s3n://lake", "gs://lake", "abfs://lake@us.dfs.core.windows.net"]
    ),
    NAMES,
)
def test_arrow_finds_the_key_as_it_stands(root: str, names: list[str]) -> None:
    options = "?region=us-east-1" if root.startswith("s3") else ""  # else it asks the network for the region
    _, path = FileSystem.from_uri(uris.arrow_uri("/".join([root, *names])) + options)
    assert path == "/".join(["lake", *names])


@settings(max_examples=30)
@given(NAMES, st.sampled_from(["{}", "file:{}", "file://{}", "file://localhost{}", "FILE:{}/", "{}//"]))
def test_a_local_file_has_the_name_that_was_given(names: list[str], form: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = "/".join([folder, *names])
        uri = form.format(path)
        filesystems.write_bytes(uri, b"x")
        assert Path(path).read_bytes() == b"x"
        assert filesystems.exists(uri)
        assert filesystems.list_files(folder) == [("/".join(names), 1)]
        assert uris.canonical(uri) == path
        assert uris.spark_uri(uri) == f"file://{path}"


@given(ROOTS, NAMES)
def test_a_canonical_uri_stays_as_it_is_and_means_the_same(root: str, names: list[str]) -> None:
    uri = "/".join([root, *names])
    canonical = uris.canonical(uri)
    assert uris.canonical(canonical) == canonical
    assert uris.parse(canonical) == uris.parse(uri)
    parent = "/".join([root, *names[:-1]]) if names[1:] else f"{root}/"
    assert uris.join(parent, names[-1]) == canonical


@given(ROOTS, NAMES)
def test_a_sibling_lies_in_the_same_folder(root: str, names: list[str]) -> None:
    location = uris.parse(uris.sibling("/".join([root, *names]), "staging-1"))
    assert location.path == "/".join(["", *names[:-1], f".{names[-1]}.staging-1"])
    assert location.authority == uris.parse(f"{root}/").authority


@pytest.mark.parametrize("root", ["s3://bucket", "s3a://bucket/", "hdfs:///", "hdfs://nn", "/", "file:///"])
def test_nothing_lies_beside_a_whole_bucket(root: str) -> None:
    assert uris.is_root(root)
    with pytest.raises(InvalidUriError, match="is a whole bucket or filesystem: name a folder in it"):
        uris.sibling(root, "staging")
    with pytest.raises(InvalidUriError, match=r"^model_uri '.*' is a whole bucket"):
        uris.require_folder("model_uri", root)
    assert uris.parse(uris.join(root, "a")).path == "/a"


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("a:b/c", "can be read as a URI and as a path"),
        ("s3:bucket/key", "can be read as a URI and as a path"),
        (" s3://bucket/key", "can be read as a URI and as a path"),
        ("file:a", "can be read as a URI and as a path"),
        ("file://lake/train", r"is a file of host 'lake': a local file has three slashes, file:///"),
        ("s3:///key", "names no bucket: expected s3://bucket/key"),
        ("s3:/bucket/key", "names no bucket"),
        ("s3://bucket?region=x/key", r"has '\?' in the name of its bucket or host"),
        ("s3://bucket#x/key", "has '#' in the name"),
    ],
)
def test_what_names_no_place_is_refused(uri: str, problem: str) -> None:
    with pytest.raises(InvalidUriError, match=f"model_uri .* {problem}"):
        uris.require_folder("model_uri", uri)


@pytest.mark.parametrize("path", ["./a:b/c", "2024-01-01T00:00/c", "ds=a:b", "a/b:c", "%20", "#a"])
def test_a_relative_path_may_hold_colons(path: str) -> None:
    assert uris.canonical(path) == os.path.join(os.getcwd(), path.removeprefix("./"))
    assert uris.spark_uri(path) == f"file://{uris.canonical(path)}"


@pytest.mark.parametrize("uri", ["hdfs:/x", "dbfs:/x", "hdfs:///x", "s3://a/x"])
def test_other_filesystems_are_no_local_folders(uri: str) -> None:
    assert uris.local_path(uri) is None


@pytest.mark.parametrize(
    ("uri", "spark", "canonical"),
    [
        ("/lake/ds=2013-01-01/", "file:///lake/ds=2013-01-01", "/lake/ds=2013-01-01"),
        ("file:/lake/a/../b c", "file:///lake/b c", "/lake/b c"),
        ("s3://bucket/key/", "s3a://bucket/key", "s3://bucket/key"),
        ("s3n://bucket//key", "s3a://bucket/key", "s3n://bucket/key"),
        ("S3://bucket", "s3a://bucket", "s3://bucket"),
        ("hdfs:/key", "hdfs:///key", "hdfs:///key"),
        ("hdfs://host/../key", "hdfs://host/key", "hdfs://host/key"),
    ],
)
def test_each_has_its_own_spelling(uri: str, spark: str, canonical: str) -> None:
    assert uris.spark_uri(uri) == spark
    assert uris.canonical(uri) == canonical


def test_a_path_in_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/a b%20")
    assert uris.canonical("~/lake") == "/home/a b%20/lake"
    assert uris.canonical("/~/lake") == "/~/lake"


def test_partitions_are_named_as_spark_names_them() -> None:
    # From Spark 4.2 itself: ExternalCatalogUtils.escapePathName of U+0001 to U+00FF and some beyond.
    escaped = [chr(number) for number in (*range(1, 32), 127)] + list("\"#%'*/:=?[\\]^{")
    for character in [*map(chr, range(1, 256)), "€", "😀", "\ufeff", "\u2028"]:
        name = f"%{ord(character):02X}" if character in escaped else character
        assert uris.partition_uri("s3://lake/t/", {"k": character}) == f"s3://lake/t/k={name}"
    assert (
        uris.partition_uri("/t", {"ds": "2024-01-01", "h/r": "T00:00"}) == "/t/ds=2024-01-01/h%2Fr=T00%3A00"
    )
    assert uris.partition_uri("s3://lake/", {}) == "s3://lake"


@given(st.dictionaries(st.text(HOSTILE + "/", min_size=1), st.text(HOSTILE + "/", min_size=1), min_size=1))
def test_a_partition_is_one_folder_for_each_column(partition: dict[str, str]) -> None:
    path = uris.parse(uris.partition_uri("s3://lake/t", partition)).path
    folders = path.removeprefix("/t/").split("/")
    assert [tuple(map(unquote, folder.split("="))) for folder in folders] == list(partition.items())


@pytest.mark.parametrize(
    ("uri", "asset"),
    [
        ("/models/a b#1", "file:///models/a%20b%231"),
        ("file:/m", "file:///m"),
        ("s3a://lake/m?x/", "s3://lake/m%3Fx"),
        ("s3://lake/hour=T00%3A00", "s3://lake/hour=T00%3A00"),
        ("hdfs://nn:8020/m", "hdfs://nn:8020/m"),
    ],
)
def test_an_asset_is_known_by_a_uri_that_airflow_takes(uri: str, asset: str) -> None:
    assert uris.asset_uri(uri) == asset


@pytest.mark.parametrize(
    ("folder", "uri", "holds"),
    [
        ("/lake", "/lake/scores", True),
        ("/lake/", "file:///lake", True),
        ("/lake", "/lake2", False),
        ("s3://b", "s3a://b/x", True),
        ("s3://b/x", "s3://c/x/y", False),
        ("/", "/x", True),
        ("/lake/scores", "/lake", False),
    ],
)
def test_a_folder_holds_itself_and_what_lies_below_it(folder, uri, holds):
    assert uris.holds(folder, uri) is holds


def test_a_table_beside_one_that_is_a_whole_bucket_has_no_place():
    for uri in ("s3://lake", "s3://lake/ds=1", "/ds=1"):
        with pytest.raises(InvalidUriError):
            uris.beside_table(uri, "_bad")
