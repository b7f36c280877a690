"""docker-compose.yaml at work: every service by its own command and health check, and a DAG on them."""

from __future__ import annotations

import json
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import compose_file
from tests.e2e import airflow_api
from tests.e2e.composition import (
    Composition,
    host_names,
    postgres_command,
    postgres_programs,
)
from tests.integration.cluster import skip_without_namespaces
from tests.integration.namespaces import host_network
from tests.integration.object_store import store_program

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(2000)]

START_S = 240.0
RUN_S = 600.0
STUB_GPUS = 3
_web = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's: PostgreSQL's user has to be let in."""
    made = Path(tempfile.mkdtemp(prefix="composition-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def composition(folder: Path) -> Iterator[Composition]:
    skip_without_namespaces()
    services = compose_file.services({"STUB_GPUS": str(STUB_GPUS)})
    services = {name: found for name, found in services.items() if "profiles" not in found.document}
    hosts = [host for service in services.values() for host in host_names(service)]
    with host_network(hosts) as network:
        started = Composition(network, services, folder)
        for volume in ("data", "airflow-logs", "object-store"):
            started.volume(volume).mkdir(parents=True)
        yield started
        started.stop()


def test_every_role_starts_is_healthy_and_runs_an_example(composition: Composition) -> None:
    start_database(composition)
    composition.start("spark-master")
    store = start_object_store(composition)
    composition.run("airflow-init", START_S)
    composition.wait_until_healthy("spark-master", timeout_s=START_S)
    composition.start("airflow-api-server")
    composition.start("airflow-dag-processor")  # which does not depend on it
    composition.wait_until_healthy("airflow-api-server", *store, timeout_s=START_S)
    composition.start("airflow-scheduler")
    composition.start("airflow-triggerer")
    others = ["airflow-scheduler", "airflow-dag-processor", "airflow-triggerer"]
    composition.wait_until_healthy(*others, timeout_s=START_S)
    run = an_example_waits_on_the_triggerer_for_workers(composition)
    composition.start("spark-worker")
    composition.wait_until_healthy("spark-worker", timeout_s=START_S)
    workers_are_two_hosts_with_gpus(composition)
    it_goes_on_and_trains_on_both_workers(composition, run)


def start_database(composition: Composition) -> None:
    """PostgreSQL where this machine has it, SQLite elsewhere."""
    programs = postgres_programs()
    if programs is None:
        file = composition.volume("data") / "airflow.db"
        composition.overrides = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{file}"}
        return
    data = composition.volume("postgres")
    environ = composition.services["postgres"].environment
    composition.start("postgres", postgres_command(programs, data, environ))
    composition.wait_until_healthy("postgres", timeout_s=START_S)


def start_object_store(composition: Composition) -> list[str]:
    """The store and its bucket, where this machine has the program of the store's image or can build it."""
    try:
        program = str(store_program())
    except LookupError:
        return []
    composition.start("object-store", [program, *composition.services["object-store"].command])
    composition.wait_until_healthy("object-store", timeout_s=START_S)
    composition.run("object-store-init", START_S)
    return ["object-store"]


def workers_are_two_hosts_with_gpus(composition: Composition) -> None:
    with _web.open(f"http://{composition.address('spark-master')}:8080/json/", timeout=10) as answer:
        workers = json.load(answer)["workers"]
    assert {worker["host"] for worker in workers} == {
        composition.address(host) for host in ("spark-worker-1", "spark-worker-2")
    }
    for worker in workers:
        assert worker["resources"]["gpu"]["addresses"] == [str(gpu) for gpu in range(STUB_GPUS)]


@dataclass(frozen=True)
class Run:
    """A run of the example, and the key to Airflow's API."""

    key: str
    path: str

    def state(self, composition: Composition, task: str = "") -> str:
        """Of the run, or of one of its tasks."""
        path = f"{self.path}/taskInstances/{task}" if task else self.path
        return str(ask(composition, "GET", path, key=self.key)["state"])


def an_example_waits_on_the_triggerer_for_workers(composition: Composition) -> Run:
    """As a user would: log in, unpause the DAG, trigger it, look at its state."""
    # It is in a volume: who made the containers anew would find another one otherwise.
    password = json.loads((composition.volume("airflow-state") / "passwords.json").read_text())["admin"]
    token = ask(composition, "POST", "/auth/token", {"username": "admin", "password": password})
    key = token["access_token"]
    dag = "/api/v2/dags/horovod_quickstart"

    def parsed() -> str:
        found = ask(composition, "GET", "/api/v2/dags", key=key)
        return "" if "horovod_quickstart" in {d["dag_id"] for d in found["dags"]} else "the DAG is not parsed"

    composition.wait_until_silent(parsed, START_S)
    ask(composition, "PATCH", dag, {"is_paused": False}, key)
    started = ask(composition, "POST", f"{dag}/dagRuns", {"logical_date": None}, key)
    run = Run(key, f"{dag}/dagRuns/{started['dag_run_id']}")

    def waiting() -> str:
        state = run.state(composition, "wait_for_room")
        assert state not in ("success", "failed"), task_logs(composition)
        return "" if state == "deferred" else f"the sensor is {state}"

    composition.wait_until_silent(waiting, RUN_S)
    return run


def it_goes_on_and_trains_on_both_workers(composition: Composition, run: Run) -> None:
    """The triggerer saw the workers; the rest follows."""

    def running() -> str:
        state = run.state(composition)
        assert state != "failed", task_logs(composition) + composition.tails()
        return "" if state == "success" else f"the run is {state}"

    composition.wait_until_silent(running, RUN_S)
    assert "The cluster has a gang of 2 processes" in task_logs(composition)
    path = f"{run.path}/taskInstances/fit/xcomEntries/return_value?deserialize=true"
    result = ask(composition, "GET", path, key=run.key)["value"]
    assert result["processes"] == 2
    assert result["slope"] == pytest.approx(3, abs=0.3)
    for worker in ("spark-worker-1", "spark-worker-2"):
        assert list(composition.scratch(worker).glob("app-*/*")), f"no executor on {worker}"


def ask(composition: Composition, method: str, path: str, body: Any = None, key: str = "") -> Any:
    """Ask Airflow's API."""
    address = f"http://{composition.address('airflow-api-server')}:8080"
    return airflow_api.ask(address, method, path, body, key)


def task_logs(composition: Composition) -> str:
    """Everything that tasks logged."""
    files = sorted(composition.volume("airflow-logs").rglob("*.log"))
    return "\n".join(file.read_text(errors="replace") for file in files)
