"""HTTP against a real server on this machine."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from airflow_hydrogen.clusters.drivers import log_tail
from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.clusters.managers import take_snapshot
from airflow_hydrogen.clusters.session import open_session
from airflow_hydrogen.contract.errors import ClusterError, ClusterResponseError, ClusterUnreachableError
from tests.unit.clusters.fakes import Server, document, serving


def get(answer: tuple[int, dict[str, str], bytes], **options: Any) -> tuple[Any, dict[str, str]]:
    """The answer to a request, and the request's headers."""

    async def run() -> tuple[Any, dict[str, str]]:
        server = Server(lambda path, headers: answer)
        await server.open()
        try:
            async with open_session(ClusterEndpoint("spark://m", (server.url,), **options)) as session:
                found = await session.get_json(f"{server.url}/x")
            assert len(server.requests) == 1
            return found, server.requests[0][1]
        finally:
            await server.close()

    return asyncio.run(run())


def test_credentials_stand_in_the_header() -> None:
    ok = (200, {}, b"{}")
    assert "authorization" not in get(ok)[1]
    assert get(ok, token="abc")[1]["authorization"] == "Bearer abc"
    expected = base64.b64encode(b"user:pass").decode()
    assert get(ok, login="user", password="pass")[1]["authorization"] == f"Basic {expected}"


def test_token_file_is_read_for_each_request(tmp_path: Path) -> None:
    file = tmp_path / "token"

    async def run() -> list[str]:
        async with serving({"/x": {}}) as server:
            async with open_session(ClusterEndpoint("k8s://a", (), token_file=str(file))) as session:
                for token in ("one\n", "two"):
                    file.write_text(token)
                    await session.get_json(f"{server.url}/x")
                file.unlink()
                with pytest.raises(ClusterResponseError, match="token cannot be read: No such file"):
                    await session.get_json(f"{server.url}/x")
            return [headers["authorization"] for _, headers in server.requests]

    assert asyncio.run(run()) == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize(
    ("answer", "kind", "complaint"),
    [
        ((503, {}, b""), ClusterUnreachableError, "status 503"),
        ((429, {}, b""), ClusterUnreachableError, "status 429"),
        (
            (307, {"Location": "http://rm2:8088/ws"}, b""),
            ClusterUnreachableError,
            "redirects to http://rm2:8088",
        ),
        ((401, {}, b""), ClusterResponseError, "status 401: check the connection's credentials"),
        ((403, {}, b""), ClusterResponseError, "status 403"),
        ((404, {}, b""), ClusterResponseError, "answered with status 404"),
        ((200, {}, b"<html>"), ClusterResponseError, "not JSON: check the address"),
    ],
)
def test_answers_that_are_none(answer: Any, kind: type[ClusterError], complaint: str) -> None:
    with pytest.raises(kind, match=complaint) as caught:
        get(answer, token="abc123")
    assert caught.value.retryable is (kind is ClusterUnreachableError)
    assert "abc123" not in str(caught.value)


def test_nobody_listens() -> None:
    async def run() -> None:
        async with serving({}) as server:
            url = server.url
        await take_snapshot(ClusterEndpoint("spark://m", (url,)))

    with pytest.raises(ClusterUnreachableError, match="ConnectError"):
        asyncio.run(run())


def test_certificates_that_are_not_there() -> None:
    with pytest.raises(ClusterResponseError, match="/nowhere.pem: the certificates cannot be read"):
        asyncio.run(take_snapshot(ClusterEndpoint("k8s://a", ("https://a",), ca_file="/nowhere.pem")))


@pytest.mark.parametrize(
    ("master", "documents", "gpus"),
    [
        ("spark://m:7077", {"/json/": "standalone"}, 3),
        ("yarn", {"/ws/v1/cluster/nodes": "yarn_nodes"}, 1),
        ("k8s://x", {"/api/v1/nodes": "kubernetes_nodes", "/api/v1/pods": "kubernetes_pods"}, 3),
    ],
)
def test_every_cluster_manager_over_http(master: str, documents: dict[str, str], gpus: int) -> None:
    async def run() -> Any:
        async with serving({path: document(name) for path, name in documents.items()}) as server:
            snapshot = await take_snapshot(ClusterEndpoint(master, (server.url,)))
            assert len(server.requests) == len(documents)
            return snapshot

    snapshot = asyncio.run(run())
    assert snapshot.free.resources == {"gpu": gpus}
    json.dumps(snapshot.to_dict())


def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1, signed by itself, with its key."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    file = folder / "server.pem"
    pem = serialization.Encoding.PEM
    file.write_bytes(
        made.public_bytes(pem)
        + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


def test_tls_servers_are_checked_against_the_certificates_of_the_connection(tmp_path: Path) -> None:
    file = certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    page = json.dumps(document("standalone")).encode()

    async def run() -> None:
        server = Server(lambda path, headers: (200, {}, page), tls=context)
        await server.open()
        try:
            for options in ({"ca_file": str(file)}, {"verify": False}):
                endpoint = ClusterEndpoint("spark://m", (server.url,), **options)
                assert (await take_snapshot(endpoint)).free.resources == {"gpu": 3}
            with pytest.raises(ClusterResponseError, match="self-signed certificate; .* extra ca-file") as e:
                await take_snapshot(ClusterEndpoint("spark://m", (server.url,)))
            assert not e.value.retryable  # it would be waited for until the time-out
            elsewhere = server.url.replace("127.0.0.1", "localhost")
            with pytest.raises(ClusterResponseError, match="Hostname mismatch"):
                await take_snapshot(ClusterEndpoint("spark://m", (elsewhere,), ca_file=str(file)))
        finally:
            await server.close()

    asyncio.run(run())


@pytest.fixture
def proxies(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Names a proxy in the environment, in all spellings."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)

    def name(url: str) -> None:
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(variable, url)
            monkeypatch.setenv(variable.lower(), url)

    return name


def test_a_proxy_of_the_environment_sees_no_token(proxies: Callable[[str], None]) -> None:
    async def run() -> tuple[list[Any], list[Any]]:
        async with serving({"/json/": document("standalone")}) as server, serving({}) as proxy:
            proxies(proxy.url)
            await take_snapshot(ClusterEndpoint("spark://m", (server.url,), token="abc123"))
            await log_tail(f"{server.url}/logPage/?driverId=d&logType=stdout")
            return server.requests, proxy.requests

    asked, seen = asyncio.run(run())
    assert seen == []
    assert asked[0][1]["authorization"] == "Bearer abc123"
    assert len(asked) == 2


def test_a_proxy_of_the_connection_is_used(proxies: Callable[[str], None]) -> None:
    async def run() -> list[str]:
        async with serving({"/json/": document("standalone")}) as proxy:
            proxies("http://127.0.0.1:9")
            endpoint = ClusterEndpoint("spark://m", ("http://master.invalid:8080",), proxy=proxy.url)
            await take_snapshot(endpoint)
            return [path for path, _ in proxy.requests]

    assert asyncio.run(run()) == ["http://master.invalid:8080/json/"]


def test_documents_are_parsed_off_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of Kubernetes is a megabyte, and the loop is that of all triggers."""
    threads: list[int] = []
    parse = httpx.Response.json

    def json_of(response: httpx.Response) -> Any:
        threads.append(threading.get_ident())
        return parse(response)

    monkeypatch.setattr(httpx.Response, "json", json_of)
    assert get((200, {}, b"{}"))[0] == {}
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()
