"""How far a stream is, and whether its checkpoint and its batches belong together.

Batches are numbered by the checkpoint, and each replaces the folder of its number. A checkpoint that was
emptied counts from 0 again, and one of another stream has numbers of its own: either would replace batches
that are none of its business. So both sides hold the stream's id, in two small files:

- `CHECKPOINT/hydrogen.json` says which stream it is, from where into what, and which try scores it now;
- `SINK/.stream.json` says by which stream the batches there were written, as it does in the quarantine. The
  log of a Delta table says it itself, and which of them is the newest.

Spark writes the offsets of a batch before the batch is scored. Hence no batch at the sink has a higher number
than the newest offsets of its own checkpoint.
"""

from __future__ import annotations

import json
import re
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import CheckpointMismatchError, StreamTakenError
from airflow_hydrogen.contract.jobs import InferenceJob
from airflow_hydrogen.contract.streams import BATCH_COLUMN
from airflow_hydrogen.runtime.storage import filesystems
from airflow_hydrogen.runtime.storage.partition_files import is_hidden

_OURS = "hydrogen.json"
_MARK = ".stream.json"
_BATCH = re.compile(rf"{BATCH_COLUMN}=(\d+)")


@dataclass(frozen=True)
class Position:
    """The place of one try in its stream.

    Attributes:
        checkpoint: its folder.
        stream: the id of the stream, the same for every try.
        token: of this try alone.
        placed: the newest batch of the stream that was at the sink when the try began, where the sink says
            so; -1 where none was. Spark may not have noted that it is done.
    """

    checkpoint: str
    stream: str
    token: str
    placed: int = -1

    def require_owner(self) -> None:
        """Raise StreamTakenError where a newer try scores the stream."""
        found = _read(uris.join(self.checkpoint, _OURS))
        if found is None or found.get("token") != self.token:
            raise StreamTakenError(self.checkpoint)

    def offsets(self) -> Any:
        """Up to where the source has been scored, as Spark writes it; None where nothing has."""
        number = newest(self.checkpoint, "commits")
        if number is None:
            return None
        text = filesystems.read_bytes(uris.join(self.checkpoint, "offsets", str(number))).decode()
        return json.loads(text.strip().splitlines()[-1])


def claim(job: InferenceJob, topic: str | None = None, batches: Mapping[str, int] | None = None) -> Position:
    """Begin a try to score a stream; the newest try wins.

    Args:
        job: of the stream.
        topic: the id of the source's topic, where it is one.
        batches: the streams that have written the sink, where it says so: the id of each -> its newest batch.

    Raises:
        CheckpointMismatchError: the checkpoint is that of another stream, or not that of the sink's batches.
    """
    assert job.stream is not None
    checkpoint = uris.canonical(job.stream.checkpoint_uri)
    described = _describe(job)
    found = _read(uris.join(checkpoint, _OURS))
    if found is None and filesystems.exists(uris.join(checkpoint, "metadata")):
        raise CheckpointMismatchError(
            checkpoint,
            f"is that of a query that this package has not started: it has no {_OURS}. Name another folder",
        )
    if found is not None and (found["source"], found["sink"]) != (described["source"], described["sink"]):
        raise CheckpointMismatchError(
            checkpoint,
            f"is that of another stream, from {found['source']} into {found['sink']}, and not from "
            f"{described['source']} into {described['sink']}. Each stream has a checkpoint of its own, and "
            "the same source and sink in every run",
        )
    if found is not None and found.get("topic") not in (None, topic):
        raise CheckpointMismatchError(
            checkpoint,
            f"holds offsets of a topic that is gone: {job.source.topic!r} was made anew since, and its "
            "messages are counted from 0 again. Begin anew with another checkpoint and another sink",
        )
    stream = found["stream"] if found else uuid.uuid4().hex
    placed = -1 if batches is None else batches.get(stream, -1)
    position = Position(checkpoint, stream, secrets.token_hex(6), placed)
    if batches is not None:
        _require_own_commits(str(job.sink), batches, position)
    folders = {"sink": job.sink.folder, "quarantine": job.quarantine_uri}
    for name, folder in folders.items():
        if folder is not None:
            _require_own_batches(name, folder, position, known=found is not None)
    document = {"stream": position.stream, **described, "topic": topic, "token": position.token}
    filesystems.write_bytes(uris.join(checkpoint, _OURS), json.dumps(document, indent=1).encode())
    mark = json.dumps({"stream": position.stream, "checkpoint": checkpoint}).encode()
    for folder in folders.values():
        if folder is not None:
            filesystems.write_bytes(uris.join(folder, _MARK), mark)
    return position


