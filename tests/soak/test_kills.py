"""kill -9 at random moments over scoring's swap and over publishing: `make soak`."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_hydrogen.runtime.storage import filesystems
from tests.integration.object_store import BUCKET, object_store
from tests.soak.writer import publish_model, read_model, read_partition, replace_partition, write

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

KILLS = 200

# A template that has imported everything, and from which writers are forked.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.soak.writer"])


@pytest.fixture(params=["local folder", "object store"])
def root(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "local folder":
        yield str(tmp_path / "lake")
        return
    (tmp_path / "objects").mkdir()
    with object_store(tmp_path / "objects") as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        yield f"s3://{BUCKET}/lake"


def _kill_a_writer(partition: str, model: str, first: int, delay_s: float) -> dict[str, int]:
    """Let a process write for a while, kill it, and return the last that it says it has put in place."""
    hears, says = _processes.Pipe(duplex=False)
    writer = _processes.Process(target=write, args=(partition, model, first, says))
    writer.start()
    says.close()
    assert hears.recv() == ("ready", 0)
    time.sleep(delay_s)
    writer.kill()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL, "it ended by itself"
    said = {}
    with contextlib.suppress(EOFError):
        while True:
            kind, number = hears.recv()
            said[kind] = number
    hears.close()
    return said


def test_after_every_kill_there_is_the_old_or_the_new(root: str) -> None:
    seed = random.randrange(1_000_000)
    print(f"seed {seed}")
    moments = random.Random(seed)
    partition, model = f"{root}/scores/ds=2013-01-01", f"{root}/models/m"
    started = time.monotonic()
    for number in range(3):
        replace_partition(partition, number)
        publish_model(model, number)
    round_s = (time.monotonic() - started) / 2
    counts: Counter[str] = Counter()
    for _ in range(KILLS):
        said = _kill_a_writer(partition, model, number + 1, moments.random() * 2 * round_s)
        for kind, found in (("partition", read_partition(partition)), ("model", read_model(model))):
            last = said.get(kind, number)
            assert found in (last, last + 1), f"{kind}: {found} where {last} was in place"
            counts[f"{kind}: {'old' if found == last else 'new'}"] += 1
            counts[f"{kind}: completed before the kill"] += last - number
        number = max(said.get("partition", number), said.get("model", number)) + 2
        replace_partition(partition, number)
        publish_model(model, number)
        assert read_partition(partition) == read_model(model) == number
        names = [name for name, _size in filesystems.list_files(f"{root}/scores")]
        assert all(name.startswith("ds=2013-01-01/") for name in names), "the retry swept what was staged"
        assert len([name for name in names if name.endswith(".parquet")]) == 3
        counts["retries that ended with the new"] += 1
    print(f"{KILLS} kills: {dict(sorted(counts.items()))}")
