"""docker-compose.yaml and the Dockerfiles, without a Docker; tests/e2e runs the services."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests import compose_file
from tests.compose_file import COMPOSE_FILE, ENV_EXAMPLE, ROOT

DOCKERFILE = ROOT / "docker/Dockerfile"
SERVICES = compose_file.services()
# From variables that docker-compose.yaml hands on as they are, without a default.
HANDED_ON = {"PIP_INDEX_URL"}


def test_the_file_is_what_the_compose_specification_says() -> None:
    tool = Path(sys.executable).with_name("check-jsonschema")
    done = subprocess.run(
        [tool, "--builtin-schema", "vendor.compose-spec", COMPOSE_FILE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_nothing() -> None:
    tool = shutil.which("hadolint", path=Path(sys.executable).parent)
    if tool is None:
        pytest.skip("no hadolint for this platform on PyPI")
    done = subprocess.run(
        [tool, "--config", ROOT / "docker/hadolint.yaml", DOCKERFILE],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_variable_stands_in_the_example_with_its_default() -> None:
    shown = dict(re.findall(r"^#(\w+)=(.*)$", ENV_EXAMPLE.read_text(), re.MULTILINE))
    assert all(len(values) == 1 for values in compose_file.defaults().values()), "one variable, two defaults"
    used = {name: value for name, (value,) in compose_file.defaults().items()}
    assert shown == {**used, **dict.fromkeys(HANDED_ON, "")}


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())
def test_what_stays_has_a_health_check_and_what_does_not_has_none(service: compose_file.Service) -> None:
    assert (service.health_check is not None) == service.runs_on


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())
def test_nobody_waits_for_what_cannot_come(service: compose_file.Service) -> None:
    for name, condition in service.dependencies.items():
        wanted = "service_healthy" if SERVICES[name].runs_on else "service_completed_successfully"
        assert condition == wanted, name


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())
def test_ports_are_open_on_this_machine_alone(service: compose_file.Service) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service.document.get("ports", []))


def test_images_are_built_here_or_have_a_version() -> None:
    built = {service.document["image"] for service in SERVICES.values() if "build" in service.document}
    fetched = {service.document["image"] for service in SERVICES.values()} - built
    assert fetched, "PostgreSQL and the object store"
    assert all(re.search(r":v?\d", image) for image in fetched), fetched


def test_every_image_is_a_target_of_the_one_dockerfile() -> None:
    """Contexts of other services, and images that a build refers to, are not what every Compose v2 can do."""
    targets = re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE.read_text(), re.MULTILINE)
    builds = [service.document["build"] for service in SERVICES.values() if "build" in service.document]
    assert {build["target"] for build in builds} == {"spark", "airflow"} <= set(targets)
    assert all(set(build) == {"context", "dockerfile", "target", "args"} for build in builds)


def test_a_browser_outside_reaches_the_page_of_a_driver() -> None:
    scheduler = SERVICES["airflow-scheduler"]
    assert scheduler.environment["SPARK_PUBLIC_DNS"] == "localhost"
    (ports,) = scheduler.document["ports"]
    first, last = re.fullmatch(r"127\.0\.0\.1:(\d+)-(\d+):\1-\2", ports).groups()
    drivers = int(last) - int(first) + 1
    assert int(first) == 4040 and drivers == int(scheduler.environment["AIRFLOW__CORE__PARALLELISM"])


def test_the_password_of_admin_is_in_a_volume() -> None:
    service = SERVICES["airflow-api-server"]
    file = Path(service.environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    assert service.volumes[str(file.parent)] == "airflow-state"
    assert f"{file.parent}\n" in DOCKERFILE.read_text(), "a new volume takes the owner of the folder it hides"


def test_secrets_are_the_same_wherever_they_are_needed() -> None:
    environ = {
        name: f"set-{name}" for name in compose_file.defaults() if re.search("SECRET|PASSWORD|KEY", name)
    }
    services = compose_file.services(environ)
    airflow = [service for name, service in services.items() if name.startswith("airflow-")]
    for name in ("AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"):
        assert len({service.environment[name] for service in airflow}) == 1
    password = services["postgres"].environment["POSTGRES_PASSWORD"]
    assert f":{password}@postgres/" in airflow[0].environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    store = services["object-store"].environment
    for name in ("spark-worker", "spark-worker-gpu", "airflow-scheduler", "object-store-init"):
        client = services[name].environment
        assert client["AWS_ACCESS_KEY_ID"] == store["ROOT_ACCESS_KEY_ID"]
        assert client["AWS_SECRET_ACCESS_KEY"] == store["ROOT_SECRET_ACCESS_KEY"]


def test_dags_of_the_source_pages_find_the_warehouse() -> None:
    services = compose_file.services({"WAREHOUSE_PASSWORD": "s3cret"})
    scheduler, warehouse = services["airflow-scheduler"].environment, services["warehouse"].environment
    connection = json.loads(scheduler["AIRFLOW_CONN_FLIGHTS_DATABASE"])
    assert (connection["login"], connection["password"], connection["schema"]) == (
        *(warehouse["POSTGRES_USER"], warehouse["POSTGRES_PASSWORD"], warehouse["POSTGRES_DB"]),
    )
    assert connection["password"] == "s3cret" and connection["host"] in services
    host, port = re.fullmatch(r"thrift://(\w+):(\d+)", scheduler["AIRFLOW_VAR_HIVE_METASTORE"]).groups()
    assert port in services[host].command and f"'localhost', {port}" in services[host].health_check[-1]
    page = (ROOT / "docs/sources/postgresql.md").read_text()
    assert f'password="{SERVICES["warehouse"].environment["POSTGRES_PASSWORD"]}"' in page
    assert f'user="{warehouse["POSTGRES_USER"]}"' in page and f"/{warehouse['POSTGRES_DB']}" in page


def test_the_dag_of_kafkas_page_finds_the_broker() -> None:
    scheduler, kafka = SERVICES["airflow-scheduler"].environment, SERVICES["kafka"].environment
    connection = json.loads(scheduler["AIRFLOW_CONN_FLIGHTS_BROKER"])
    told = dict(re.findall(r"(\w+)://([\w.]+:\d+)", kafka["KAFKA_ADVERTISED_LISTENERS"]))
    assert connection == {"conn_type": "kafka", "extra": {"bootstrap.servers": told["INSIDE"]}}
    page = (ROOT / "docs/sources/kafka.md").read_text()
    assert told["OUTSIDE"] in page and '"flights_broker"  # an Airflow connection' in page


def test_the_broker_tells_each_client_an_address_that_it_can_reach() -> None:
    kafka = compose_file.services({"KAFKA_PORT": "19094"})["kafka"]
    listens = dict(re.findall(r"(\w+)://:(\d+)", kafka.environment["KAFKA_LISTENERS"]))
    told = dict(re.findall(r"(\w+)://([\w.]+:\d+)", kafka.environment["KAFKA_ADVERTISED_LISTENERS"]))
    assert told == {"INSIDE": f"{kafka.name}:{listens['INSIDE']}", "OUTSIDE": "localhost:19094"}
    assert kafka.document["ports"] == [f"127.0.0.1:19094:{listens['OUTSIDE']}"]
    assert kafka.environment["KAFKA_CONTROLLER_QUORUM_VOTERS"] == f"1@{kafka.name}:{listens['CONTROLLER']}"
    assert kafka.health_check[-1] == told["INSIDE"]
    assert kafka.volumes.keys() == {kafka.environment["KAFKA_LOG_DIRS"]}


@pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())
def test_nobody_without_a_profile_waits_for_one_that_has_a_profile(service: compose_file.Service) -> None:
    theirs = set(service.document.get("profiles", []))
    assert all(set(SERVICES[name].document.get("profiles", [])) <= theirs for name in service.dependencies)


def test_what_is_not_set_is_empty() -> None:
    """A Fernet key that is "None" starts every part of Airflow, and then fails each task that defers."""
    assert SERVICES["airflow-triggerer"].environment["AIRFLOW__CORE__FERNET_KEY"] == ""


def test_the_dockerfile_copies_what_is_there_and_not_ignored() -> None:
    allowed = [
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    ]
    copied = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert sources
    for source in sources:
        assert list(ROOT.glob(source.rstrip("/"))), source
        assert any(source.rstrip("/") == entry or source.startswith(f"{entry}/") for entry in allowed), source


def test_both_images_can_speak_to_the_object_store() -> None:
    """Airflow's reads the report of a driver on the cluster; Spark's reads data and writes models."""
    project = (ROOT / "pyproject.toml").read_text()
    assert re.search(r"^s3 = \[.*s3fs", project, re.MULTILINE)
    dockerfile = DOCKERFILE.read_text()
    extras = re.search(r'"\.\[(airflow.*)\]"', dockerfile)
    assert extras is not None and "s3" in extras[1].split(",")
    assert '".[spark,' in dockerfile and re.search(r"^spark = \[.*pyarrow", project, re.MULTILINE)
    assert "org.apache.hadoop:hadoop-aws" in dockerfile


def test_what_the_services_run_of_ours_is_in_the_image() -> None:
    dockerfile = DOCKERFILE.read_text()
    used = set(re.findall(r"/opt/hydrogen/([\w.]+)", COMPOSE_FILE.read_text()))
    assert used
    for name in used:
        assert (ROOT / "docker" / name).stat().st_mode & 0o100, f"{name} is not executable"
        assert f"docker/{name} " in dockerfile


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"scheduler": {"status": "healthy"}}')

    def log_message(self, *_: object) -> None:
        pass


def test_the_health_check_tells_right_from_wrong_and_from_nobody() -> None:
    def check(condition: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, ROOT / "docker/health.py", f"http://127.0.0.1:{port}/", condition]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert check("scheduler.status=healthy").returncode == 0
        assert "is 'healthy', expected 'ALIVE'" in check("scheduler.status=ALIVE").stderr
        assert "is None, expected" in check("triggerer.status=healthy").stderr
        server.shutdown()
    assert "refused" in check("scheduler.status=healthy").stderr


@pytest.mark.parametrize("gpus", [0, 1, 3])
def test_gpus_are_nvidias_where_there_are_some_and_made_up_elsewhere(gpus: int, tmp_path: Path) -> None:
    def addresses(**environ: str) -> object:
        done = subprocess.run(
            [ROOT / "docker/gpus.sh"], env=environ, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    expected = {"name": "gpu", "addresses": [str(gpu) for gpu in range(gpus)]}
    for tool in ("seq", "sed", "paste"):  # and nothing else: this machine may have GPUs
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    assert addresses(PATH=str(tmp_path), STUB_GPUS=str(gpus)) == expected
    driver = tmp_path / "nvidia-smi"
    driver.write_text(f"#!/bin/sh\nseq 0 {gpus - 1}\n")
    driver.chmod(0o755)
    assert addresses(PATH=str(tmp_path)) == expected