def newest(checkpoint: str, log: str) -> int | None:
    """The highest number in one of Spark's logs, "offsets" or "commits"; None where there is none."""
    names = [name for name, _size in filesystems.list_files(uris.join(checkpoint, log))]
    return max((int(name) for name in names if name.isdigit()), default=None)


def _require_own_commits(sink: str, batches: Mapping[str, int], position: Position) -> None:
    """The same of a sink that says itself whose batches it has."""
    checkpoint = position.checkpoint
    if batches and position.stream not in batches:
        raise CheckpointMismatchError(
            checkpoint,
            f"is not that of the stream that has written {sink}. Another one would add the same rows once "
            "more. Name that one, or give the stream a table, or a partition of one, of its own",
        )
    if len(batches) > 1:
        raise CheckpointMismatchError(
            checkpoint,
            f"is not the only one by which {sink} was written: {len(batches)} streams have begun it at the "
            "same time, and its rows may be there twice. Give each of them a table of its own",
        )
    done = newest(checkpoint, "commits")
    if done is not None and done > position.placed:
        there = f"no later one than batch {position.placed}" if batches else "none of its batches"
        raise CheckpointMismatchError(
            checkpoint,
            f"goes on after batch {done}, and {sink} has {there}. Bring them back, or begin anew with "
            "another checkpoint, which reads the source from its start, and another table",
        )
    _require_reached(sink, position.placed, checkpoint, "another table")


def _require_reached(place: str, there: int, checkpoint: str, elsewhere: str) -> None:
    """Raise CheckpointMismatchError where a place has batches that its checkpoint has not begun."""
    reached = newest(checkpoint, "offsets")
    if there > (-1 if reached is None else reached):
        raise CheckpointMismatchError(
            checkpoint,
            f"was set back: {place} has batch {there}, and the checkpoint has "
            + (f"not come further than batch {reached}" if reached is not None else "begun none")
            + f". Bring the checkpoint back, or give the stream {elsewhere} and another checkpoint",
        )


def _require_own_batches(name: str, folder: str, position: Position, known: bool) -> None:
    checkpoint = position.checkpoint
    mark = _read(uris.join(folder, _MARK))
    if mark is None:
        if any(not is_hidden(name) for name, _size in filesystems.list_files(folder)):
            raise CheckpointMismatchError(
                checkpoint,
                f"is that of a stream into {folder!r}, which holds files that no stream has written. Give "
                "the stream a folder of its own",
            )
        # A stream may be given a quarantine after its first batches.
        if name == "sink" and (last := newest(checkpoint, "commits")) is not None:
            raise CheckpointMismatchError(
                checkpoint,
                f"goes on after batch {last}, and sink {folder!r} has none of its batches. Bring them back, "
                "or begin anew with another checkpoint, which reads the source from its start",
            )
        return
    if not known or mark.get("stream") != position.stream:
        raise CheckpointMismatchError(
            checkpoint,
            f"is not that of the batches at {name} {folder!r}: theirs is {mark.get('checkpoint')!r}. Batches "
            "are numbered by their checkpoint, and another one would replace those that are there. Name that "
            "one, or give the stream a folder that is empty",
        )
    there = max(
        (int(match[1]) for name in filesystems.list_folders(folder) if (match := _BATCH.fullmatch(name))),
        default=-1,
    )
    _require_reached(f"{name} {folder!r}", there, checkpoint, "an empty folder")


def _describe(job: InferenceJob) -> dict[str, str]:
    """From where into what, without what may change: servers, credentials, options."""
    source, sink = job.source, job.sink
    read = source.topic if source.topic is not None else _place(str(source.uri))
    if sink.uri is not None:
        written = _place(uris.partition_uri(sink.uri, sink.partition))
    else:
        written = " ".join([str(sink.topic or sink.table_name), *map("=".join, sink.partition.items())])
    return {"source": f"{source.kind} {read}", "sink": f"{sink.kind} {written}"}


def _place(uri: str) -> str:
    """A folder, however its store is spelled: s3a:// and s3:// are one."""
    return "".join(uris.airflow_parts(uri))


def _read(uri: str) -> dict[str, Any] | None:
    try:
        found = json.loads(filesystems.read_bytes(uri))
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found if isinstance(found, dict) else {}
