"""Measure everything and write results.json and RESULTS.md: what `make bench` runs."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
BENCHMARKS = (
    *("imports", "sensors", "deferred", "memory", "shared", "scale"),
    *("startup", "forks", "cold", "ranges", "hosts", "faults", "overheads", "training", "bridge", "scoring"),
    *("delta", "streams", "peers", "kinds", "stores", "sizes", "sessions"),
)


def main() -> int:
    """The exit code is 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=BENCHMARKS, help="measure this one and keep the other results")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, to try the code: writes no results"
    )
    parser.add_argument("--plots", action="store_true", help="draw the plots of the results, measure nothing")
    options = parser.parse_args()
    # The interpreters that the benchmarks start, Spark's and Horovod's, import from here too.
    paths = [str(ROOT), str(ROOT / "dags")]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each process compiles TensorFlow anew
    from bench import plots, report

    if options.plots:
        plots.redraw()
        return 0
    machine, versions = report.machine(), report.versions()
    results: list[dict[str, Any]] = []
    for name in [options.only] if options.only else BENCHMARKS:
        started = time.monotonic()
        print(f"{name}:", flush=True)
        # A process of its own: no benchmark meets the JVM, the threads or the memory of another.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            results += process.submit(measure, name, options.quick).result()
        print(f"  {time.monotonic() - started:.0f} s", flush=True)
    print("\n".join(["", *report.table(results)]))
    if not options.quick:
        if options.only:
            results = _merged(results)
        report.write(BENCH, {"machine": machine, "versions": versions, "results": results})
        plots.redraw()
    return 0 if all(result["holds"] for result in results) else 1


def measure(name: str, quick: bool) -> list[dict[str, Any]]:
    """Run one benchmark in a folder that goes away."""
    module = importlib.import_module(f"bench.{name}")
    with tempfile.TemporaryDirectory(prefix="airflow-hydrogen-bench-") as folder:
        return [result.to_dict() for result in module.measure(Path(folder), quick)]


def _merged(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """New results in the place of old ones of the same name."""
    path = BENCH / "results.json"
    old = json.loads(path.read_text())["results"] if path.exists() else []
    fresh = {result["name"]: result for result in results}
    kept = [fresh.pop(result["name"], result) for result in old]
    return [*kept, *fresh.values()]


if __name__ == "__main__":
    sys.exit(main())
