"""What opens a Spark Connect server for a job: where it is, who one is there, what a session has to have."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_hydrogen.contract.values import refuse_unknown_fields

DEFAULT_PORT = 15002

# The only host with which Spark's client exchanges a token without TLS.
_LOCAL = "localhost"


@dataclass(frozen=True, kw_only=True)
class ConnectAccess:
    """A Spark Connect server, as a job carries it.

    Attributes:
        conn_id: the connection, for messages.
        host, port: of the server.
        token: None: the server asks for none.
        use_ssl: the server, or what stands before it, speaks TLS.
        user_id: whose sessions they are, as the server sees it; None: this machine's user.
        headers: sent with each call, such as those that a proxy asks for.
        settings: of Spark's SQL, for the job alone.
        py_files: Python code that workers need: paths on this machine.
        archives, files: what else they need.
        code: a hash of all that: sessions of other code are not joined.
    """

    conn_id: str
    host: str
    port: int = DEFAULT_PORT
    token: str | None = field(default=None, repr=False)
    use_ssl: bool = False
    user_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    settings: Mapping[str, str] = field(default_factory=dict)
    py_files: Sequence[str] = ()
    archives: Sequence[str] = ()
    files: Sequence[str] = ()
    code: str = ""

    @property
    def url(self) -> str:
        """The server's address, without anything that is secret."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"sc://{host}:{self.port}"

    @property
    def speaks_tls(self) -> bool:
        """Whether Spark's client speaks TLS: where it is told to, and with a token to any host but one."""
        return self.use_ssl or (self.token is not None and self.host != _LOCAL)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> ConnectAccess:
        """Read the JSON form.

        Raises:
            InvalidJobError: an unknown field.
        """
        refuse_unknown_fields(cls, document)
        lists = {
            name: tuple(document[name]) for name in ("py_files", "archives", "files") if name in document
        }
        return cls(**{**document, **lists})
