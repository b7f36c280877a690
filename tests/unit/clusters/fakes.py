"""A session without a network, and a web server without a framework."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

DOCUMENTS = Path(__file__).with_name("documents")


def document(name: str) -> Any:
    """A golden document of a cluster manager."""
    return json.loads((DOCUMENTS / f"{name}.json").read_text())


class FakeSession:
    """Answers from a mapping of addresses; an exception is raised."""

    def __init__(self, answers: Mapping[str, Any]) -> None:
        self.answers = dict(answers)
        self.requests: list[str] = []

    async def get_json(self, url: str, params: Mapping[str, str] | None = None) -> Any:
        self.requests.append(url)
        answer = self.answers[url]
        if isinstance(answer, Exception):
            raise answer
        return answer


Answer = tuple[int, dict[str, str], bytes]
"""Status, headers and body."""


class Server:
    """Answers every GET with what a function makes of its path and headers; it can be closed and reopened."""

    def __init__(
        self, respond: Callable[[str, dict[str, str]], Answer], tls: ssl.SSLContext | None = None
    ) -> None:
        self.respond = respond
        self.tls = tls
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.port = 0
        self._came = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def asked(self, times: int) -> None:
        """Wait for so many requests."""
        async with self._came:
            await asyncio.wait_for(self._came.wait_for(lambda: len(self.requests) >= times), 30)

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                request, *lines = head.strip().split("\r\n")
                headers = {
                    name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
                }
                path = request.split(" ")[1]
                async with self._came:
                    self.requests.append((path, headers))
                    self._came.notify_all()
                status, extra, body = self.respond(path, headers)
                fields = {**extra, "Content-Length": str(len(body))}
                writer.write(
                    f"HTTP/1.1 {status} X\r\n".encode()
                    + "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode()
                    + b"\r\n"
                    + body
                )
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()


@asynccontextmanager
async def serving(documents: Mapping[str, Any]) -> AsyncIterator[Server]:
    """A server of JSON documents by path; the query is not looked at."""

    def respond(path: str, headers: dict[str, str]) -> Answer:
        found = documents.get(urlsplit(path).path)
        if found is None:
            return 404, {}, b"nothing here"
        return 200, {"Content-Type": "application/json"}, json.dumps(found).encode()

    server = Server(respond)
    await server.open()
    try:
        yield server
    finally:
        await server.close()
