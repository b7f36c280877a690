"""Warm scoring beside Ray Data, Daft and plain processes without Spark: same rows, model, engine and cores.

They run as `bench.peer`, in an environment of their own (`bench.environment`); the plain processes in ours.
Each measurement is a fresh process: nothing of another system computes beside it. A peer's clock starts when
its workers have the model; ours counts all that a job does in a session which is warm.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from airflow_hydrogen.contract.jobs import Engine
from airflow_hydrogen.runtime.models import directory
from bench.environment import peers_python
from bench.measure import Result, Target, compare, run_python
from bench.scoring import KEY, publish_model, score_rows, write_rows
from bench.spark import local_spark

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ENGINES: tuple[Engine, ...] = ("tensorflow", "onnx")
_IN = {"tensorflow": "", "onnx": ", ONNX Runtime"}
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Peer:
    """A system, and the settings that are tried for it: the fastest are taken.

    Attributes:
        name: in the table.
        system: in `bench.peer`.
        targets: engine -> what our ratio to it has to reach.
        tried: how the settings are called -> the settings.
        own_environment: whether it runs in the environment of the peers.
    """

    name: str
    system: str
    targets: Mapping[Engine, float]
    tried: Mapping[str, dict[str, Any]]
    own_environment: bool = True


def _ray(batch_rows: int, cpus: int, cpus_per_actor: float) -> dict[str, Any]:
    """Settings of Ray Data, whose cores are a count: those that write are beside those of the actors."""
    return {"batch_rows": batch_rows, "cpus": cpus, "cpus_per_actor": cpus_per_actor}


PEERS = (
    Peer(
        name="two processes without Spark",
        system="plain",
        targets={"tensorflow": 0.9, "onnx": 0.9},
        tried={f"batches of {size:,}": {"batch_rows": size} for size in (16_384, 65_536)},
        own_environment=False,
    ),
    Peer(
        name="Daft",
        system="daft",
        targets={"tensorflow": 1.1, "onnx": 1.3},
        tried={
            f"class UDF in two {'processes' if processes else 'threads'}, batches of {size:,}": {
                "batch_rows": size,
                "processes": processes,
            }
            for processes in (True, False)
            for size in (16_384, 65_536)
        },
    ),
    Peer(
        name="Ray Data",
        system="ray",
        targets={"tensorflow": 1.1, "onnx": 1.3},
        tried={
            # Reading becomes part of an actor's work where both ask for as many cores.
            "actor pool of two that reads, batches of 16,384": _ray(16_384, cpus=4, cpus_per_actor=1),
            "actor pool of two that reads, batches of 65,536": _ray(65_536, cpus=4, cpus_per_actor=1),
            "actor pool of two, batches of 65,536": _ray(65_536, cpus=2, cpus_per_actor=0.5),
        },
    ),
)


@dataclass
class _Contest:
    """One peer in one engine.

    Attributes:
        run: what scores with given settings, and says how it went.
        rates: how the settings are called -> rows per second, once each.
        settings: the fastest of them.
        versions: of the peer's packages.
        starts: seconds of a whole run, its start included.
        pairs: (ours, the peer's).
    """

    peer: Peer
    engine: Engine
    run: Callable[[str], dict[str, Any]]
    rows: int
    rates: dict[str, float] = field(default_factory=dict)
    settings: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    starts: list[float] = field(default_factory=list)
    pairs: list[tuple[float, float]] = field(default_factory=list)

    def try_settings(self, check: Callable[[], None], at_most: int | None) -> None:
        """Run with each of the first ones, check what it has written, and keep the fastest."""
        for name in list(self.peer.tried)[:at_most]:
            self.rates[name] = self.rate(name)
            check()
        self.settings = max(self.rates, key=lambda name: self.rates[name])
        self.starts.clear()

    def rate(self, settings: str) -> float:
        """Rows per second."""
        found = self.run(settings)
        self.versions = found["versions"]
        self.starts.append(found["seconds_with_start"])
        rate = self.rows / found["seconds"]
        print(f"    {self.peer.name}{_IN[self.engine]}, {settings}: {rate:,.0f} rows/s", flush=True)
        return rate

    def pair(self, ours: float) -> None:
        """Note a measurement of ours with one of the peer's."""
        self.pairs.append((ours, self.rate(self.settings)))

    def result(self) -> Result:
        """The line of the table."""
        version = self.versions.get(self.peer.system, "")
        return compare(
            f"warm scoring of {self.rows:,} rows, beside {self.peer.name}{_IN[self.engine]}",
            self.pairs,
            unit="rows/s",
            against=f"{f'{self.peer.name} {version}'.rstrip()}, {self.settings}",
            target=Target(">=", self.peer.targets[self.engine]),
            rows=self.rows,
            peer=self.peer.name,
            engine=self.engine,
            seconds_with_start=round(statistics.median(self.starts), 1),
            tried={name: round(rate) for name, rate in self.rates.items()},
            versions=self.versions,
        )


def measure(folder: Path, quick: bool) -> list[Result]:
    """Score 5,000,000 rows with each, in TensorFlow and in ONNX Runtime."""
    rows, rounds = (200_000, 1) if quick else (5_000_000, 3)
    source = write_rows(folder / "rows", rows)
    few = min(rows, 200_000)
    few_rows = write_rows(folder / "few", few)
    model = publish_model(folder, source)
    python = peers_python()
    contests = {
        engine: [_contest(peer, engine, folder, source, model, python, rows) for peer in PEERS]
        for engine in ENGINES
    }
    our_rates: dict[Engine, list[float]] = {engine: [] for engine in ENGINES}
    with local_spark() as spark:
        expected = _ours_once(spark, model, source, folder, rows)
        for engine in ENGINES:
            for contest in contests[engine]:
                contest.try_settings(
                    partial(_require_same, folder / "theirs", expected), 1 if quick else None
                )
        for number in range(rounds):
            for engine in ENGINES if number % 2 == 0 else ENGINES[::-1]:
                found = []
                for contest in contests[engine]:
                    # Workers that had nothing to do for a minute are gone; others may have the other engine.
                    score_rows(spark, model, few_rows, str(folder / "ours"), few, engine)
                    found.append(score_rows(spark, model, source, str(folder / "ours"), rows, engine))
                    print(f"    ours{_IN[engine]}: {found[-1]:,.0f} rows/s", flush=True)
                    contest.pair(found[-1])
                our_rates[engine].append(statistics.median(found))
    in_onnx = compare(
        "warm scoring, ONNX Runtime",
        list(zip(our_rates["onnx"], our_rates["tensorflow"], strict=True)),
        unit="rows/s",
        against="the same with TensorFlow",
        target=Target(">=", 1.2),
        rows=rows,
    )
    return [*(contest.result() for engine in ENGINES for contest in contests[engine]), in_onnx]


def _contest(
    peer: Peer, engine: Engine, folder: Path, source: str, model: str, python: str, rows: int
) -> _Contest:
    run = partial(
        _run, peer, engine, folder, source, model, python if peer.own_environment else sys.executable
    )
    return _Contest(peer, engine, run, rows)


def _run(
    peer: Peer, engine: Engine, folder: Path, source: str, model: str, python: str, settings: str
) -> dict[str, Any]:
    """Have a fresh process score, and return what it says."""
    manifest = directory.read_manifest(model)
    twin = manifest.twin("onnx")
    assert twin is not None
    target, gate = folder / "theirs", folder / "gate"
    for place in (target, gate):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    task = {
        "system": peer.system,
        "engine": engine,
        "model": str(Path(model) / (twin.entry if engine == "onnx" else manifest.entry)),
        "source": source,
        "target": str(target),
        "few": str(folder / "few"),
        "gate": str(gate),
        "settings": peer.tried[settings],
    }
    return json.loads(run_python(python, "-m", "bench.peer", json.dumps(task)))


def _ours_once(spark: SparkSession, model: str, source: str, folder: Path, rows: int) -> np.ndarray:
    """Our predictions, in the order of the keys."""
    score_rows(spark, model, source, str(folder / "ours"), rows)
    return _predictions(folder / "ours")


def _predictions(folder: Path) -> np.ndarray:
    table = pq.read_table(folder)
    keys = table.column(KEY)
    assert pc.count_distinct(keys).as_py() == len(keys) == pc.max(keys).as_py() + 1
    predictions = np.empty(len(keys), "float32")
    predictions[keys.to_numpy()] = table.column("prediction").to_numpy()
    return predictions


def _require_same(folder: Path, expected: np.ndarray) -> None:
    """Whoever has written other predictions has done other work."""
    found = _predictions(folder)
    assert found.shape == expected.shape
    assert float(np.abs(found - expected).max()) < _TOLERANCE
