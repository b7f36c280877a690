"""How a source or a sink says where Iceberg's catalog is: by its properties, or by an Airflow connection."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from airflow_hydrogen.contract.errors import InvalidJobError
from airflow_hydrogen.contract.stores import S3Access

_WORDS = r"credential|token|secret|password|passwd|\bpwd\b|access-key|account-key|api-?key|connection-string"
_SECRET = re.compile(rf"(?i){_WORDS}|signer|authorization")
# What is behind a colon is a password, and may have a slash in it, unless it is a port.
_LOGIN = re.compile(r"//[^/@:]*:(?!\d+/).*@")
_ASKED = re.compile(rf"(?i)[?&;][^=&;]*(?:{_WORDS})[^=&;]*=([^&;]+)")


def named_by(catalog: str | Mapping[str, str]) -> dict[str, Any]:
    """The field that a catalog belongs to: a text names a connection, a mapping holds properties."""
    return {"conn_id": catalog} if isinstance(catalog, str) else {"catalog": dict(catalog)}


def require_one(what: str, catalog: Mapping[str, str], conn_id: str | None) -> None:
    """Raise InvalidJobError unless one of the two is given, and not both; and where the DAG holds a secret.

    Args:
        what: "source" or "sink", for the message.
        catalog: properties of pyiceberg's.
        conn_id: a connection.
    """
    if bool(catalog) == bool(conn_id):
        raise InvalidJobError(
            f"an iceberg {what} needs a catalog: an Airflow connection of type iceberg, or properties such "
            f"as {{'type': 'rest', 'uri': 'http://catalog:8181'}}; found catalog={sorted(catalog)}, "
            f"conn_id={conn_id!r}"
        )
    for name, value in catalog.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidJobError(
                f"catalog of an iceberg {what} must map names to texts, found {name!r}: a "
                f"{type(value).__name__}"
            )
        if any((_SECRET.search(name), _LOGIN.search(value), _ASKED.search(value))):
            raise InvalidJobError(
                f"catalog of an iceberg {what} has {name!r} with a secret in it: put it into an Airflow "
                "connection of type iceberg, and name that as catalog; a DAG holds no password"
            )


def opening_s3(properties: Mapping[str, str], access: S3Access | None) -> dict[str, str]:
    """A catalog's properties, with those that open S3 as the job does where it says nothing of S3."""
    if access is None or any(name.startswith("s3.") for name in properties):
        return dict(properties)
    return {**access.iceberg_properties(), **properties}


def masked(text: str, properties: Mapping[str, str]) -> str:
    """A text without the secrets that properties of a catalog hold."""
    for name, value in properties.items():
        secrets = [*_ASKED.findall(value)]
        if _SECRET.search(name):
            secrets += [value, value.partition(":")[2]]  # a client's id and its secret
        for secret in filter(None, secrets):
            text = text.replace(secret, "***")
        for login in _LOGIN.findall(value):
            text = text.replace(login, "//***@")
    return text
