from __future__ import annotations

from pathlib import Path

import pytest

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.jobs import Entrypoint, InferenceJob, TrainJob
from airflow_hydrogen.contract.sinks import Sink
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.hooks.connectors import (
    SparkVersion,
    Submission,
    additions,
    has_spark_on_s3,
    needed,
    of_s3,
    spark_version,
)

DELTA = "io.delta:delta-spark_4.2_2.13:4.4.0"
EXTENSION = "io.delta.sql.DeltaSparkSessionExtension"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "spark" / "jars").mkdir(parents=True)
    (tmp_path / "spark" / "jars" / "spark-core_2.13-4.2.0.jar").touch()
    return tmp_path / "spark"


@pytest.fixture
def with_hadoop(home: Path) -> Path:
    (home / "jars" / "hadoop-client-api-3.5.0.jar").touch()
    return home


def of(*sources: Source, **access: str):
    return needed(sources, {name: {"driver": driver} for name, driver in access.items()})


def test_the_version_of_spark_is_read_from_its_jars(home, tmp_path):
    assert spark_version(home) == SparkVersion("2.13", "4.2", "4.2.0")
    assert spark_version(tmp_path) is None
    (home / "jars" / "spark-core_2.13-4.2.0.jar").rename(home / "jars" / "spark-core_2.13-4.1.2-amzn-0.jar")
    assert spark_version(home) == SparkVersion("2.13", "4.1", "4.1.2-amzn-0")


def test_packages_are_matched_to_spark_and_come_once(home):
    sources = [Source.delta("/a"), Source.delta("/b"), Source.avro("/c"), Source.parquet("/d")]
    added = additions(of(*sources), Submission(), home, None)
    assert added.packages == [DELTA, "org.apache.spark:spark-avro_2.13:4.2.0"]
    assert "org.apache.hadoop:hadoop-client-runtime" in added.excludes
    assert added.conf == {
        "spark.sql.extensions": EXTENSION,
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
    }


@pytest.mark.parametrize(
    ("driver", "package"),
    [
        ("org.postgresql.Driver", ["org.postgresql:postgresql:42.7.14"]),
        ("org.mariadb.jdbc.Driver", ["org.mariadb.jdbc:mariadb-java-client:3.5.10"]),
        ("com.mysql.cj.jdbc.Driver", ["com.mysql:mysql-connector-j:9.7.0"]),
        ("oracle.jdbc.OracleDriver", []),
    ],
)
def test_drivers_of_databases(home, driver, package):
    connectors = of(Source.jdbc("shop", table="t"), shop=driver)
    assert additions(connectors, Submission(), home, None).packages == package


def test_files_and_hive_need_no_package(home):
    assert additions(of(Source.parquet("/a"), Source.orc("/a")), Submission(), home, None) == Submission(
        [], [], [], {}
    )
    added = additions(of(Source.hive("db.t")), Submission(), home, None)
    assert (added.packages, added.conf) == ([], {"spark.sql.catalogImplementation": "hive"})


@pytest.mark.parametrize(
    "given",
    [
        Submission(packages=["io.delta:delta-spark_2.13:4.0.0"]),
        Submission(jars=["s3a://jars/delta-spark_4.2_2.13-4.4.0.jar"]),
    ],
)
def test_what_the_user_gives_is_not_added_again(home, given):
    added = additions(of(Source.delta("/a")), given, home, None)
    assert (added.packages, added.jars) == ([], [])
    assert added.conf["spark.sql.extensions"] == EXTENSION


def test_what_lies_among_sparks_jars_is_not_added(home):
    (home / "jars" / "postgresql-42.7.1.jar").touch()
    connectors = of(Source.jdbc("shop", table="t"), shop="org.postgresql.Driver")
    assert additions(connectors, Submission(), home, None).packages == []


def test_a_jar_whose_name_only_holds_the_drivers_is_another_one(home):
    connectors = of(Source.jdbc("shop", table="t"), shop="org.postgresql.Driver")
    given = Submission(packages=["org.x:my-postgresql:1"], jars=["/opt/our-postgresql-udf-1.jar"])
    assert additions(connectors, given, home, None).packages == ["org.postgresql:postgresql:42.7.14"]
    given = Submission(packages=["a:b:1", "org.postgresql:postgresql:42.6.0"])
    assert additions(connectors, given, home, None).packages == []


def test_settings_of_the_user_stay(home):
    conf = {"spark.sql.extensions": "a.B", "spark.sql.catalog.spark_catalog": "c.D"}
    added = additions(of(Source.delta("/a")), Submission(conf=conf), home, None)
    assert added.conf == {"spark.sql.extensions": f"a.B,{EXTENSION}"}
    again = additions(of(Source.delta("/a")), Submission(conf={**conf, **added.conf}), home, None)
    assert again.conf == {}


def test_a_folder_of_jars_replaces_packages(home, tmp_path):
    folder = tmp_path / "jars"
    folder.mkdir()
    names = ["delta-kernel-api-4.4.0", "delta-spark_4.2_2.13-4.4.0", "delta-storage-4.4.0", "other-1"]
    for name in names:
        (folder / f"{name}.jar").touch()
    added = additions(of(Source.delta("/a")), Submission(), home, folder)
    assert added.packages == []
    assert [Path(jar).stem for jar in added.jars] == [names[1], names[2], names[0]]
    with pytest.raises(
        InvalidJobError, match=r"has no spark-avro_\*_2\.13-\*\.jar.* org.apache.spark:spark-avro_2.13"
    ):
        additions(of(Source.avro("/a")), Submission(), home, folder)


