"""Jobs that reach a real S3 server by an Airflow connection, and by nothing else."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException
from pyiceberg.catalog import load_catalog

from airflow_hydrogen.contract.catalogs import opening_s3
from airflow_hydrogen.contract.jobs import Sink, Source
from airflow_hydrogen.contract.signatures import ColumnSpec, InputSpec, OutputSpec, Signature
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.hooks import report_files
from airflow_hydrogen.operators.inference import ArrowInferenceOperator
from airflow_hydrogen.operators.publish import PublishModelOperator
from airflow_hydrogen.operators.train import HorovodTrainOperator
from airflow_hydrogen.runtime.models import aliases
from airflow_hydrogen.runtime.models.directory import describe_files, publish, staging_uri
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.storage import filesystems, s3
from airflow_hydrogen.schemas import looks
from airflow_hydrogen.schemas.unsure import UnsureError
from airflow_hydrogen.testing import run_task
from scripts.jars import jars
from tests.integration import onnx_models
from tests.integration.object_store import BUCKET, ObjectStore, object_store

pytestmark = [pytest.mark.integration, pytest.mark.large, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
SECRET = "somebodys-secret"
LAKE = f"s3://{BUCKET}/lake"
NAMES = ("ENDPOINT_URL", "ENDPOINT_URL_S3", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "REGION")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("objects")) as started:
        yield started


@pytest.fixture(autouse=True)
def _nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AIRFLOW_CONN_SPARK_DEFAULT", json.dumps({"conn_type": "spark", "host": "local[2]"}))
    monkeypatch.setenv("AIRFLOW__AIRFLOW_HYDROGEN__JARS_FOLDER", str(jars("delta")[0].parent))
    monkeypatch.syspath_prepend(ROOT)


def put_table(uri: str, *, rows: int) -> None:
    """A table of three days, as partition folders and, in its log, as Delta."""
    actions: list[dict[str, Any]] = [
        {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
        {
            "metaData": {
                "id": "3f1c1a52-0000-4000-8000-000000000000",
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps(
                    {
                        "type": "struct",
                        "fields": [
                            {"name": name, "type": type_, "nullable": True, "metadata": {}}
                            for name, type_ in (("id", "long"), ("a", "double"), ("day", "integer"))
                        ],
                    }
                ),
                "partitionColumns": ["day"],
                "configuration": {},
            }
        },
    ]
    for day in (1, 2, 3):
        ids = range(rows * day, rows * (day + 1))
        name = f"day={day}/part-0.parquet"
        filesystem, path = filesystems.resolve(f"{uri}/{name}")
        numbers = [None if number % rows == 7 else float(number) for number in ids]
        table = pa.table({"id": pa.array(ids), "a": pa.array(numbers, pa.float64())})
        pq.write_table(table, path, filesystem=filesystem)
        info = filesystem.get_file_info(path)
        written = {"path": name, "partitionValues": {"day": str(day)}, "size": info.size}
        actions.append({"add": {**written, "modificationTime": 1_700_000_000_000, "dataChange": True}})
    log = "\n".join(map(json.dumps, actions))
    filesystems.write_bytes(f"{uri}/_delta_log/{0:020d}.json", log.encode())


def put_model(uri: str, folder: Path) -> None:
    """A model that multiplies `a` by 3."""
    folder.mkdir()
    (folder / "factor").write_text("3")
    signature = Signature(
        (InputSpec("a", (ColumnSpec("a", "float64"),), "float64", ()),), (OutputSpec("p", "float64", ()),)
    )
    files = describe_files(folder, ["factor"])
    staged = staging_uri(uri)
    filesystems.upload(folder, staged)
    manifest = Manifest(framework="mine", entry="factor", signature=signature, files=files)
    publish(staged, uri, manifest, keep_checkpoints=False)


def test_one_connection_serves_spark_driver_workers_and_ranks(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", store.connection())
    with s3.using(store.access):
        put_table(LAKE, rows=100)
        put_model(f"s3://{BUCKET}/models/m", tmp_path / "m")
    events = tmp_path / "events"
    events.mkdir()
    conf = {
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": events.as_uri(),
        "spark.eventLog.compress": "false",
        "spark.logConf": "true",
        "spark.redaction.regex": "(?i)nothing-of-this",
    }
    common: dict[str, Any] = {
        "conf": conf,
        "jars": ",".join(map(str, jars("s3a"))),
        "aws_conn_id": "lake",
        "spark_log_uri": str(tmp_path / "logs"),
    }
    training = run_task(
        HorovodTrainOperator(
            task_id="train",
            entrypoint="tests.integration.store_apps:look",
            entrypoint_kwargs={"uri": f"{LAKE}/day=1"},
            np=2,
            train_data=Source.parquet(f"s3a://{BUCKET}/lake", columns=["id", "day"], where="day > 1"),
            model_uri=f"s3://{BUCKET}/models/none",
            **common,
        )
    )
    said = "".join(capfd.readouterr())
    assert training.return_value == {"ids": list(range(200, 300)), "days": [2], "files": 1}, "rank 0's part"
    assert "dataset 'train': 200 rows, read in place" in said
    scoring = run_task(
        ArrowInferenceOperator(
            task_id="score",
            model_uri=f"s3://{BUCKET}/models/m",
            source=Source.delta(LAKE, where="day >= 2 and id <> 210"),
            sink=Sink.delta(f"s3://{BUCKET}/scored", partition={"ds": "1"}),
            predictor="tests.integration.store_apps:multiplying",
            keep_columns=["id"],
            on_bad_row="quarantine",
            **common,
        )
    )
    said += "".join(capfd.readouterr())
    report = scoring.xcoms["report"]
    assert (report["rows"], report["rows_quarantined"], report["source"]["version"]) == (197, 2, 0)
    with s3.using(store.access):
        written = read(f"{scoring.return_value}/ds=1")
        bad = read(report["quarantine_uri"])
    expected = [number for number in range(200, 400) if number not in (207, 210, 307)]
    assert written.sort_by("id").to_pydict() == {"id": expected, "p": [3.0 * number for number in expected]}
    assert sorted(bad["id"].to_pylist()) == [207, 307]
    told = {
        file: file.read_text()
        for file in [*events.rglob("*"), *(tmp_path / "logs").rglob("*")]
        if file.is_file()
    }
    plans = "".join(told.values())
    assert re.search(r"MapInArrow[^*]*Range \(0", plans), "tasks read their row groups themselves"
    assert "InsertIntoHadoopFsRelationCommand" not in plans, "and write their files"
    assert "replaceWhere" not in plans, "of which Delta is told"
    assert "fs.s3a.secret.key" in plans, "what is looked through has settings"
    for text in (*told.values(), said, repr((training, scoring))):
        assert SECRET not in text
        assert f'"{store.access.access_key}"' not in text


def test_a_connection_opens_iceberg_tables_whose_catalog_says_nothing_of_s3(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = {
        "type": "sql",
        "uri": f"sqlite:///{tmp_path}/catalog.db",
        "warehouse": f"s3://{BUCKET}/iceberg",
    }
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", store.connection())
    monkeypatch.setenv("AIRFLOW_CONN_TABLES", json.dumps({"conn_type": "iceberg", "extra": properties}))
    with s3.using(store.access):
        put_model(f"s3://{BUCKET}/models/iceberg", tmp_path / "m")
    catalog = load_catalog("tables", **opening_s3(properties, store.access))
    catalog.create_namespace("db")
    rows = pa.table({"id": pa.array(range(20)), "a": pa.array(map(float, range(20)))})
    catalog.create_table("db.flights", schema=rows.schema).append(rows)
    run_task(
        ArrowInferenceOperator(
            task_id="score",
            model_uri=f"s3://{BUCKET}/models/iceberg",
            source=Source.iceberg("db.flights", catalog="tables", where="id > 4"),
            sink=Sink.iceberg(
                "db.scores", catalog="tables", partition={"ds": "1"}, work_uri=f"s3://{BUCKET}/work"
            ),
            predictor="tests.integration.store_apps:multiplying",
            keep_columns=["id"],
            jars=",".join(map(str, jars("s3a"))),
            aws_conn_id="lake",
        )
    )
    scores = catalog.load_table("db.scores").scan().to_arrow().sort_by("id")
    assert scores["id"].to_pylist() == list(range(5, 20))
    assert scores["p"].to_pylist() == [3.0 * number for number in range(5, 20)]


def read(uri: str) -> pa.Table:
    filesystem, path = filesystems.resolve(uri)
    return pq.read_table(path, filesystem=filesystem, partitioning=None)


@pytest.mark.parametrize(
    ("other", "bucket", "message"),
    [
        (
            {"password": "wrong"},
            BUCKET,
            r"the secret key .*SignatureDoesNotMatch, asked for s3://hydrogen/out",
        ),
        ({"login": "nobody"}, BUCKET, "there is no such access key"),
        ({}, "elsewhere", "there is no such bucket .*asked for s3://elsewhere/out"),
    ],
)
def test_keys_that_are_wrong_are_told_before_anything_is_submitted(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, other: dict[str, str], bucket: str, message: str
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", store.connection(**other))
    with pytest.raises(
        AirflowFailException, match=f"refuses the connection that aws_conn_id='lake' names: {message}"
    ):
        run_task(scoring_into(f"s3://{bucket}/out"))


def test_a_store_that_does_not_answer_is_told_before_anything_is_submitted(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", store.connection())
    store.kill()
    try:
        with pytest.raises(
            AirflowException, match="aws_conn_id='lake' names, does not answer: .*refused"
        ) as raised:
            run_task(scoring_into(f"s3://{BUCKET}/out"))
    finally:
        store.start()
    assert not isinstance(raised.value, AirflowFailException), "a retry may find it"


def scoring_into(uri: str) -> ArrowInferenceOperator:
    return ArrowInferenceOperator(
        task_id="score",
        model_uri="/nowhere",
        source=Source.parquet("/nowhere"),
        sink=Sink.parquet(uri),
        aws_conn_id="lake",
    )


def test_two_stores_in_one_process_are_kept_apart(store: ObjectStore, tmp_path: Path) -> None:
    before = dict(os.environ)
    (tmp_path / "objects").mkdir()
    uri = f"s3://{BUCKET}/apart/report.json"
    with object_store(tmp_path / "objects") as other:
        for number, place in enumerate((store, other)):
            report_files.write(uri, str(number), place.access)
            with s3.using(place.access):
                assert filesystems.read_bytes(uri) == b"%d" % number
        with s3.using(store.access):
            assert filesystems.read_bytes(uri) == b"0"
            assert report_files._read_text(uri, other.access) == "1"
            report_files.delete(uri, other.access)
            assert report_files._read_text(uri, other.access) is None
            assert filesystems.exists(uri), "the other one's went"
    assert dict(os.environ) == before


def test_a_look_before_submission_goes_by_the_connection(store: ObjectStore, tmp_path: Path) -> None:
    with s3.using(store.access):
        put_table(f"s3://{BUCKET}/seen", rows=10)
        put_model(f"s3://{BUCKET}/models/seen", tmp_path / "m")

    def look(access: S3Access | None) -> looks.Seen:
        source = Source.delta(f"s3://{BUCKET}/seen")
        return looks.look(f"s3a://{BUCKET}/models/seen", source, None, None, {**os.environ}, 60, access)

    assert look(store.access).columns == [("id", "bigint"), ("a", "double"), ("day", "int")]
    with pytest.raises(UnsureError):
        look(dataclasses.replace(store.access, secret_key="wrong"))


def test_sessions_of_one_process_leave_no_keys_to_the_next() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.integration.two_sessions"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.findall(r"^key: (.*)$", ended.stdout, re.MULTILINE) == ["first", "second", "None"]


@pytest.mark.medium
def test_a_model_that_was_trained_elsewhere_is_brought_and_published_by_the_connection(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", store.connection())
    onnx_models.linear(
        tmp_path / "made" / "m.onnx", save_as_external_data=True, location="w", size_threshold=0
    )
    exports, models = f"s3://{BUCKET}/exports", f"s3a://{BUCKET}/models"
    with s3.using(store.access):
        filesystems.upload(tmp_path / "made", exports)
    for columns in (["a", "b"], ["b", "a"]):
        ran = run_task(
            PublishModelOperator(
                task_id="publish",
                model=f"{exports}/m.onnx",
                model_uri=f"{models}/late",
                columns=columns,
                alias=f"{models}/late.alias",
                aws_conn_id="lake",
            )
        )
        with s3.using(store.access):
            named = aliases.resolve(f"{models}/late.alias")
            manifest = named.open()
            left = [name for name, _ in filesystems.list_files(f"s3://{BUCKET}/models")]
        assert (ran.return_value, named.version) == (named.uri, manifest.version)
        assert [column.name for column in manifest.signature.columns] == columns
        assert not [name for name in left if "publish-" in name or "owner" in name]
        assert len([name for name in left if name.startswith("late/")]) == 3  # manifest, model, weights
