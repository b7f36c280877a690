"""A Kafka broker in KRaft mode, from its published jars (`kafka-broker` in scripts/jars.txt).

```python
def test_events(kafka):
    topic = kafka.topic(partitions=3)
    kafka.produce(topic, [(b"key", b"value")], partition=0)
    kafka.kill(); kafka.start()                          # the same folder and port
    assert kafka.consume(topic)[0].value == b"value"
```
"""

from __future__ import annotations

import itertools
import subprocess
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.jars import jars
from tests.integration import daemons, servers

TIMEOUT_S = 60.0
USER = "hydrogen"
PASSWORD = "s3cr3t-f0r-k4fk4"
_MEMORY = "256m"


@dataclass(frozen=True)
class Record:
    """What a consumer reads."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Kafka:
    """A broker that runs.

    Attributes:
        bootstrap: its address.
        secured: the one at which it asks for user and password.
        server: its process.
    """

    def __init__(self, folder: Path) -> None:
        """Give it a folder for its settings, its records and its log, and format that.

        Raises:
            JarsUnavailableError: its jars cannot be had.
        """
        port, secured, controller = (daemons.free_port(servers.HOST) for _ in range(3))
        self.bootstrap, self.secured = f"{servers.HOST}:{port}", f"{servers.HOST}:{secured}"
        self._numbers = itertools.count(1)
        class_path = jars("kafka-broker")
        settings = folder / "server.properties"
        single = (
            "offsets.topic.replication.factor",
            "transaction.state.log.replication.factor",
            "transaction.state.log.min.isr",
            "share.coordinator.state.topic.replication.factor",
            "share.coordinator.state.topic.min.isr",
        )
        lines = [
            "process.roles=broker,controller",
            "node.id=1",
            f"controller.quorum.voters=1@{servers.HOST}:{controller}",
            f"listeners=PLAINTEXT://{self.bootstrap},SECURED://{self.secured},CONTROLLER://{servers.HOST}:{controller}",
            f"advertised.listeners=PLAINTEXT://{self.bootstrap},SECURED://{self.secured}",
            "controller.listener.names=CONTROLLER",
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SECURED:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
            "listener.name.secured.sasl.enabled.mechanisms=PLAIN",
            "listener.name.secured.plain.sasl.jaas.config="
            "org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'user_{USER}="{PASSWORD}";',
            f"log.dirs={folder / 'records'}",
            *(f"{name}=1" for name in single),
            # One consumer of a group, one partition of a coordinator: nobody has to be waited for.
            "group.initial.rebalance.delay.ms=0",
            "offsets.topic.num.partitions=1",
            "transaction.state.log.num.partitions=1",
            # So long after a kill, the next one is taken for another broker of the same name.
            "broker.session.timeout.ms=3000",
            "broker.heartbeat.interval.ms=500",
        ]
        settings.write_text("\n".join(lines) + "\n")
        cluster = urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        tool = ("kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(settings))
        command = servers.java(*tool, memory=_MEMORY, class_path=class_path)
        formatted = subprocess.run(command, capture_output=True, text=True, check=False)
        if formatted.returncode:
            raise RuntimeError(f"Kafka's folder is not formatted: {formatted.stdout}{formatted.stderr}")
        self.server = servers.Server(
            servers.java("kafka.Kafka", str(settings), memory=_MEMORY, class_path=class_path),
            folder / "broker.log",
            lambda: servers.port_is_open(port) and self._answers(),
        )

    def start(self) -> None:
        """Start it, with the records that it had and at the same address."""
        self.server.start()

    def kill(self) -> None:
        """SIGKILL it."""
        self.server.kill()

    def topic(self, partitions: int = 1, name: str | None = None) -> str:
        """Make a topic, and return its name: a new one unless given."""
        from confluent_kafka.admin import NewTopic

        name = name or f"topic-{next(self._numbers)}"
        admin = self._admin()  # what it does ends with it
        (made,) = admin.create_topics([NewTopic(name, partitions, 1)]).values()
        made.result(TIMEOUT_S)
        return name

    def remove(self, name: str) -> None:
        """Remove a topic, and wait until its name is free."""
        admin = self._admin()
        (removed,) = admin.delete_topics([name], operation_timeout=TIMEOUT_S).values()
        removed.result(TIMEOUT_S)

    def forget(self, topic: str, before: int) -> None:
        """Remove the messages of partition 0 before an offset, as the topic's retention does."""
        from confluent_kafka import TopicPartition

        admin = self._admin()
        (removed,) = admin.delete_records([TopicPartition(topic, 0, before)]).values()
        removed.result(TIMEOUT_S)

    def produce(
        self,
        topic: str,
        records: Sequence[tuple[bytes | None, bytes | None]],
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Write records and wait until the broker has them all.

        Args:
            topic: of this broker.
            records: key and value of each.
            partition: of all of them; by their keys unless given.
            headers: of each of them.
        """
        from confluent_kafka import Producer

        refused: list[Any] = []
        producer = Producer(
            {"bootstrap.servers": self.bootstrap, "queue.buffering.max.messages": len(records) + 1}
        )
        place = {} if partition is None else {"partition": partition}
        for key, value in records:
            producer.produce(
                topic,
                value,
                key,
                headers=list(headers),
                on_delivery=lambda error, _: refused.append(error) if error else None,
                **place,
            )
            producer.poll(0)
        left = producer.flush(TIMEOUT_S)
        assert not left and not refused, f"{left} records of {topic} not written, refused: {refused[:3]}"

    def consume(self, topic: str, committed: bool = True) -> list[Record]:
        """All records that are there now, in the order of partitions and offsets.

        Args:
            topic: of this broker.
            committed: without those of transactions that are open or aborted.
        """
        from confluent_kafka import Consumer, TopicPartition

        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": "tests",
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed" if committed else "read_uncommitted",
                "enable.partition.eof": True,
            }
        )
        try:
            partitions = consumer.list_topics(topic, TIMEOUT_S).topics[topic].partitions
            consumer.assign([TopicPartition(topic, number, 0) for number in partitions])
            records, at_the_end = [], set()
            while len(at_the_end) < len(partitions):
                message = consumer.poll(TIMEOUT_S)
                assert message is not None, f"{topic} does not end within {TIMEOUT_S} s"
                if message.error():
                    assert message.error().name() == "_PARTITION_EOF", message.error()
                    at_the_end.add(message.partition())
                else:
                    records.append(
                        Record(
                            message.partition(),
                            message.offset(),
                            message.key(),
                            message.value(),
                            tuple(message.headers() or ()),
                        )
                    )
        finally:
            consumer.close()
        return sorted(records, key=lambda record: (record.partition, record.offset))

    def _admin(self) -> Any:
        from confluent_kafka.admin import AdminClient

        return AdminClient({"bootstrap.servers": self.bootstrap})

    def _answers(self) -> bool:
        from confluent_kafka import KafkaException

        try:
            return bool(self._admin().list_topics(timeout=5).brokers)
        except KafkaException:
            return False


@contextmanager
def kafka_broker(folder: Path) -> Iterator[Kafka]:
    """A broker that keeps everything in a folder."""
    broker = Kafka(folder)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()