def test_of_several_jars_the_newest_is_taken_and_none_of_another_scala(home, tmp_path):
    folder = tmp_path / "jars"
    folder.mkdir()
    for name in ("postgresql-42.7.9", "postgresql-42.7.14", "delta-spark_2.12-3.2.0"):
        (folder / f"{name}.jar").touch()
    connectors = of(Source.jdbc("shop", table="t"), shop="org.postgresql.Driver")
    [jar] = additions(connectors, Submission(), home, folder).jars
    assert jar.endswith("postgresql-42.7.14.jar")
    with pytest.raises(InvalidJobError, match=r"has no delta-spark_\*_2\.13-\*\.jar"):
        additions(of(Source.delta("/a")), Submission(), home, folder)


def test_a_spark_of_unknown_version_asks_for_the_package(tmp_path):
    with pytest.raises(InvalidJobError, match="the version of Spark cannot be told .* name it as packages"):
        additions(of(Source.delta("/a")), Submission(), tmp_path, None)


@pytest.mark.parametrize("payload", ["avro", "confluent-avro"])
def test_streams_bring_their_connectors(home, tmp_path, payload):
    events = Source.kafka("events", "t", payload=payload, schema="{}")
    added = additions(of(events, Source.delta_stream("/t")), Submission(), home, None)
    assert added.packages == [
        "org.apache.spark:spark-sql-kafka-0-10_2.13:4.2.0",
        "org.apache.spark:spark-avro_2.13:4.2.0",
        DELTA,
    ]
    for name in (
        "spark-sql-kafka-0-10_2.13",
        "spark-token-provider-kafka-0-10_2.13",
        "kafka-clients",
        "commons-pool2",
    ):
        (tmp_path / f"{name}-1.0.jar").touch()
    sink = Sink.kafka("b:1", "t")
    jars = additions(needed([Source.files_stream("/a"), sink], {}), Submission(), home, tmp_path).jars
    assert [Path(jar).name.rpartition("-")[0] for jar in jars] == [
        "spark-sql-kafka-0-10_2.13",
        "spark-token-provider-kafka-0-10_2.13",
        "kafka-clients",
        "commons-pool2",
    ]


def scoring(source: Source, sink: Sink, model: str = "/m", **fields: object) -> InferenceJob:
    return InferenceJob(model_uri=model, source=source, sink=sink, report_uri="/r", **fields)


def training(source: Source, **fields: object) -> TrainJob:
    entrypoint = Entrypoint.parse("m:f")
    given = {"np": 2, "model_uri": "s3://m/m", "report_uri": "/r", "datasets": {"train": source}}
    return TrainJob(entrypoint=entrypoint, **{**given, **fields})


LOCAL = Sink.parquet("/out")
KEYS = S3Access(conn_id="lake")


@pytest.mark.parametrize(
    ("job", "is_needed"),
    [
        (scoring(Source.parquet("s3://lake/t"), LOCAL), True),
        (scoring(Source.sql("select * from t", t=Source.delta("s3a://lake/t")), LOCAL), True),
        (scoring(Source.parquet("/t"), Sink.delta("s3://out/t")), True),
        (scoring(Source.parquet("/t"), Sink.parquet("s3://out/t")), True),
        (scoring(Source.parquet("/t"), Sink.parquet("s3://m/t"), "s3://m/m"), False),
        (scoring(Source.parquet("/t"), Sink.parquet("s3://out/t"), s3=KEYS), False),
        (scoring(Source.parquet("/t"), LOCAL, "s3://m/m"), False),
        (training(Source.parquet("s3://lake/t", columns=["a"])), False),
        (training(Source.parquet("s3://lake/t", where="a > 1")), True),
        (training(Source.parquet("s3://lake/t"), prepare="m:p"), True),
        (training(Source.jdbc("shop", table="t")), True),
        (training(Source.jdbc("shop", table="t"), model_uri="/m"), False),
    ],
)
def test_hadoops_client_of_s3_is_for_jobs_whose_spark_goes_there_itself(job, is_needed):
    assert has_spark_on_s3(job) == is_needed


def test_the_client_of_s3_is_of_sparks_hadoop(with_hadoop):
    added = additions(of_s3(with_hadoop, {}), Submission(), with_hadoop, None)
    assert added.packages == ["org.apache.hadoop:hadoop-aws:3.5.0"]
    assert "org.apache.hadoop:hadoop-client-api" in added.excludes


def test_a_client_of_s3_that_is_there_is_not_added(with_hadoop, home, tmp_path):
    assert of_s3(with_hadoop, {"spark.driver.extraClassPath": "/opt/hadoop-aws-3.5.0.jar"}) == []
    given = Submission(packages=["org.apache.hadoop:hadoop-aws:3.4.1"])
    assert additions(of_s3(with_hadoop, {}), given, with_hadoop, None).packages == []
    (home / "jars" / "hadoop-client-api-3.5.0.jar").unlink()
    assert of_s3(home, {}) == [], "a Spark without Hadoop gets it with its Hadoop"
    assert of_s3(tmp_path, {}) == []


def test_the_client_of_s3_in_a_folder_is_of_sparks_hadoop(with_hadoop, tmp_path):
    names = ("hadoop-aws-3.4.2.jar", "hadoop-aws-3.5.0.jar", "bundle-2.35.4.jar")
    for name in names:
        (tmp_path / name).touch()
    connectors = of_s3(with_hadoop, {})
    added = additions(connectors, Submission(), with_hadoop, tmp_path)
    assert added.jars == [str(tmp_path / name) for name in names[1:]]
    (tmp_path / names[1]).unlink()
    with pytest.raises(
        InvalidJobError, match=r"has no hadoop-aws-\*.*org\.apache\.hadoop:hadoop-aws:3\.5\.0"
    ):
        additions(connectors, Submission(), with_hadoop, tmp_path)
