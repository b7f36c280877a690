"""What a submission needs beside Spark, so that Spark can read and write what a job names: packages,
jars, settings.

Versions are matched to the Spark that is submitted with. What the user gives is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.jobs import InferenceJob, Job
from airflow_hydrogen.contract.sinks import Sink
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.contract.stores import is_s3
from airflow_hydrogen.hooks.databases import MARIADB_DRIVER, MYSQL_DRIVER, POSTGRESQL_DRIVER

_HADOOP_JAR = re.compile(r"hadoop-client-api-(\d\S*)\.jar")
_SPARK_JAR = re.compile(r"spark-core_(\d+\.\d+)-(\d+\.\d+)(\S*)\.jar")
_EXTENSIONS = "spark.sql.extensions"
# Spark has these itself, and newer ones than Delta asks for. What is excluded is so for the user's packages
# too: whole groups are those for which nobody asks.
_SPARKS_OWN = (
    *("org.apache.hadoop:hadoop-client-api", "org.apache.hadoop:hadoop-client-runtime"),
    *("org.apache.parquet:*", "org.apache.logging.log4j:*", "org.slf4j:*"),
)


@dataclass(frozen=True)
class SparkVersion:
    """Of the Spark that a job is submitted with: Scala "2.13", release "4.2", whole "4.2.0".

    Attributes:
        hadoop: of the Hadoop among its jars; "" where it has none.
    """

    scala: str
    release: str
    whole: str
    hadoop: str = ""


@dataclass(frozen=True)
class Connector:
    """What makes Spark read and write one kind of source or sink.

    Attributes:
        coordinate: Maven's, with the versions of Spark put in.
        jar: the beginning of its jar's name.
        companions: beginnings of the names of jars that it needs beside it, in a folder of jars.
        conf: settings of Spark.
        extension: class to add to `spark.sql.extensions`.
        excludes: keep what Spark has itself out of what the package asks for.
    """

    coordinate: str = ""
    jar: str = ""
    companions: tuple[str, ...] = ()
    conf: Mapping[str, str] = field(default_factory=dict)
    extension: str = ""
    excludes: bool = False


_DELTA = Connector(
    coordinate="io.delta:delta-spark_{release}_{scala}:4.4.0",
    jar="delta-spark_",
    companions=("delta-storage-", "delta-kernel-"),
    conf={"spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog"},
    extension="io.delta.sql.DeltaSparkSessionExtension",
    excludes=True,
)
_AVRO = Connector(coordinate="org.apache.spark:spark-avro_{scala}:{whole}", jar="spark-avro_")
_OF_KIND = {
    "delta": _DELTA,
    "avro": _AVRO,
    "confluent-avro": _AVRO,
    "hive": Connector(conf={"spark.sql.catalogImplementation": "hive"}),
    "delta_stream": _DELTA,
    "kafka": Connector(
        coordinate="org.apache.spark:spark-sql-kafka-0-10_{scala}:{whole}",
        jar="spark-sql-kafka-0-10_",
        companions=("spark-token-provider-kafka-0-10_", "kafka-clients-", "commons-pool2-"),
    ),
}
_S3A = Connector(
    coordinate="org.apache.hadoop:hadoop-aws:{hadoop}",
    jar="hadoop-aws-",
    companions=("bundle-", "analyticsaccelerator-s3-"),
    excludes=True,
)
_DRIVERS = {
    POSTGRESQL_DRIVER: Connector(coordinate="org.postgresql:postgresql:42.7.14", jar="postgresql-"),
    MYSQL_DRIVER: Connector(coordinate="com.mysql:mysql-connector-j:9.7.0", jar="mysql-connector-j-"),
    MARIADB_DRIVER: Connector(
        coordinate="org.mariadb.jdbc:mariadb-java-client:3.5.10", jar="mariadb-java-client-"
    ),
}


@dataclass(frozen=True)
class Submission:
    """What a user has given, or what is to be added to it.

    Attributes:
        packages: Maven coordinates.
        jars: paths or addresses.
        excludes: coordinates that packages do not bring along.
        conf: Spark's settings.
    """

    packages: Sequence[str] = ()
    jars: Sequence[str] = ()
    excludes: Sequence[str] = ()
    conf: Mapping[str, str] = field(default_factory=dict)


def spark_version(home: Path | None) -> SparkVersion | None:
    """The version of the Spark in a folder, by the name of its core jar; None where there is none."""
    names = [file.name for file in Path(home, "jars").glob("*.jar")] if home is not None else []
    found = next((match for name in names if (match := _SPARK_JAR.fullmatch(name))), None)
    hadoop = next((match[1] for name in names if (match := _HADOOP_JAR.fullmatch(name))), "")
    return None if found is None else SparkVersion(found[1], found[2], found[2] + found[3], hadoop)


def needed(places: Iterable[Source | Sink], access: Mapping[str, Mapping[str, str]]) -> list[Connector]:
    """The connectors of a job's sources and sinks, each once."""
    found: list[Connector] = []
    for place in places:
        if place.conn_id is not None and place.kind == "jdbc":
            wanted = [_DRIVERS.get(access[place.conn_id]["driver"])]
        elif isinstance(place, Source):
            wanted = [_OF_KIND.get(place.format or place.kind), _OF_KIND.get(place.payload or "")]
        else:
            wanted = [_OF_KIND.get(place.kind)]
        found += [connector for connector in wanted if connector is not None and connector not in found]
    return found


