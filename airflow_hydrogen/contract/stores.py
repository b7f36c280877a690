"""What opens S3 for a job: one endpoint and one set of keys, for Spark, driver, workers and ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.values import refuse_unknown_fields

_S3A = "spark.hadoop.fs.s3a."
_PROVIDERS = "org.apache.hadoop.fs.s3a."
# Stores that are not Amazon's have no regions, and their clients want the name of one all the same.
_ANY_REGION = "us-east-1"


@dataclass(frozen=True, kw_only=True)
class S3Access:
    """An Airflow connection of type `aws`, as a job carries it.

    Attributes:
        conn_id: the connection, for messages.
        access_key, secret_key, session_token: None: each process finds its own, as on hosts with a role.
        endpoint_url: `http://host:port` or `https://...`; None: Amazon's.
        region: None: whichever the bucket has; of another endpoint, one that it does not look at.
        virtual_hosts: the bucket stands in the name of the endpoint's host, and not in the path.
    """

    conn_id: str
    access_key: str | None = field(default=None, repr=False)
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    endpoint_url: str | None = None
    region: str | None = None
    virtual_hosts: bool = False

    @property
    def known_region(self) -> str | None:
        """The region that clients are told."""
        return self.region or (_ANY_REGION if self.endpoint_url else None)

    @property
    def scheme(self) -> str:
        """`http` or `https`."""
        return "http" if (self.endpoint_url or "").startswith("http:") else "https"

    @property
    def host(self) -> str | None:
        """The endpoint's, with its port."""
        return None if self.endpoint_url is None else self.endpoint_url.partition("://")[2]

    def spark_settings(self) -> dict[str, str]:
        """Settings of Hadoop's S3 client, with Spark's prefix: no others say where S3 is and who one is."""
        settings: dict[str, str | None] = {"endpoint.region": self.known_region}
        if self.endpoint_url is not None:
            settings |= {
                "endpoint": self.endpoint_url,
                "path.style.access": str(not self.virtual_hosts).lower(),
                "connection.ssl.enabled": str(self.scheme == "https").lower(),
            }
        if self.access_key is not None:
            kind = "TemporaryAWSCredentialsProvider" if self.session_token else "SimpleAWSCredentialsProvider"
            settings |= {
                "access.key": self.access_key,
                "secret.key": self.secret_key,
                "session.token": self.session_token,
                "aws.credentials.provider": _PROVIDERS + kind,
            }
        return {f"{_S3A}{name}": value for name, value in settings.items() if value is not None}

    def iceberg_properties(self) -> dict[str, str]:
        """Properties of pyiceberg's files, which look for no endpoint in the environment."""
        properties = {
            "s3.endpoint": self.endpoint_url,
            "s3.region": self.known_region,
            "s3.access-key-id": self.access_key,
            "s3.secret-access-key": self.secret_key,
            "s3.session-token": self.session_token,
            "s3.force-virtual-addressing": "true" if self.virtual_hosts else None,
        }
        return {name: value for name, value in properties.items() if value is not None}

    def set_variables(self, environ: MutableMapping[str, str]) -> None:
        """Have other libraries find the same: boto3, s3fs, pyarrow.

        Args:
            environ: of a process that is this job's alone. Variables that would lead them elsewhere go.
        """
        variables = {"AWS_ENDPOINT_URL": self.endpoint_url, "AWS_ENDPOINT_URL_S3": self.endpoint_url}
        if self.access_key is not None:
            variables |= {
                "AWS_ACCESS_KEY_ID": self.access_key,
                "AWS_SECRET_ACCESS_KEY": self.secret_key,
                "AWS_SESSION_TOKEN": self.session_token,
            }
        if self.known_region is not None:
            variables |= {"AWS_REGION": self.known_region, "AWS_DEFAULT_REGION": self.known_region}
        for name, value in variables.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> S3Access:
        """Read the JSON form.

        Raises:
            InvalidJobError: an unknown field.
        """
        refuse_unknown_fields(cls, document)
        return cls(**document)


def is_s3(uri: str | None) -> bool:
    """Whether a URI, if there is one, is of S3, however that is spelled."""
    return uri is not None and uris.parse(uri).store == "s3"


def buckets_of(places: Iterable[str | None]) -> dict[str, str]:
    """The buckets of S3 among some places, and a place in each."""
    return {uris.parse(uri).authority: uri for uri in places if uri is not None and is_s3(uri)}
