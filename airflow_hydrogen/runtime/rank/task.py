"""What a rank is told, and what it answers, as values that travel."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from airflow_hydrogen.contract.jobs import Entrypoint
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.runtime.data.files import DatasetFiles

# The pipe's file descriptor and the parent's process id, which `worker` reads.
PIPE_VARIABLE = "AIRFLOW_HYDROGEN_PIPE"
PARENT_VARIABLE = "AIRFLOW_HYDROGEN_PARENT"
# A word of its own for each rank, which all that it starts inherits: the parent ends them by it.
MARK_VARIABLE = "AIRFLOW_HYDROGEN_RANK"
# The module that is a template's `__main__`, the mark that it has in place of a rank's, and what the kernel
# says of who is at the other end of its socket: process, user, group.
TEMPLATE_MODULE = "airflow_hydrogen.runtime.rank.template"
NO_MARK = "0" * 16
PEER = struct.Struct("3i")


@dataclass(frozen=True)
class RankTask:
    """What every rank of a gang runs.

    Attributes:
        entrypoint: a callable, an import path or a script.
        kwargs: keyword arguments of a function.
        args: the command line of a script.
        script: the script's text, for hosts that do not see its path.
        datasets: name -> the list of Parquet files that the driver made.
        checkpoints_uri, events_uri: where they go; None keeps none.
        publish_uri: folder for the model that `main` returns on rank 0; None returns the value itself.
        exports: for which other engines it is published as well.
        fingerprint: the job's.
        parts: of the job, by which the log says what has changed.
        attempt: which start of the gang this is, from 0.
        beat_s: seconds from one sign of life of a rank to the next.
        s3: what opens S3, for the rank and for what `main` calls.
    """

    entrypoint: Entrypoint
    kwargs: Mapping[str, object] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    script: str | None = None
    datasets: Mapping[str, DatasetFiles] = field(default_factory=dict)
    checkpoints_uri: str | None = None
    events_uri: str | None = None
    publish_uri: str | None = None
    exports: tuple[str, ...] = ()
    fingerprint: str = ""
    parts: Mapping[str, str] = field(default_factory=dict)
    attempt: int = 0
    beat_s: float = 5.0
    s3: S3Access | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Launch:
    """What a rank that is forked gets as another gets it from its start.

    Attributes:
        environment: all of it.
        folder: to work in.
        path: `sys.path`.
    """

    environment: Mapping[str, str]
    folder: str
    path: tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """The place of one barrier task in the gang, in Horovod's terms."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    cross_rank: int
    cross_size: int
    host: str


@dataclass(frozen=True)
class Answer:
    """What a rank's process answers once `main` has returned.

    Attributes:
        rank: the rank.
        value: rank 0's value, or what it published, pickled.
        weights: path and checksum of each trainable variable of the Keras model that `main` returned; None
            where it returned something else, or the ranks have compared their weights themselves.
    """

    rank: int
    value: bytes
    weights: tuple[tuple[str, int], ...] | None = None