def has_spark_on_s3(job: Job) -> bool:
    """Whether Spark itself reads or writes on S3, and not Python alone. Pure."""
    if isinstance(job, InferenceJob):
        places = [*(source.uri for source in job.sources), job.sink.work_uri]
        places += [] if _is_written_by_workers(job) else [job.sink.uri]
        places += [] if job.stream is None else [job.stream.checkpoint_uri]
    else:
        # Ranks read plain Parquet as it lies; other rows are written beside the model by Spark.
        prepared = [source for source in job.datasets.values() if job.prepare or not _is_plain(source)]
        places = [part.uri for source in prepared for part in source.walk()]
        places += [job.model_uri] if prepared else []
    return any(is_s3(place) for place in places)


def of_s3(home: Path | None, settings: Mapping[str, str]) -> list[Connector]:
    """Hadoop's client of S3. A Spark that comes without Hadoop gets both from elsewhere.

    Args:
        home: the folder of the Spark that is submitted with.
        settings: Spark's; one that names a jar of the client says that it is there.
    """
    version = spark_version(home)
    is_named = any(_S3A.jar in str(value) for value in settings.values())
    return [] if version is None or not version.hadoop or is_named else [_S3A]


def _is_plain(source: Source) -> bool:
    """Whether a source is Parquet files as they lie."""
    return source.kind == "parquet" and source.where is None and not source.options


def _is_written_by_workers(job: InferenceJob) -> bool:
    """Whether Python workers write the sink's files: to S3 with the job's keys, or beside the model."""
    if job.sink.kind != "parquet" or job.sink.uri is None:
        return False
    sink, model = uris.parse(job.sink.uri), uris.parse(job.model_uri)
    return job.s3 is not None or (sink.store, sink.authority) == (model.store, model.authority)


def additions(
    connectors: Iterable[Connector], given: Submission, home: Path | None, folder: Path | None
) -> Submission:
    """What to add to a submission.

    Args:
        connectors: those that it needs.
        given: what the user gives: a package or jar of the same name is used instead.
        home: the folder of the Spark that it is submitted with.
        folder: a folder of jars, to be used instead of packages.

    Raises:
        InvalidJobError: the folder lacks a jar, or Spark's version cannot be told.
    """
    packages: list[str] = []
    jars: list[str] = []
    excludes: list[str] = []
    conf: dict[str, str] = {}
    for connector in connectors:
        if connector.jar and not _is_there(connector, given, home):
            if folder is not None:
                jars += _jars(connector, folder, home)
            else:
                packages.append(_coordinate(connector, home))
                excludes += _SPARKS_OWN if connector.excludes else ()
        conf |= {name: value for name, value in connector.conf.items() if name not in given.conf}
        extensions = given.conf.get(_EXTENSIONS, "")
        if connector.extension and connector.extension not in extensions:
            conf[_EXTENSIONS] = f"{extensions},{connector.extension}".lstrip(",")
    return Submission(packages, jars, excludes, conf)


def _is_there(connector: Connector, given: Submission, home: Path | None) -> bool:
    artifacts = [package.partition(":")[2] for package in given.packages]
    names = [jar.rpartition("/")[2] for jar in given.jars]
    names += [jar.name for jar in Path(home, "jars").glob("*.jar")] if home is not None else []
    # A jar goes on with a version behind "-" or "_", and so does an artifact, or with one behind ":".
    return any(f"{name.replace(':', '-')}-".startswith(connector.jar) for name in (*artifacts, *names))


def _coordinate(connector: Connector, home: Path | None) -> str:
    version = spark_version(home)
    if version is None and "{" in connector.coordinate:
        raise InvalidJobError(
            f"the version of Spark cannot be told from {home}, so that no package can be chosen: name it as "
            f"packages, such as {connector.coordinate}"
        )
    return connector.coordinate.format(**vars(version) if version is not None else {})


def _jars(connector: Connector, folder: Path, home: Path | None) -> list[str]:
    version = spark_version(home)
    scala = f"_{version.scala}-" if version is not None and "{scala}" in connector.coordinate else ""
    # Hadoop's parts are of one version, or of none that works.
    hadoop = f"-{version.hadoop}." if version is not None and "{hadoop}" in connector.coordinate else ""
    found = sorted(
        (jar for jar in folder.glob(f"{connector.jar}*.jar") if scala in jar.name and hadoop in jar.name),
        key=lambda jar: [int(number) for number in re.findall(r"\d+", jar.name)],
    )
    if not found:
        raise InvalidJobError(
            f"jars_folder {str(folder)!r} has no {connector.jar}*{scala}*.jar, which reading the source "
            f"needs; put the jar of {_coordinate(connector, home)} there, or name it as packages or jars"
        )
    beside = [jar for name in connector.companions for jar in sorted(folder.glob(f"{name}*.jar"))]
    return [str(jar) for jar in (found[-1], *beside)]
