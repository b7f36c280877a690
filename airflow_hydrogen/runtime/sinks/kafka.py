"""Messages of a Kafka topic: staged as files, counted, and then sent.

Nothing is sent before all rows are there. What was sent is not taken back: an application that dies while it
sends does so again, with the same `hydrogen_id` in every message.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.errors import MessageIdError, TopicError
from airflow_hydrogen.contract.jobs import Run, Sink
from airflow_hydrogen.runtime.data.databases import Access
from airflow_hydrogen.runtime.data.kafka import client_options
from airflow_hydrogen.runtime.data.streams import HEADERS, KEY
from airflow_hydrogen.runtime.sinks.staged import StagedFiles, replacing
from airflow_hydrogen.runtime.spark_errors import root_cause, spark_errors
from airflow_hydrogen.runtime.storage.swap import Replacement

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ID = "hydrogen_id"
"""The field of a message that is the same where its row is sent again."""


@contextmanager
def placing(spark: SparkSession, sink: Sink, run: Run | None, access: Access) -> Iterator[Messages]:
    """Begin a try to send messages; what it stages lies beside the sink's `work_uri`."""
    with replacing(str(sink.work_uri), run) as replacement:
        yield Messages(spark, sink, access, replacement)


class Messages(StagedFiles):
    """The messages of one try.

    Args:
        spark: the session.
        sink: with the topic.
        access: what opens its connection.
        replacement: of the folder in which they are staged.
    """

    by_tasks = None  # Spark adds what makes a message known again

    def __init__(self, spark: SparkSession, sink: Sink, access: Access, replacement: Replacement) -> None:
        super().__init__(str(sink), replacement)
        self._spark, self._sink, self._access = spark, sink, access

    def commit(self, *, rows: int, model: str | None) -> None:
        """Send what was staged.

        Raises:
            MessageIdError: several rows were made of one message; nothing was sent.
            TopicError: the brokers have not taken all of it.
        """
        from pyspark.sql import functions

        self.require_owner()
        staged = self._spark.read.parquet(uris.spark_uri(self._replacement.staged))
        ids = staged.agg(functions.count_distinct(ID)).collect()[0][0]
        if ids != rows:
            raise MessageIdError(self.name, rows, ids)
        # Two columns become a message's own, in place of fields of its value.
        fields = [functions.col(f"`{name}`") for name in staged.columns if name not in (KEY, HEADERS)]
        messages = staged.select(
            functions.col(KEY).alias("key"),
            functions.to_json(functions.struct(*fields), {"ignoreNullFields": "false"}).alias("value"),
            functions.col(HEADERS).alias("headers"),
        )
        writer = messages.write.format("kafka").options(**client_options(self._sink, self._access))
        try:
            writer.option("topic", str(self._sink.topic)).option("includeHeaders", "true").save()
        except spark_errors() as error:
            raise TopicError(str(self._sink), root_cause(error)) from error
