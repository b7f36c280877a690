#!/usr/bin/env python3
"""Jars of connectors and servers, in the versions of jars.txt: fetched once by Maven, kept in the cache.

    python scripts/jars.py delta kafka      # prints where they are, joined by commas: for spark.jars

The cache is where Horovod's wheels lie, outside the checkout. Maven's own settings decide where jars come
from; one whose SHA-256 is not the one in jars.txt is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from airflow_hydrogen.horovod_build.__main__ import cache_folder  # noqa: E402

PINS = Path(__file__).with_suffix(".txt")
FETCH_TIMEOUT_S = 900.0  # ten seconds on a good line
_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0">
<modelVersion>4.0.0</modelVersion><groupId>jars</groupId><artifactId>jars</artifactId><version>1</version>
<packaging>pom</packaging>
<build><plugins><plugin>
<groupId>org.apache.maven.plugins</groupId><artifactId>maven-dependency-plugin</artifactId><version>3.8.1</version>
<configuration><artifactItems>
{items}
</artifactItems></configuration>
</plugin></plugins></build>
</project>
"""


class JarsUnavailableError(LookupError):
    """Jars that are not in the cache could not be fetched into it, with the reason and what to do."""


@dataclass(frozen=True)
class Jar:
    """One line of jars.txt."""

    group: str
    artifact: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


def pinned(names: Sequence[str], text: str | None = None) -> list[Jar]:
    """The jars of these sets, each once, in the file's order.

    Args:
        names: headings in jars.txt, such as `delta`.
        text: instead of what stands in jars.txt.

    Raises:
        LookupError: there is no such set.
    """
    sets: dict[str, list[Jar]] = {}
    for line in (PINS.read_text() if text is None else text).splitlines():
        content = line.partition("#")[0].strip()
        if content.startswith("["):
            current = sets.setdefault(content.strip("[]"), [])
        elif content:
            coordinate, sha256 = content.split()
            current.append(Jar(*coordinate.split(":"), sha256))
    if unknown := set(names) - set(sets):
        raise LookupError(
            f"no jars are called {', '.join(sorted(unknown))}: {PINS.name} has {', '.join(sets)}"
        )
    return list(dict.fromkeys(jar for name in sets if name in names for jar in sets[name]))


def jars(*names: str, folder: Path | None = None) -> list[Path]:
    """Where the jars of these sets are, after fetching those that are missing.

    Several processes may ask at the same time: one fetches, the others wait. A jar in the folder is whole.

    Args:
        names: headings in jars.txt, such as `delta`.
        folder: where they are kept; the cache unless given.

    Raises:
        JarsUnavailableError: Maven is missing, or does not get them.
        LookupError: there is no such set.
    """
    wanted = pinned(names)
    folder = folder or cache_folder() / "jars"
    if _missing(wanted, folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if missing := _missing(wanted, folder):
                _fetch(missing, folder)
    return [folder / jar.file_name for jar in wanted]


def _missing(wanted: Sequence[Jar], folder: Path) -> list[Jar]:
    return [jar for jar in wanted if not (folder / jar.file_name).exists()]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The kernel lets go of the lock when its holder dies."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left_over in folder.glob("fetch-*"):  # of one that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        yield


def _fetch(missing: Sequence[Jar], folder: Path) -> None:
    def failed(why: str) -> JarsUnavailableError:
        files = ", ".join(jar.file_name for jar in missing)
        return JarsUnavailableError(f"{files}: not in {folder}, and {why}")

    maven = shutil.which("mvn")
    if maven is None:
        raise failed("there is no mvn to fetch them with: install Maven, or put them into that folder")
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=folder) as temporary:
        project = Path(temporary, "pom.xml")
        project.write_text(_POM.format(items="\n".join(_item(jar) for jar in missing)))
        command = [
            *(maven, "--quiet", "--batch-mode", "--strict-checksums", "--file", str(project)),
            *("dependency:copy", f"-DoutputDirectory={temporary}"),
        ]
        run = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=FETCH_TIMEOUT_S,
        )
        if run.returncode:
            raise failed(f"Maven does not get them: {run.stdout.strip()[-1500:]}")
        for jar in missing:
            fetched = Path(temporary, jar.file_name)
            found = hashlib.sha256(fetched.read_bytes()).hexdigest()
            if found != jar.sha256:
                raise failed(f"{jar.file_name} came with the SHA-256 {found} instead of {jar.sha256}")
        for jar in missing:
            Path(temporary, jar.file_name).replace(folder / jar.file_name)


def _item(jar: Jar) -> str:
    return (
        f"<artifactItem><groupId>{jar.group}</groupId><artifactId>{jar.artifact}</artifactId>"
        f"<version>{jar.version}</version></artifactItem>"
    )


if __name__ == "__main__":
    print(",".join(str(jar) for jar in jars(*sys.argv[1:])))
