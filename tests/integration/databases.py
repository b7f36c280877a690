"""PostgreSQL and MariaDB as Debian has them, on ports and folders of their own, with passwords.

```python
def test_orders(postgres):
    database = postgres.database()                       # a new, empty one
    with contextlib.closing(database.connect()) as connection: ...
    spark.read.format("jdbc").options(**database.options, dbtable="orders")
```

MariaDB serves MySQL's drivers as well. As the URL is `jdbc:mysql:`, Spark speaks MySQL's dialect with both.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration import daemons, servers

USER = "hydrogen"
PASSWORD = "s3cr3t-f0r-t3sts"
MYSQL_DRIVER = "com.mysql.cj.jdbc.Driver"


@dataclass(frozen=True)
class Database:
    """One database of a server.

    Attributes:
        scheme: `postgresql` or `mysql`.
        driver: the class of its JDBC driver.
    """

    scheme: str
    driver: str
    port: int
    name: str
    host: str = servers.HOST
    user: str = USER
    password: str = PASSWORD

    @property
    def dsn(self) -> str:
        """An address with user and password, as libpq and SQLAlchemy take it."""
        return f"{self.scheme}://{self.user}:{self.password}@{self.host}:{self.port}/{self.name}"

    @property
    def jdbc_url(self) -> str:
        """An address without a password; unless told, MariaDB's driver leaves `jdbc:mysql:` to MySQL's."""
        mysql = "?permitMysqlScheme" if self.scheme == "mysql" else ""
        return f"jdbc:{self.scheme}://{self.host}:{self.port}/{self.name}{mysql}"

    @property
    def options(self) -> dict[str, str]:
        """Options of Spark's `jdbc`: all but the table."""
        return {"url": self.jdbc_url, "user": self.user, "password": self.password, "driver": self.driver}

    def connect(self) -> Any:
        """A connection of Python's DB-API, by psycopg2 or pymysql."""
        if self.scheme == "postgresql":
            import psycopg2

            return psycopg2.connect(self.dsn)
        import pymysql

        return pymysql.connect(
            host=self.host, port=self.port, user=self.user, password=self.password, database=self.name
        )

    def execute(self, *statements: str) -> None:
        """Run statements in one transaction."""
        with contextlib.closing(self.connect()) as connection:
            with connection.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)
            connection.commit()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What a query answers."""
        with contextlib.closing(self.connect()) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())


class DatabaseServer:
    """A server that runs; `server` is its process, to be killed and started again.

    Attributes:
        first: the database that is there from the start, for what concerns the server as a whole.
    """

    def __init__(self, server: servers.Server, first: Database) -> None:
        self.server = server
        self.first = first
        self._numbers = itertools.count(1)

    def database(self) -> Database:
        """A new, empty database."""
        name = f"test_{next(self._numbers)}"
        with contextlib.closing(self.first.connect()) as connection:
            connection.autocommit = True  # PostgreSQL makes none in a transaction
            with connection.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {name}")
        return Database(self.first.scheme, self.first.driver, self.first.port, name)


@contextmanager
def postgres_server(logs: Path) -> Iterator[DatabaseServer]:
    """PostgreSQL with SCRAM passwords.

    Raises:
        LookupError: there is none on this machine.
    """
    programs = _postgres_programs()
    first = Database("postgresql", "org.postgresql.Driver", daemons.free_port(servers.HOST), "postgres")
    with _folder("postgres") as folder:
        password = folder / "password"
        password.write_text(PASSWORD)
        servers.give_to_nobody(password)
        data = folder / "data"
        initdb = [
            *(str(programs / "initdb"), "--pgdata", str(data), "--username", USER, "--pwfile", str(password)),
            *("--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--no-sync"),
        ]
        _run([*servers.as_nobody(), *initdb])
        settings = ("fsync=off", "unix_socket_directories=", f"listen_addresses={servers.HOST}")
        server = servers.Server(
            [
                *(str(programs / "postgres"), "-D", str(data), "-p", str(first.port)),
                *(argument for setting in settings for argument in ("-c", setting)),
            ],
            logs / "postgres.log",
            lambda: _answers(first),
            user=servers.as_nobody(),
            end=signal.SIGQUIT,  # SIGKILL would leave its shared memory
        )
        with _running(server):
            yield DatabaseServer(server, first)


@contextmanager
def mariadb_server(logs: Path) -> Iterator[DatabaseServer]:
    """MariaDB, in UTF-8.

    Raises:
        LookupError: there is none on this machine.
    """
    install, program = _program("mariadb-install-db"), _program("mariadbd")
    first = Database("mysql", "org.mariadb.jdbc.Driver", daemons.free_port(servers.HOST), "hydrogen")
    with _folder("mariadb") as folder:
        data = folder / "data"
        small = ["--innodb-log-file-size=8M", "--innodb-buffer-pool-size=32M"]
        rootless = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        _run([*servers.as_nobody(), install, "--no-defaults", f"--datadir={data}", *rootless, *small])
        setup = folder / "setup.sql"
        # Statements end with their lines. The installation's root has no password.
        setup.write_text(
            f"CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';\n"
            f"GRANT ALL ON *.* TO '{USER}'@'%';\n"
            "DELETE FROM mysql.global_priv WHERE User IN ('', 'root');\nFLUSH PRIVILEGES;\n"
            f"CREATE DATABASE IF NOT EXISTS {first.name};\n"
        )
        servers.give_to_nobody(setup)
        server = servers.Server(
            [
                *(program, "--no-defaults", f"--datadir={data}", f"--socket={folder / 'socket'}", *small),
                *(f"--port={first.port}", f"--bind-address={servers.HOST}", "--skip-name-resolve"),
                *(f"--pid-file={folder / 'pid'}", f"--init-file={setup}"),
                *("--innodb-flush-log-at-trx-commit=0", "--character-set-server=utf8mb4"),
            ],
            logs / "mariadb.log",
            lambda: _answers(first),
            user=servers.as_nobody(),
        )
        with _running(server):
            yield DatabaseServer(server, first)


def _answers(database: Database) -> bool:
    if not servers.port_is_open(database.port):
        return False
    if database.scheme == "postgresql":
        from psycopg2 import OperationalError
    else:
        from pymysql import OperationalError
    try:
        database.rows("SELECT 1")
    except OperationalError:  # it is still starting
        return False
    return True


@contextmanager
def _folder(name: str) -> Iterator[Path]:
    """Not pytest's: the database's user has to be let in."""
    folder = Path(tempfile.mkdtemp(prefix=f"airflow-hydrogen-{name}-"))
    try:
        servers.give_to_nobody(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(server: servers.Server) -> Iterator[None]:
    server.start()
    try:
        yield
    finally:
        server.kill()


def _postgres_programs() -> Path:
    """The folder of initdb and postgres, which Debian keeps off the PATH."""
    found = shutil.which("postgres")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    for folder in folders:
        if (folder / "initdb").exists():
            return folder
    raise LookupError("no PostgreSQL on this machine: scripts/setup.sh installs it (Debian's postgresql)")


def _program(name: str) -> str:
    found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if found is None:
        packages = "mariadb-server-core and mariadb-client-core"
        raise LookupError(f"no {name} on this machine: scripts/setup.sh installs it (Debian's {packages})")
    return found


def _run(command: list[str]) -> None:
    run = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, cwd="/"
    )
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {run.stdout}{run.stderr}")
