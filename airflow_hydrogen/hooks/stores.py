"""Airflow's connections to S3 -> what opens it for a job, and a look whether it does.

Connections are those of Airflow's Amazon provider, which need not be installed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.stores import S3Access

CONNECTION_TYPE = "aws"

_ENDPOINT = re.compile(r"https?://[^/?#@\s]+/?")
_KEY = re.compile(r"[!-~]*")
_ENDPOINT_SETTING = "spark.hadoop.fs.s3a.endpoint"
_AMAZONS = (".amazonaws.com", ".amazonaws.com.cn")
_ADDRESSING = ("auto", "path", "virtual")
# Whoever gives one of these expects to be somebody else, or somewhere else, than without.
_UNSUPPORTED = (
    *("role_arn", "assume_role_method", "assume_role_kwargs", "external_id", "aws_account_id"),
    *("aws_iam_role", "profile_name", "session_kwargs", "s3_config_file", "s3_config_format", "host"),
)
_SETTINGS_OF_CLIENTS = ("s3", "retries", "connect_timeout", "read_timeout", "max_pool_connections")
_KNOWN = (
    *("aws_access_key_id", "aws_secret_access_key", "aws_session_token", "endpoint_url", "region_name"),
    *("service_config", "config_kwargs"),
)


def s3_access(conn_id: str, get_connection: Callable[[str], Any]) -> S3Access:
    """What a connection says of S3.

    Args:
        conn_id: of a connection of type `aws`. Login and password are the access key and the secret key, or
            stand in its extra, with `aws_session_token`, `endpoint_url` and `region_name`. Without keys each
            process finds its own.
        get_connection: Airflow's.

    Raises:
        InvalidJobError: it is not there, or of another type, or says something that cannot be done.
    """
    if not conn_id.strip():
        raise InvalidJobError("aws_conn_id is empty: name a connection of type 'aws', or leave it out")
    try:
        connection = get_connection(conn_id)
    except AirflowNotFoundException:
        raise InvalidJobError(f"aws_conn_id names the connection {conn_id!r}, which is not there") from None
    if connection.conn_type != CONNECTION_TYPE:
        raise _problem(
            connection, f"it is of type {connection.conn_type!r}, expected {CONNECTION_TYPE!r}"
        ) from None
    extra = dict(connection.extra_dejson or {})
    _require_known(connection, extra)
    access_key = connection.login or extra.get("aws_access_key_id") or None
    secret_key = connection.password or extra.get("aws_secret_access_key") or None
    token = extra.get("aws_session_token") or None
    if bool(access_key) != bool(secret_key):
        has, lacks = ("login", "password") if access_key else ("password", "login")
        raise _problem(
            connection, f"it has a {has} and no {lacks}: these are the access key and the secret key"
        )
    for name, value in (("login", access_key), ("password", secret_key), ("aws_session_token", token)):
        if not _KEY.fullmatch(str(value or "")):
            raise _problem(
                connection,
                f"its {name} has a blank, the end of a line or a letter beyond ASCII in it, which no "
                "key has: paste it without",
            )
    if token and not access_key:
        raise _problem(connection, "its extra has an aws_session_token, and it has no keys")
    endpoint = _endpoint(connection, extra)
    return S3Access(
        conn_id=conn_id,
        access_key=access_key,
        secret_key=secret_key,
        session_token=token,
        endpoint_url=endpoint,
        region=extra.get("region_name") or None,
        virtual_hosts=_has_virtual_hosts(connection, extra, endpoint),
    )


def require_no_other(access: S3Access, conf: Mapping[str, str], settings: Mapping[str, str]) -> None:
    """Refuse settings of Spark that say otherwise than the connection does.

    Args:
        access: what the connection says.
        conf: the task's own.
        settings: all of the submission, those of files too, in whose place the connection's come.

    Raises:
        InvalidJobError: naming the settings.
    """
    elsewhere = settings.get(_ENDPOINT_SETTING)
    if access.endpoint_url is None and elsewhere and not elsewhere.endswith(_AMAZONS):
        raise InvalidJobError(
            f"{_ENDPOINT_SETTING} is {elsewhere!r}, and the connection {access.conn_id!r} (aws_conn_id) "
            "names no endpoint, which is Amazon's: give it that one as endpoint_url in its extra"
        )
    ours = access.spark_settings()
    other = sorted(name for name in conf if name in ours and str(conf[name]) != ours[name])
    if other:
        raise InvalidJobError(
            f"conf has {', '.join(other)}, which the connection {access.conn_id!r} says too (aws_conn_id): "
            "leave it out of conf, or aws_conn_id out"
        )


def client_options(access: S3Access) -> dict[str, Any]:
    """What opens S3 for s3fs."""
    style = "virtual" if access.virtual_hosts or not access.endpoint_url else "path"
    options = {
        "key": access.access_key,
        "secret": access.secret_key,
        "token": access.session_token,
        "endpoint_url": access.endpoint_url,
        "client_kwargs": {"region_name": access.known_region} if access.known_region else None,
        "config_kwargs": {"s3": {"addressing_style": style}} if access.endpoint_url else None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _require_known(connection: Any, extra: Mapping[str, Any]) -> None:
    wrong = [name for name in _UNSUPPORTED if extra.get(name)]
    if extra.get("verify") not in (None, True, "", "true", "True"):
        wrong.append("verify")
    if connection.host:
        raise _problem(
            connection, "it has a host, which says nothing: name the endpoint as endpoint_url in its extra"
        )
    settings = extra.get("config_kwargs") or {}
    if not isinstance(settings, Mapping):
        raise _problem(connection, f"config_kwargs in its extra must be an object, found {settings!r}")
    wrong += [f"config_kwargs[{name!r}]" for name in settings if name not in _SETTINGS_OF_CLIENTS]
    if wrong:
        raise _problem(
            connection,
            f"its extra has {', '.join(wrong)}, which Spark, workers and ranks cannot all be told; known are "
            f"{', '.join(_KNOWN)}. Take keys of the role, with their aws_session_token, or a connection "
            "without keys on hosts that have the role",
        )


def _endpoint(connection: Any, extra: Mapping[str, Any]) -> str | None:
    services = extra.get("service_config") or {}
    of_s3 = (services.get("s3") or {}) if isinstance(services, Mapping) else {}
    found = of_s3.get("endpoint_url") or extra.get("endpoint_url")
    if not found:
        return None
    if not isinstance(found, str) or not _ENDPOINT.fullmatch(found):
        shown = str(found).rpartition("@")[2]  # what stands before it may be a password
        raise _problem(
            connection,
            f"endpoint_url in its extra must be 'http://host:port' or 'https://host', found {shown!r}",
        )
    return found.rstrip("/")


def _has_virtual_hosts(connection: Any, extra: Mapping[str, Any], endpoint: str | None) -> bool:
    of_s3 = (extra.get("config_kwargs") or {}).get("s3") or {}
    style = of_s3.get("addressing_style", "auto") if isinstance(of_s3, Mapping) else of_s3
    if style not in _ADDRESSING:
        raise _problem(
            connection,
            f"config_kwargs['s3']['addressing_style'] in its extra must be one of "
            f"{', '.join(map(repr, _ADDRESSING))}, found {style!r}",
        )
    return endpoint is not None and style == "virtual"


def _problem(connection: Any, what: str) -> InvalidJobError:
    return InvalidJobError(f"connection {connection.conn_id!r} cannot be used as aws_conn_id: {what}")
