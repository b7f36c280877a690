"""An archive of the classes that Spark loads, from which later JVMs of this machine start in less time.

Most of what spark-submit does before the first row is to read, check and link ten thousand classes, the same
ones each time. Java keeps them in a file (class data sharing), which a JVM maps and does not work through. It
checks by itself that the file is of its own version and of these jars, and goes on without where it is not.

To write one takes a JVM some seconds at its end. A machine that runs a single job, as a container of its own
for each task is, would never get them back: so the first job leaves a note, and the one that finds it writes.

A JVM that cannot write it ends badly, after all its work is done. So it is not asked to where the disk has no
room, and where it failed it is not asked again for a week.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from airflow_hydrogen.hooks.launchers import spark_home

FOLDER = "airflow-hydrogen/java"

_UNUSED_S = 30 * 24 * 3600.0
_RETRY_AFTER_S = 7 * 24 * 3600.0
_ROOM_BYTES = 500_000_000  # for 180 MB, and what else the machine writes meanwhile
_QUIET = "-XX:+IgnoreUnrecognizedVMOptions -Xshare:auto -Xlog:cds*=off -Xlog:class+path=off"
# What else spark-class puts on the class path: no archive can be made with a folder there.
_CLASS_PATH_VARIABLES = ("HADOOP_CONF_DIR", "YARN_CONF_DIR", "SPARK_DIST_CLASSPATH", "SPARK_PREPEND_CLASSES")


class ClassArchive:
    """The archive for one Java and one Spark.

    Args:
        folder: of archives; this user's alone.
        key: of Java and Spark.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._archive = folder / f"{key}.jsa"
        self._note = folder / f"{key}.seen"
        self._failed = folder / f"{key}.failed"
        self._new = folder / f"{key}.{os.getpid()}.new"
        self._writes = False

    @property
    def writes(self) -> bool:
        """The JVM that gets the options writes the archive when it ends."""
        return self._writes

    def use(self) -> str:
        """Options for a JVM that never writes the archive; none where there is no archive yet."""
        if not self._archive.exists():
            return ""
        os.utime(self._archive)  # it is of use
        return f'"-XX:SharedArchiveFile={self._archive}" {_QUIET}'

    def begin(self) -> str:
        """Options for the JVM that is about to start: to use the archive, to write it, or none."""
        if options := self.use():
            return options
        if self._failed_lately() or shutil.disk_usage(self._archive.parent).free < _ROOM_BYTES:
            return ""
        try:
            self._note.unlink()  # one of those that come at the same time
        except FileNotFoundError:
            self._note.touch()
            return ""
        self._writes = True
        return f'"-XX:ArchiveClassesAtExit={self._new}" {_QUIET}'

    def finish(self, *, ended_well: bool) -> None:
        """Keep what the JVM has written.

        Args:
            ended_well: it came to its end; what it wrote is whole.
        """
        if not self._writes:
            return
        self._writes = False
        if not ended_well or not self._new.exists():
            self._new.unlink(missing_ok=True)
            return
        self._new.replace(self._archive)
        for other in self._archive.parent.iterdir():
            # Of another Spark, or of a process that was killed.
            with contextlib.suppress(FileNotFoundError):
                if time.time() - other.stat().st_mtime > _UNUSED_S:
                    other.unlink()

    def give_up(self, reason: str) -> None:
        """Remember that a JVM ended badly over the archive: the next ones are to end well.

        Args:
            reason: for whoever looks into the file.
        """
        with contextlib.suppress(OSError):  # a disk without room for a line: then its room decides
            self._failed.write_text(f"{reason}\n")

    def _failed_lately(self) -> bool:
        try:
            return time.time() - self._failed.stat().st_mtime < _RETRY_AFTER_S
        except FileNotFoundError:
            return False


def find_class_archive(
    spark_submit: str, java: str | None, environ: Mapping[str, str]
) -> ClassArchive | None:
    """The archive for what spark-submit will start, or None where there can be none.

    Args:
        spark_submit: its path.
        java: path of the Java that it will run; None: there is none.
        environ: what spark-submit will see.
    """
    home = spark_home(spark_submit, environ)
    if java is None or home is None or not _class_path_is_sparks(home, environ):
        return None
    folder = _private_folder(environ)
    return None if folder is None else ClassArchive(folder, _key(Path(java).resolve(), home))


def _class_path_is_sparks(home: Path, environ: Mapping[str, str]) -> bool:
    settings = Path(environ.get("SPARK_CONF_DIR") or home / "conf")
    has_settings = settings.is_dir() and any(settings.iterdir())
    return not has_settings and not any(environ.get(name) for name in _CLASS_PATH_VARIABLES)


def _private_folder(environ: Mapping[str, str]) -> Path | None:
    """The folder of archives: a JVM runs what is in them, so that nobody else may write there."""
    base = environ.get("XDG_CACHE_HOME") or (environ["HOME"] + "/.cache" if environ.get("HOME") else None)
    if base is None:
        return None
    folder = Path(base, FOLDER)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:  # a home that is read-only, or that is none
        return None
    own = found.st_uid == os.getuid() and not found.st_mode & 0o022 and os.access(folder, os.W_OK)
    return folder if own else None


def _key(java: Path, home: Path) -> str:
    digest = hashlib.sha256(f"{java}\n{home.resolve()}\n".encode())
    files = [*sorted((home / "jars").iterdir()), java]
    for file in files:
        found = file.stat()
        digest.update(f"{file.name} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
