"""Airflow's connections to Kafka -> what Spark's Kafka reader and writer need to open them.

The extra of such a connection holds settings of librdkafka, in which Airflow's own Kafka hooks speak; Spark
speaks to Kafka by its Java client, which calls some of them otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airflow_hydrogen.contract.errors import InvalidJobError

CONNECTION_TYPE = "kafka"

_SAME = ("security.protocol", "ssl.key.password", "ssl.endpoint.identification.algorithm")
_PEM = {
    "ssl.ca": "ssl.truststore.certificates",
    "ssl.certificate": "ssl.keystore.certificate.chain",
    "ssl.key": "ssl.keystore.key",
}
_LOGINS = {
    "PLAIN": "org.apache.kafka.common.security.plain.PlainLoginModule",
    "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule",
    "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule",
}
_SASL = ("sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password")
# What else begins so decides whether a broker lets anybody in, and must not be dropped in silence.
_SECURITY = ("sasl.", "ssl.", "enable.ssl.", "security.")


def reader_options(connection: Any) -> dict[str, str]:
    """Options of Spark's Kafka reader and writer, for an Airflow connection of type `kafka`.

    Args:
        connection: its extra holds `bootstrap.servers`, and as needed `security.protocol`, `sasl.mechanism`,
            `sasl.username`, `sasl.password`, `ssl.ca.location` and its like. Files are read here, on the
            Airflow worker. What concerns consuming and producing, such as `group.id`, is left out: it is
            Spark's.

    Raises:
        InvalidJobError: no servers, or a setting of security that is not known.
    """
    extra = {str(name): str(value) for name, value in dict(connection.extra_dejson or {}).items()}
    servers = extra.get("bootstrap.servers")
    if not servers:
        raise _problem(connection, "its extra has no bootstrap.servers, such as 'host:9092'")
    known = {*_SAME, *_SASL, *(f"{name}.{form}" for name in _PEM for form in ("location", "pem"))}
    if wrong := sorted(name for name in extra if name.startswith(_SECURITY) and name not in known):
        raise _problem(
            connection,
            f"its extra has {', '.join(wrong)}, which Spark's client has no setting for; known are "
            f"{', '.join(sorted(known))}",
        )
    options = {"bootstrap.servers": servers}
    options |= {name: extra[name] for name in _SAME if extra.get(name)}
    if "security.protocol" in options:
        options["security.protocol"] = options["security.protocol"].upper()
    if options.get("ssl.endpoint.identification.algorithm") == "none":
        options["ssl.endpoint.identification.algorithm"] = ""  # as Java says it
    return {
        f"kafka.{name}": value
        for name, value in {**options, **_login(connection, extra), **_tls(connection, extra)}.items()
    }


def _login(connection: Any, extra: dict[str, str]) -> dict[str, str]:
    mechanism = (extra.get("sasl.mechanism") or extra.get("sasl.mechanisms") or "").upper()
    if not mechanism and not extra.get("sasl.username"):
        return {}
    if mechanism not in _LOGINS:
        raise _problem(
            connection, f"its sasl.mechanism is {mechanism!r}; expected one of {', '.join(_LOGINS)}"
        )
    if not extra.get("sasl.username") or not extra.get("sasl.password"):
        raise _problem(connection, f"sasl.mechanism {mechanism} needs sasl.username and sasl.password")
    user, password = _quoted(extra["sasl.username"]), _quoted(extra["sasl.password"])
    return {
        "sasl.mechanism": mechanism,
        "sasl.jaas.config": f"{_LOGINS[mechanism]} required username={user} password={password};",
    }


def _tls(connection: Any, extra: dict[str, str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, java in _PEM.items():
        text = extra.get(f"{name}.pem")
        if location := extra.get(f"{name}.location"):
            try:
                text = Path(location).read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise _problem(connection, f"{name}.location {location!r} cannot be read: {error}") from None
        if text:
            options[java] = text
            options[f"{java.rpartition('store.')[0]}store.type"] = "PEM"
    return options


def _quoted(text: str) -> str:
    """A value as JAAS writes it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _problem(connection: Any, what: str) -> InvalidJobError:
    return InvalidJobError(f"connection {connection.conn_id!r} cannot be used for Kafka: {what}")
