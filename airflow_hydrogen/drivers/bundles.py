"""The zip that a worker of a standalone cluster fetches as a driver's jar, and that Python runs there.

| in it | what |
| --- | --- |
| `__main__.py` | `runtime/bootstrap.py` |
| `bundle.json` | what it has to know |
| `*.zip` | the runtime, and the project's code |
| `py/`, `files/`, `archives/` | the author's py_files, files with the job's scripts, and archives |

The job is not in it: the worker keeps the bundle where others on its host may read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import airflow_hydrogen
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.drivers.bundle_server import BUNDLE_NAME
from airflow_hydrogen.drivers.hook import is_remote
from airflow_hydrogen.drivers.zips import write_zip


def pack_bundle(
    folder: Path,
    job_url: str,
    archives: Sequence[Path],
    scripts: Iterable[Path],
    *,
    py_files: str | None,
    files: str | None,
    spark_archives: str | None,
    supervise: bool,
) -> Path:
    """Write the bundle.

    Args:
        folder: where to.
        job_url: where the driver gets its job.
        archives: the zips of runtime and project.
        scripts: scripts that the job names, found in the driver's working folder.
        py_files: as for spark-submit, like `files` and `spark_archives`: local files go into the bundle, what
            the cluster can fetch by itself does not.
        files: also found in the driver's working folder.
        spark_archives: unpacked by Spark.
        supervise: whether Spark starts a driver again that dies.

    Raises:
        InvalidJobError: a file that is not there, or two of one name.
    """
    content: dict[Path, Path] = {Path("__main__.py"): _bootstrap()}
    content |= {Path(archive.name): archive for archive in archives}
    settings: dict[str, Any] = {
        "bundle": BUNDLE_NAME,
        "job_url": job_url,
        "supervise": supervise,
        "archives": [archive.name for archive in archives],
        "py_files": _collect(content, "py_files", "py", py_files),
        "spark_archives": _collect(content, "archives", "archives", spark_archives),
        "files": _collect(content, "files", "files", files),
    }
    for script in scripts:
        _add(content, "entrypoint", Path("files", script.name), script)
    description = folder / "bundle.json"
    description.write_text(json.dumps(settings))
    content[Path(description.name)] = description
    return write_zip(folder / BUNDLE_NAME, content.items())


def _collect(content: dict[Path, Path], argument: str, inside: str, listed: str | None) -> list[str]:
    """Put the local ones of a list into the content; what the driver calls all of them."""
    names = []
    for entry in filter(None, (part.strip() for part in (listed or "").split(","))):
        if is_remote(entry):
            names.append(entry)
            continue
        path, found, alias = entry.partition("#")
        file = Path(path.removeprefix("file:"))
        if not file.is_file():
            raise InvalidJobError(f"{argument}: {path!r} does not exist on this machine")
        name = Path(inside, file.name)
        _add(content, argument, name, file)
        names.append(f"{name}{found}{alias}")
    return names


def _add(content: dict[Path, Path], argument: str, name: Path, file: Path) -> None:
    if content.setdefault(name, file) != file:
        raise InvalidJobError(
            f"{argument}: {file} and {content[name]} have the same name, and the driver finds files by their "
            "names; rename one"
        )


def _bootstrap() -> Path:
    return Path(airflow_hydrogen.__file__).parent / "runtime" / "bootstrap.py"
