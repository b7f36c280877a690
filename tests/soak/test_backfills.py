"""16 backfills at once into one table, four of them killed at random moments and run again: `make soak`."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.jars import jars
from tests.integration.conftest import EXTENSION, SESSION
from tests.integration.databases import postgres_server
from tests.integration.metastore import hive_metastore
from tests.integration.models import publish_plain
from tests.soak.backfills import Backfill, Table

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

RUNS, KILLS, AT_ONCE = 16, 4, 3


@pytest.fixture(params=["parquet", "delta", "hive", "jdbc"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Table]:
    """One of each kind; another kind of sink is another branch here, and in `Table` what only it knows."""
    folder = tmp_path / "lake" / "scores"
    if request.param == "parquet":
        yield Table("parquet", folder, str(folder))
    elif request.param == "delta":
        connector = {"spark.jars": ",".join(map(str, jars("delta")))}
        conf = {**SESSION, **connector, "spark.sql.extensions": EXTENSION}
        yield Table("delta", folder, str(folder), conf)
    elif request.param == "jdbc":
        conf = {"spark.jars": ",".join(map(str, jars("postgresql")))}
        with postgres_server(tmp_path) as server:
            yield Table("jdbc", folder, "scores", conf, server.database())
    else:
        (tmp_path / "metastore").mkdir()
        with hive_metastore(tmp_path / "metastore") as metastore:
            yield Table("hive", metastore.folder / "scores", "default.scores", metastore.settings)


def test_every_partition_ends_with_exactly_its_rows(table: Table, tmp_path: Path) -> None:
    seed = random.randrange(1_000_000)
    print(f"{table.kind}: seed {seed}")
    chance = random.Random(seed)
    model = publish_plain(tmp_path)

    def backfill(number: int) -> Backfill:
        return Backfill.prepare(table, model, f"d{number}", tmp_path / "runs" / str(number))

    others = [backfill(number) for number in (100, 101)]
    took = max(_run_alone(other) for other in others)
    before = table.read(tmp_path)

    runs = [backfill(number) for number in range(RUNS)]
    doomed = chance.sample(runs, KILLS)
    killed = _run_all(runs, doomed, {run.day: chance.uniform(0.3, 1.2) * took for run in doomed}, chance)
    print(f"{table.kind}: one alone took {took:.1f} s; killed after {', '.join(killed)}")

    found = table.read(tmp_path)
    assert {day: found[day]["ids"] for day in found} == {run.day: run.ids for run in [*others, *runs]}
    assert {other.day: found[other.day] for other in others} == before
    assert table.leftovers(found) == []
    assert all("Spark writes the rows of" not in run.log.read_text() for run in runs), "but tasks do"


def _run_alone(run: Backfill) -> float:
    started = time.monotonic()
    run.start()
    assert run.process is not None and run.process.wait() == 0, run.log.read_text()
    return time.monotonic() - started


def _run_all(
    runs: list[Backfill], doomed: list[Backfill], moments: dict[str, float], chance: random.Random
) -> list[str]:
    """Run all, a few at once, and kill some at their moments; those are run again.

    Returns:
        When each was killed, in seconds after its start.
    """
    waiting, living, killed = list(runs), {}, []
    to_kill = {run.day for run in doomed}
    while waiting or living:
        while waiting and len(living) < AT_ONCE:
            run = waiting.pop(0)
            run.start()
            living[run.day] = (run, time.monotonic())
        for day, (run, started) in list(living.items()):
            assert run.process is not None
            age = time.monotonic() - started
            if day in to_kill and age >= moments[day] and run.kill():
                to_kill.remove(day)
                killed.append(f"{age:.1f} s")
                waiting.insert(chance.randint(0, len(waiting)), run)
                del living[day]
            elif run.process.poll() is not None:
                assert run.process.returncode == 0, run.log.read_text()
                del living[day]
                if day in to_kill:  # faster than its killer: another run has to die
                    to_kill.remove(day)
                    if waiting:
                        other = chance.choice(waiting)
                        to_kill.add(other.day)
                        moments[other.day] = moments[day] / 2
        time.sleep(0.05)
    assert len(killed) == KILLS, f"{len(killed)} were killed"
    return killed
