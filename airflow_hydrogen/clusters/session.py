"""Requests to a cluster manager, without ever blocking the event loop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import httpx

from airflow_hydrogen.clusters.endpoint import ClusterEndpoint
from airflow_hydrogen.contract.errors import ClusterResponseError, ClusterUnreachableError

REQUEST_TIMEOUT_S = 20.0
_TRANSIENT = {408, 425, 429}


class Session(Protocol):
    """What a cluster manager needs of HTTP."""

    async def get_json(self, url: str, params: Mapping[str, str] | None = None) -> Any:
        """The document at an address.

        Raises:
            ClusterUnreachableError: no answer, or one that says to come back later.
            ClusterResponseError: the request was refused, or the answer is not JSON.
        """

    async def post_form(self, url: str, fields: Mapping[str, str]) -> None:
        """Send a form as a browser does; a page that it leads to is not fetched.

        Raises:
            ClusterUnreachableError: no answer, or one that says to come back later.
            ClusterResponseError: the request was refused.
        """


class HttpSession:
    """A Session over HTTP, with the credentials of an endpoint."""

    def __init__(self, client: httpx.AsyncClient, endpoint: ClusterEndpoint) -> None:
        self._client = client
        self._endpoint = endpoint

    async def get_json(self, url: str, params: Mapping[str, str] | None = None) -> Any:
        """See Session. Redirects are not followed: credentials are for the addresses of the connection."""
        answer = await self._send("GET", url, params=params)
        if answer.is_redirect:
            where = answer.headers.get("location", "")
            raise ClusterUnreachableError(url, f"it redirects to {where}: it is not the active one")
        _require_success(url, answer.status_code)
        try:
            # Megabytes where a cluster is large: not on the loop.
            return await asyncio.to_thread(answer.json)
        except ValueError:
            raise ClusterResponseError(
                url, "answered with something that is not JSON: check the address"
            ) from None

    async def post_form(self, url: str, fields: Mapping[str, str]) -> None:
        """See Session."""
        answer = await self._send("POST", url, data=dict(fields))
        if not answer.is_redirect:
            _require_success(url, answer.status_code)

    async def _send(self, method: str, url: str, **content: Any) -> httpx.Response:
        try:
            return await self._client.request(method, url, headers=await self._headers(), **content)
        except httpx.InvalidURL as error:
            raise ClusterResponseError(url, f"is not an address: {error}") from None
        except httpx.HTTPError as error:
            if (reason := _distrust(error)) is not None:
                raise ClusterResponseError(
                    url,
                    f"its certificate is not trusted: {reason}; the connection's extra ca-file must name the "
                    "certificates of its authority, and the address must be one that it was issued for",
                ) from None
            raise ClusterUnreachableError(url, f"{type(error).__name__} {error}".strip()) from None

    async def _headers(self) -> dict[str, str]:
        token = self._endpoint.token
        if self._endpoint.token_file:
            try:
                token = (await asyncio.to_thread(Path(self._endpoint.token_file).read_text)).strip()
            except OSError as error:
                raise ClusterResponseError(
                    self._endpoint.token_file, f"the token cannot be read: {error.strerror}"
                ) from None
        return {"Accept": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}


@asynccontextmanager
async def open_session(endpoint: ClusterEndpoint) -> AsyncIterator[HttpSession]:
    """A session that lives as long as the block: it keeps its connections."""
    # Reading the machine's certificates takes tens of milliseconds: not on the loop.
    verify: ssl.SSLContext | bool = False
    if any(url.startswith("https:") for url in endpoint.urls):
        verify = await asyncio.to_thread(_ssl_context, endpoint)
    auth = None
    if endpoint.login is not None:
        auth = httpx.BasicAuth(endpoint.login, endpoint.password or "")
    async with httpx.AsyncClient(
        verify=verify,
        auth=auth,
        timeout=REQUEST_TIMEOUT_S,
        proxy=endpoint.proxy,
        trust_env=False,  # neither a proxy that sees the credentials, nor credentials out of a ~/.netrc
    ) as client:
        yield HttpSession(client, endpoint)


async def ask_in_turn(
    session: Session, urls: list[str], path: str, standby: Callable[[Any], str | None]
) -> Any:
    """The answer of the active one of several addresses.

    The one that answered stands first afterwards, so that the next poll is one request.

    Args:
        urls: changed in place.
        standby: says what a document's sender is, where it is not the active one.

    Raises:
        ClusterUnreachableError: none is active; the message says for each address why.
    """
    failures = []
    for url in list(urls):
        try:
            document = await session.get_json(url + path)
        except ClusterUnreachableError as error:
            failures.append(error.problem if len(urls) == 1 else f"{url}: {error.problem}")
            continue
        if state := standby(document):
            failures.append(f"{url}: it is {state}")
            continue
        urls.remove(url)
        urls.insert(0, url)
        return document
    raise ClusterUnreachableError(", ".join(urls), "; ".join(failures))


def _require_success(url: str, status: int) -> None:
    if status >= 500 or status in _TRANSIENT:
        raise ClusterUnreachableError(url, f"status {status}")
    if status in (401, 403):
        raise ClusterResponseError(
            url,
            f"refused the request with status {status}: check the connection's credentials",
            status=status,
        )
    if status != 200:
        raise ClusterResponseError(url, f"answered with status {status}", status=status)


def _distrust(error: BaseException) -> str | None:
    """Why a server's certificate was refused, where that is what an error comes from: waiting mends none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message
        cause = cause.__cause__ or cause.__context__
    return None


def _ssl_context(endpoint: ClusterEndpoint) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=endpoint.ca_file)
        if not endpoint.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if endpoint.client_cert:
            context.load_cert_chain(endpoint.client_cert, endpoint.client_key)
    except (OSError, ssl.SSLError) as error:
        files = ", ".join(filter(None, (endpoint.ca_file, endpoint.client_cert, endpoint.client_key)))
        raise ClusterResponseError(files, f"the certificates cannot be read: {error}") from None
    return context
