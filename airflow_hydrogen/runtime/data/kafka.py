"""Kafka's brokers: how they are reached, and whether they have a topic, before a query waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract.errors import InvalidJobError, SourceError, TopicError
from airflow_hydrogen.contract.sinks import Sink
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.runtime.data.databases import Access
from airflow_hydrogen.runtime.spark_errors import root_cause, spark_errors

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ANSWER_S = 20
"""Seconds in which a broker has to answer when a stream starts."""

_PREFIX = "kafka."


def client_options(place: Source | Sink, access: Access) -> dict[str, str]:
    """Options of Spark's Kafka reader and writer that say where the brokers are, and who asks.

    Raises:
        InvalidJobError: nobody has said how the connection is opened.
    """
    if place.conn_id is None:
        return {"kafka.bootstrap.servers": str(place.servers)}
    if place.conn_id not in access:
        raise InvalidJobError(
            f"{place} needs access[{place.conn_id!r}]: the options of Spark's Kafka reader that open it, "
            "such as kafka.bootstrap.servers; the operators take them from Airflow's connection"
        )
    return dict(access[place.conn_id])


def require_topic(spark: SparkSession, place: Source | Sink, access: Access) -> str:
    """Find out that there is no broker, or no such topic, before a query waits for it for minutes.

    Returns:
        The topic's id: a topic that is made anew has another one.

    Raises:
        SourceError, TopicError: with what the broker says, or that it says nothing.
    """
    jvm: Any = spark._jvm
    properties = jvm.java.util.Properties()
    for name, value in {**client_options(place, access), **_asked_quickly()}.items():
        properties.setProperty(name.removeprefix(_PREFIX), value)
    clients = jvm.org.apache.kafka.clients.admin.AdminClient
    if not hasattr(clients, "create"):
        raise _problem(place, "no jar has Kafka's client: name spark-sql-kafka-0-10 as packages or jars")
    topics = jvm.java.util.Collections.singletonList(place.topic)
    try:
        client = clients.create(properties)
        try:
            found = client.describeTopics(topics).allTopicNames()
            described = found.get(ANSWER_S, jvm.java.util.concurrent.TimeUnit.SECONDS)
            return str(described.get(place.topic).topicId().toString())
        finally:
            client.close(jvm.java.time.Duration.ZERO)
    except spark_errors() as error:
        cause = root_cause(error)
        if "UnknownTopicOrPartition" in str(error):
            raise _problem(place, f"there is no topic {place.topic!r}; make it first") from error
        if "Timeout" in str(error):
            cause = (
                f"no broker answered within {ANSWER_S} s; are bootstrap.servers and security.protocol "
                f"right? {cause}"
            )
        raise _problem(place, cause) from error


def _asked_quickly() -> dict[str, str]:
    limit = str(ANSWER_S * 1000 - 2000)
    return {"default.api.timeout.ms": limit, "request.timeout.ms": limit}


def _problem(place: Source | Sink, why: str) -> SourceError | TopicError:
    return SourceError(str(place), why) if isinstance(place, Source) else TopicError(str(place), why)
