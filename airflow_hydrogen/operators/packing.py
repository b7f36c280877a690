"""The code that travels with an application: zip files for `--py-files`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import airflow_hydrogen
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.drivers.zips import write_zip
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
    package = Path(airflow_hydrogen.__file__).parent
    files = [package / "__init__.py"]
    for part in _RUNTIME:
        files += (package / part).rglob("*.py")
    return write_zip(target, ((file.relative_to(package.parent), file) for file in files))


def project_files(
    modules: Iterable[str], sources: Iterable[Path], extra_folders: Iterable[Path]
) -> dict[Path, Path]:
    """The project code that a job needs and the cluster cannot have: name in the zip -> file.

    That is the top-level packages of `modules` unless they are installed, and, from the same folders, the
    packages that these or `sources` import.

    Args:
        modules: names of modules that the application imports.
        sources: files whose functions travel by value, such as a DAG file.
        extra_folders: folders that are searched after `sys.path`: the DAG file's own.

    Raises:
        InvalidJobError: it is too much to travel with every run.
    """
    folders = list(extra_folders)
    sources = list(sources)
    roots = {source.resolve().parent for source in sources} | {folder.resolve() for folder in folders}
    pending: set[str] = {name.partition(".")[0] for name in modules}
    for name in pending:
        if (location := find_module(name, folders)) and location.root and not location.is_installed:
            roots.add(location.root)
    for source in sources:
        pending |= imported_top_levels(source)
    done: set[str] = {airflow_hydrogen.__name__}
    files: dict[Path, Path] = {}
    while pending - done:
        name = min(pending - done)
        done.add(name)
        location = find_module(name, folders)
        if location is None or location.root is None or location.is_installed or location.root not in roots:
            continue
        found = dict(_package_files(location.root, name))
        files |= found
        for file in found.values():
            if file.suffix == ".py":
                pending |= imported_top_levels(file)
    total = sum(file.stat().st_size for file in files.values())
    if total > MAX_PROJECT_BYTES:
        packages = ", ".join(sorted({file.parts[0] for file in files}))
        raise InvalidJobError(
            f"the code beside the DAG ({packages}) holds {total / 1e6:.0f} MB, more than the "
            f"{MAX_PROJECT_BYTES / 1e6:.0f} MB that travel with a run; move data out of the package, or "
            "install the package on the cluster"
        )
    return files


def pack_project(target: Path, files: dict[Path, Path]) -> Path:
    """Zip what `project_files` found."""
    return write_zip(target, files.items())


def _package_files(root: Path, name: str) -> Iterator[tuple[Path, Path]]:
    module = root / f"{name}.py"
    package = root / name
    if not package.is_dir():
        yield module.relative_to(root), module
        return
    for file in sorted(package.rglob("*")):
        inside = file.relative_to(root)
        hidden = any(part.startswith(".") or part in _SKIPPED_FOLDERS for part in inside.parts)
        if hidden or file.suffix in _SKIPPED_SUFFIXES or not file.is_file():
            continue
        if file.suffix == ".py" or file.stat().st_size <= MAX_DATA_FILE_BYTES:
            yield inside, file
