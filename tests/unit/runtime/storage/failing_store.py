"""Filesystems whose operations fail, one after the other: before they take effect, or after."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import fs

from airflow_hydrogen.runtime.storage import filesystems, swap, uris


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

    def __init__(self, path: str, faults: Faults) -> None:
        super().__init__()
        self.path, self.faults = path, faults

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self.faults(self._put, content)

    def _put(self, content: bytes) -> None:
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        Path(self.path).write_bytes(content)


class FailingStore(fs.FileSystemHandler):
    """A local folder that behaves as an object store."""

    def __init__(self, faults: Faults) -> None:
        self.local, self.faults = fs.LocalFileSystem(), faults

    def get_type_name(self) -> str:
        return "failing"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> Any:
        return self.faults(self.local.get_file_info, paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:
        return self.faults(self.local.get_file_info, selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.faults(self.local.create_dir, path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self.faults(self.local.delete_dir, path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        self.faults(self.local.delete_dir_contents, path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        raise AssertionError("nobody empties a store")

    def delete_file(self, path: str) -> None:
        self.faults(self.local.delete_file, path)

    def move(self, src: str, dest: str) -> None:
        assert not Path(dest).exists(), "a rename overwrites nothing on HDFS"
        self.faults(self.local.move, src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self.faults(self.local.copy_file, src, dest)

    def open_input_stream(self, path: str) -> Any:
        return self.faults(self.local.open_input_stream, path)

    def open_input_file(self, path: str) -> Any:
        return self.faults(self.local.open_input_file, path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        return pa.PythonFile(_Upload(path, self.faults), mode="w")

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
            lambda uri: (store, uri.removeprefix("fail:/")) if uri.startswith("fail://") else real(uri),
        )
        monkeypatch.setattr(filesystems, "_renames", lambda filesystem: kind == "renames")
        yield f"fail:/{tmp_path}", faults
        return
    for module, name in [
        (filesystems, "list_files"),
        (filesystems, "list_siblings"),
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
