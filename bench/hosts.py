"""Seconds until two ranks on two hosts have done their first allreduce, against `horovodrun`.

The hosts are network namespaces of this machine, as in the tests: addresses and links of their own, the same
two cores. Ours: from asking for the barrier stage in a fresh Spark application on a standalone cluster.
Theirs: from launching `horovodrun -H w0:1,w1:1` on the first host, whose ssh enters the other. Both import
TensorFlow.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.measure import ROOT, THREADS, Result, Target, alternate, compare, python

if TYPE_CHECKING:
    from tests.integration.cluster import StandaloneCluster

_SSH = """#!/bin/sh
# Stands in for ssh: options, a host, more options, a command.
host=
while :; do
    case "$1" in
    -o|-p|-i) shift 2 ;;
    *) [ -z "$host" ] || break
       host=$1; shift ;;
    esac
done
case "$host" in
{cases}
*) echo "no host $host" >&2; exit 255 ;;
esac
"""


def measure(folder: Path, quick: bool) -> list[Result]:
    """Start both, in turns; nothing where there are no namespaces."""
    from tests.integration.cluster import standalone_cluster
    from tests.integration.namespaces import why_unavailable

    if reason := why_unavailable():
        print(f"    not measured: {reason}", flush=True)
        return []
    with standalone_cluster(workers=2, cores=1, memory="1g", gpus=0, namespaces=True) as cluster:
        path = _path_with_ssh(cluster, folder)
        pairs = alternate(
            lambda: _on_spark(cluster), lambda: _by_horovodrun(cluster, folder, path), 1 if quick else 4
        )
    return [
        compare(
            "start to first allreduce, two hosts",
            pairs,
            unit="s",
            against="horovodrun -H w0:1,w1:1",
            target=Target("<=", 1.3),
        )
    ]


def _path_with_ssh(cluster: StandaloneCluster, folder: Path) -> str:
    """A PATH with an `ssh` that enters the hosts."""
    assert cluster.network is not None
    cases = "\n".join(
        f'{host.address}) exec {shlex.join(cluster.network.command(index, ["sh", "-c"]))} "$*" ;;'
        for index, host in enumerate(cluster.network.hosts)
    )
    shim = folder / "bin" / "ssh"
    shim.parent.mkdir()
    shim.write_text(_SSH.format(cases=cases))
    shim.chmod(0o755)
    return os.pathsep.join([str(shim.parent), os.environ["PATH"]])


def _on_spark(cluster: StandaloneCluster) -> float:
    settings = [f"{name}={value}" for name, value in cluster.driver_settings().items()]
    return float(python("-m", "bench.hosts", cluster.master_url, *settings))


def _by_horovodrun(cluster: StandaloneCluster, folder: Path, path: str) -> float:
    assert cluster.network is not None
    answer = folder / "done"
    hosts = ",".join(f"{host.address}:1" for host in cluster.network.hosts)
    command = [
        *(str(Path(sys.executable).with_name("horovodrun")), "-np", "2", "-H", hosts, "--gloo"),
        *(sys.executable, "-m", "bench.startup", "rank", str(answer)),
    ]
    command = cluster.network.command(0, command)
    environment = {**os.environ, **THREADS, "PATH": path}
    began = time.monotonic()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"horovodrun ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return float(answer.read_text()) - began


def _main(master: str, *settings: str) -> None:
    """The driver of our side."""
    from pyspark.sql import SparkSession

    from airflow_hydrogen.contract.gang import GangOptions
    from airflow_hydrogen.runtime import HorovodRunner
    from airflow_hydrogen.runtime.gang.slots import require_slots

    os.environ["PYSPARK_PYTHON"] = sys.executable
    builder = SparkSession.builder.master(master).config("spark.executorEnv.PYTHONPATH", str(ROOT))
    own = ["spark.ui.enabled=false", "spark.executor.memory=512m", "spark.log.level=ERROR"]
    for setting in [*own, *settings]:
        builder = builder.config(*setting.split("=", 1))
    spark = builder.getOrCreate()
    require_slots(spark, 2, GangOptions(start_timeout_s=60.0))
    began = time.monotonic()
    done = HorovodRunner(2, driver_log_verbosity="log_callback_only").run("bench.ranks:first_allreduce")
    spark.stop()
    print(done - began, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
