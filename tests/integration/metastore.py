"""Hive's metastore as a service, from the jars of pip's pyspark; its database is in its memory.

Any number of Spark sessions use it at the same time, with `spark.hadoop.hive.metastore.uris` and
`spark.sql.catalogImplementation=hive`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from tests.integration import daemons, servers


@dataclass(frozen=True)
class Metastore:
    """A service that runs; what it knows ends with it.

    Attributes:
        uri: its address, `thrift://...`.
        folder: where managed tables lie: databases below it, and the tables of `default` in it.
        server: its process.
    """

    uri: str
    folder: Path
    server: servers.Server

    @property
    def settings(self) -> dict[str, str]:
        """Spark settings of an application that uses it. Spark goes by its own setting for the folder."""
        return {
            "spark.sql.catalogImplementation": "hive",
            "spark.hadoop.hive.metastore.uris": self.uri,
            "spark.sql.warehouse.dir": self.folder.as_uri(),
        }


@contextmanager
def hive_metastore(folder: Path, port: int | None = None) -> Iterator[Metastore]:
    """Start one whose log, settings and managed tables lie in a folder.

    Args:
        folder: of its own.
        port: a free one unless given.
    """
    port = port or daemons.free_port(servers.HOST)
    warehouse = folder / "warehouse"
    warehouse.mkdir()
    settings = {
        "javax.jdo.option.ConnectionURL": "jdbc:derby:memory:metastore;create=true",
        "datanucleus.schema.autoCreateAll": "true",
        "hive.metastore.schema.verification": "false",
        "hive.metastore.warehouse.dir": warehouse.as_uri(),
        "hive.async.log.enabled": "false",  # needs a library that Spark does not have
    }
    properties = "".join(
        f"<property><name>{name}</name><value>{escape(value)}</value></property>\n"
        for name, value in settings.items()
    )
    (folder / "hive-site.xml").write_text(f"<configuration>\n{properties}</configuration>\n")
    command = servers.java(
        f"-Dderby.stream.error.file={folder / 'derby.log'}",
        *("org.apache.hadoop.hive.metastore.HiveMetaStore", "-p", str(port)),
        memory="256m",
        class_path=[folder, f"{daemons.spark_home()}/jars/*"],
    )
    server = servers.Server(command, folder / "metastore.log", lambda: servers.port_is_open(port))
    server.start()
    try:
        yield Metastore(f"thrift://{servers.HOST}:{port}", warehouse, server)
    finally:
        server.kill()
