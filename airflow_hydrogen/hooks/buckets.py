"""A look at the buckets of a job, with the keys of its connection: one request each, as Amazon signs them.

It needs no library, so that it is done wherever Airflow submits. Whoever may not list a bucket may still read
what is in it: only what is certain is an error.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import http.client
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from airflow_hydrogen.contract.errors import StoreRefusedError, StoreUnreachableError
from airflow_hydrogen.contract.stores import S3Access

TIMEOUT_S = 10.0
_MOST_BYTES = 65536  # what answers may be no S3, and never come to an end

_NOTHING = hashlib.sha256(b"").hexdigest()
_QUERY = "list-type=2&max-keys=1"
_CODE = re.compile(rb"<Code>(\w+)</Code>")
_REFUSED = {
    "InvalidAccessKeyId": "there is no such access key (the connection's login)",
    "SignatureDoesNotMatch": "the secret key (the connection's password) is not that of the access key",
    "XAdminUserNotFound": "there is no such access key (the connection's login)",  # Versity's word for it
    "ExpiredToken": "its aws_session_token has expired",
    "InvalidToken": "its aws_session_token is not valid",
    "NoSuchBucket": "there is no such bucket",
    "NoStore": "what answers there is no S3",
}
_LISTED = b"<ListBucketResult"

log = logging.getLogger(__name__)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A signature is for one host."""

    def redirect_request(self, *_: Any) -> None:
        return None


# The proxies of the environment are not those of Spark, workers and ranks.
_web = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects)


def require_open(access: S3Access, buckets: Mapping[str, str], *, same_host: bool) -> None:
    """Find out that keys are wrong, or that nobody answers, before cluster time is spent.

    Args:
        access: with keys; without them there is nothing to be said from here.
        buckets: bucket -> a URI in it, for messages.
        same_host: Spark's driver will be on this machine, and reach no more than this process.

    Raises:
        StoreRefusedError: S3 does not know the keys, or a bucket.
        StoreUnreachableError: it does not answer.
    """
    if access.access_key is None or (access.host is None and "-iso" in (access.region or "")):
        return  # the second: names of hosts that are not known here
    for bucket, uri in sorted(buckets.items()):
        address = _address(access, bucket)
        endpoint = access.endpoint_url or address.rpartition("/")[0]
        try:
            code = _ask(access, address)
        # urllib's, time-outs, what is no HTTP, and names that are none of a host
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", None) or error)
            if same_host:
                raise StoreUnreachableError(access.conn_id, endpoint, reason) from None
            log.info(
                "S3 at %s does not answer to this machine, and is left to the cluster: %s", endpoint, reason
            )
            return
        if code in _REFUSED:
            raise StoreRefusedError(access.conn_id, endpoint, f"{_REFUSED[code]} ({code}, asked for {uri})")
        if code:
            log.info("S3 at %s answers %s when it is asked for %s", endpoint, code, uri)


def _address(access: S3Access, bucket: str) -> str:
    if access.host is None:
        region = access.region or "us-east-1"
        return f"https://s3.{region}.amazonaws.com{'.cn' if region.startswith('cn-') else ''}/{bucket}"
    if access.virtual_hosts:
        return f"{access.scheme}://{bucket}.{access.host}/"
    return f"{access.endpoint_url}/{bucket}"


def _ask(access: S3Access, address: str) -> str:
    """What is wrong, as S3 calls it; "" where it lists the bucket."""
    request = urllib.request.Request(f"{address}?{_QUERY}", headers=_signed(access, address))
    try:
        with _web.open(request, timeout=TIMEOUT_S) as answer:
            return "" if _LISTED in answer.read(_MOST_BYTES) else "NoStore"
    except urllib.error.HTTPError as error:
        with error:
            found = _CODE.search(error.read(_MOST_BYTES))
        return found[1].decode() if found else f"HTTP {error.code}"


def _signed(access: S3Access, address: str, now: datetime.datetime | None = None) -> dict[str, str]:
    """The headers of a request: Amazon's signature, version 4."""
    assert access.access_key is not None and access.secret_key is not None
    moment = (now or datetime.datetime.now(datetime.timezone.utc)).strftime("%Y%m%dT%H%M%SZ")
    host, _, path = address.partition("://")[2].partition("/")
    headers = {"host": host, "x-amz-content-sha256": _NOTHING, "x-amz-date": moment}
    if access.session_token:
        headers["x-amz-security-token"] = access.session_token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    asked = "\n".join(["GET", quote(f"/{path}", safe="/~"), _QUERY, lines, names, _NOTHING])
    scope = f"{moment[:8]}/{access.known_region or 'us-east-1'}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(asked.encode()).hexdigest()])
    key = f"AWS4{access.secret_key}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.digest(key, part.encode(), "sha256")
    credential = f"Credential={access.access_key}/{scope}"
    return {
        **{name: value for name, value in headers.items() if name != "host"},
        "Authorization": f"AWS4-HMAC-SHA256 {credential},SignedHeaders={names},Signature={key.hex()}",
    }
