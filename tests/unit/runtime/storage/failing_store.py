"""Filesystems whose operations fail, one after the other: before they take effect, or after."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from airflow_hydrogen.contract import uris
from airflow_hydrogen.runtime.storage import filesystems, swap


class Faults:
    """Counts operations, and fails one of them.

    Attributes:
        fail_at: the number of the operation that fails, from 0; None lets all succeed.
        after: whether it takes effect all the same.
        dead: whether all operations after it fail as well, as those of a process that was killed.
    """

    def __init__(self) -> None:
        self.reset(None)

    def reset(self, fail_at: int | None, *, after: bool = False, dead: bool = False) -> None:
        self.fail_at, self.after, self.dead, self.count = fail_at, after, dead, 0

    def __call__(self, operation: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        number, self.count = self.count, self.count + 1
        if self.fail_at is None or number < self.fail_at or (number > self.fail_at and not self.dead):
            return operation(*args, **kwargs)
        if number == self.fail_at and self.after:
            operation(*args, **kwargs)
        raise OSError(f"503 at operation {number}: {getattr(operation, '__name__', operation)}")


class _Upload(io.BytesIO):
    """Appears when it is closed, as an object does."""

    def __init__(self, put: Callable[[bytes], None]) -> None:
        super().__init__()
        self.put = put

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self.put(content)


class FailingStore(fs.FileSystemHandler):
    """A store in memory: path -> content."""

    def __init__(self, faults: Faults) -> None:
        self.files: dict[str, bytes] = {}
        self.faults = faults

    def get_type_name(self) -> str:
        return "failing"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self.faults(lambda: [self._info(path) for path in paths])

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        below = f"{selector.base_dir.rstrip('/')}/"
        names = set()
        for path in self.files:
            if path.startswith(below):
                parts = path.removeprefix(below).split("/")
                names.update("/".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        if not selector.recursive:
            names = {name for name in names if "/" not in name}
        return self.faults(lambda: [self._info(below + name) for name in sorted(names)])

    def _info(self, path: str) -> fs.FileInfo:
        if path in self.files:
            return fs.FileInfo(path, type=fs.FileType.File, size=len(self.files[path]))
        is_folder = any(name.startswith(f"{path}/") for name in self.files)
        return fs.FileInfo(path, type=fs.FileType.Directory if is_folder else fs.FileType.NotFound)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.faults(lambda: None)

    def delete_dir(self, path: str) -> None:
        for name in [name for name in self.files if name.startswith(f"{path}/")]:
            self.faults(self.files.pop, name)  # one after the other: half of a folder may be left

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        raise AssertionError("nobody empties a folder")

    def delete_root_dir_contents(self) -> None:
        raise AssertionError("nobody empties a store")

    def delete_file(self, path: str) -> None:
        self.faults(self.files.pop, path)

    def move(self, src: str, dest: str) -> None:
        assert dest not in self.files, "a rename overwrites nothing on HDFS"
        self.faults(lambda: self.files.update({dest: self.files.pop(src)}))

    def copy_file(self, src: str, dest: str) -> None:
        self.faults(lambda: self.files.update({dest: self.files[src]}))

    def open_input_stream(self, path: str) -> Any:
        return self.faults(lambda: pa.PythonFile(io.BytesIO(self._content(path)), mode="r"))

    open_input_file = open_input_stream

    def _content(self, path: str) -> bytes:
        if path not in self.files:
            raise FileNotFoundError(path)
        return self.files[path]

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        def put(content: bytes) -> None:
            self.faults(lambda: self.files.update({path: content}))

        return pa.PythonFile(_Upload(put), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise AssertionError("nobody appends to an object")


@pytest.fixture(params=["objects", "renames", "exchange", "no exchange"])
def failing(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, Faults]]:
    """The URI of a folder on a store of each kind, and what makes it fail."""
    faults = Faults()
    kind = request.param
    if kind in ("objects", "renames"):
        store = fs.PyFileSystem(FailingStore(faults))
        real = filesystems.resolve
        monkeypatch.setattr(
            filesystems,
            "resolve",
            lambda uri: (
                (store, uri.removeprefix("fail:/").rstrip("/")) if uri.startswith("fail://") else real(uri)
            ),
        )
        monkeypatch.setattr(filesystems, "_renames", lambda filesystem: kind == "renames")
        yield f"fail://{kind}/lake", faults
        return
    for module, name in [
        (filesystems, "list_files"),
        (filesystems, "list_siblings_of_all"),
        (filesystems, "read_bytes"),
        (filesystems, "write_bytes"),
        (filesystems, "transfer"),
        (filesystems, "remove"),
        (swap, "_exchange"),
        (swap.shutil, "rmtree"),
    ]:
        operation = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, _it=operation, **kwargs: faults(_it, *args, **kwargs))
    if kind == "no exchange":
        monkeypatch.setattr(swap, "exchange", lambda staged, target: False)
    yield uris.canonical(str(tmp_path)), faults
