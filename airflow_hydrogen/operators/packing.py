"""The code that travels with an application: zip files for `--py-files`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import airflow_hydrogen
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.drivers.zips import files_below, is_file, read_bytes, write_zip, zipped
from airflow_hydrogen.operators.modules import find_module, imported_top_levels

MAX_DATA_FILE_BYTES = 1_000_000
MAX_PROJECT_BYTES = 50_000_000

_RUNTIME = ("contract", "runtime")
_SKIPPED_FOLDERS = {"__pycache__", "node_modules"}
_SKIPPED_SUFFIXES = {".pyc", ".pyo", ".so", ".pyd"}


def pack_runtime(target: Path) -> Path:
    """Zip the Spark side of this package: what runs there, without the Airflow side.

    The same version gives the same bytes, so that clusters can cache it.
    """
    target.write_bytes(_runtime())
    return target


@functools.cache  # as of this process: what it imports of the package does not change under it either
def _runtime() -> bytes:
    package = Path(airflow_hydrogen.__file__).parent
    files = [package / "__init__.py"]
    for part in _RUNTIME:
        files += (package / part).rglob("*.py")
    return zipped((file.relative_to(package.parent), file) for file in files)


def project_files(
    modules: Iterable[str], sources: Iterable[Path], extra_folders: Iterable[Path]
) -> dict[Path, Path]:
    """The project code that a job needs and the cluster cannot have: name in the zip -> file.

    That is the top-level packages and modules of `modules`, and all that these or `sources` import, unless
    they are installed: from wherever Python finds them, be it the root of the DAG's bundle, the folder of
    plugins, a folder beside the DAG file or a zip of DAGs.

    Args:
        modules: names of modules that the application imports.
        sources: files whose functions travel by value, such as a DAG file.
        extra_folders: folders or zips that are searched after `sys.path`: the DAG file's own.

    Raises:
        InvalidJobError: it is too much to travel with every run.
    """
    folders = list(extra_folders)
    pending: set[str] = {name.partition(".")[0] for name in modules}
    for source in sources:
        pending |= imported_top_levels(source)
    done: set[str] = set()
    files: dict[Path, Path] = {}
    total = 0
    while pending - done:
        name = min(pending - done)
        done.add(name)
        location = find_module(name, folders)
        for root in location.project_roots if location is not None else ():
            for inside, file, size in package_files(root, name):
                if inside in files:
                    continue  # of two portions of a namespace, the first on the path counts
                files[inside] = file
                total += size
                if file.suffix == ".py":
                    pending |= imported_top_levels(file)
    if total > MAX_PROJECT_BYTES:
        packages = ", ".join(sorted({file.parts[0] for file in files}))
        raise InvalidJobError(
            f"the project's code ({packages}) holds {total / 1e6:.0f} MB, more than the "
            f"{MAX_PROJECT_BYTES / 1e6:.0f} MB that travel with a run; move data out of the package, or "
            "install the package on the cluster"
        )
    return files


def pack_project(target: Path, files: dict[Path, Path]) -> Path:
    """Zip what `project_files` found."""
    return write_zip(target, files.items())


def package_files(root: Path, name: str) -> Iterator[tuple[Path, Path, int]]:
    """The files of a top-level package or module: name in a zip, file, bytes.

    Args:
        root: the folder or zip that holds it.
        name: the package's.
    """
    files = files_below(root / name)
    if not files:
        module = root / f"{name}.py"
        if is_file(module):
            yield module.relative_to(root), module, len(read_bytes(module))
        return
    for file, size in files.items():
        inside = file.relative_to(root)
        hidden = any(part.startswith(".") or part in _SKIPPED_FOLDERS for part in inside.parts)
        if hidden or file.suffix in _SKIPPED_SUFFIXES:
            continue
        if file.suffix == ".py" or size <= MAX_DATA_FILE_BYTES:
            yield inside, file, size
