"""A look at a model and a source from Airflow's side, within a few seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import airflow_hydrogen
from airflow_hydrogen.contract import uris
from airflow_hydrogen.contract.aliases import is_alias
from airflow_hydrogen.contract.signatures import FORMAT_VERSION, MANIFEST, Signature
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.schemas.unsure import UnsureError

TIMEOUT_S = 10
"""What may be lost: a JVM and a session, which the answer may save, take as long on an idle machine."""

KINDS = ("parquet", "orc", "csv", "delta", "iceberg", "jdbc")
"""Sources whose columns can be seen without Spark."""

_MERGING = ("spark.sql.parquet.mergeSchema", "spark.sql.orc.mergeSchema")
_S3_ENDPOINT = "spark.hadoop.fs.s3a.endpoint"


@dataclass(frozen=True)
class Seen:
    """What was found.

    Attributes:
        signature: the model's.
        columns: the source's; None where they were not asked for.
    """

    signature: Signature
    columns: list[tuple[str, str | None]] | None


def look(
    model_uri: str,
    source: Source | None,
    snapshot_uri: str | None,
    client: Mapping[str, Any] | None,
    environment: Mapping[str, str],
    timeout_s: int,
    s3: S3Access | None = None,
) -> Seen:
    """Ask a process of its own what a model and a source look like.

    Args:
        model_uri: a published model.
        source: None: only the model is looked at.
        snapshot_uri: where an earlier try of the run may have left what it has opened; None: there is none.
        client: what opens the source's connection or catalog; it travels over a pipe.
        environment: Spark's, by which it finds the store.
        timeout_s: after that it is killed.
        s3: what opens S3 to it; it travels over a pipe.

    Raises:
        UnsureError: it cannot be told from here.
    """
    if is_alias(model_uri):
        raise UnsureError(f"which model {model_uri} names, the driver looks up")
    path = uris.local_path(model_uri)
    if path is not None and not (path / MANIFEST).is_file():
        raise UnsureError(f"the model {model_uri} is not on this machine")
    if source is not None and source.kind not in KINDS:
        raise UnsureError(f"only Spark knows the columns of a {source.kind} source")
    question = {
        "model": model_uri,
        "source": None if source is None else source.to_dict(),
        "snapshot": snapshot_uri,
        "client": client,
        "s3": None if s3 is None else s3.to_dict(),
        "timeout_s": timeout_s,
    }
    answer = _ask(question, environment, timeout_s)
    if "unsure" in answer:
        raise UnsureError(answer["unsure"])
    columns = answer["columns"]
    return Seen(
        _signature(answer["manifest"]),
        None if columns is None else [(name, type_) for name, type_ in columns],
    )


def require_same_view(source: Source, settings: Mapping[str, str], environment: Mapping[str, str]) -> None:
    """Make sure that Spark's settings do not have it see another source, or other columns.

    Args:
        source: what is looked at.
        settings: Spark's.
        environment: by which the look finds S3.

    Raises:
        UnsureError: they do.
    """
    for name in _MERGING:
        if name.split(".")[2] == source.kind and settings.get(name, "false").lower() == "true":
            raise UnsureError(f"{name} has Spark look at every file")
    place = None if source.uri is None else uris.parse(source.uri)
    if place is None or place.store != "s3":
        return
    if _hadoop_knows_s3(environment):
        raise UnsureError("Hadoop's core-site.xml says where S3 is, for Spark alone")
    of_bucket = f"spark.hadoop.fs.s3a.bucket.{place.authority}.endpoint"
    theirs = settings.get(of_bucket) or settings.get(_S3_ENDPOINT)
    if not theirs:
        return  # Spark too takes it from the environment
    ours = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or ""
    if _host(theirs) != _host(ours) and (ours or not theirs.endswith(".amazonaws.com")):
        raise UnsureError("Spark and this process have different endpoints of S3")


def _hadoop_knows_s3(environment: Mapping[str, str]) -> bool:
    folders = [environment[name] for name in ("HADOOP_CONF_DIR", "YARN_CONF_DIR") if name in environment]
    files = [Path(folder, "core-site.xml") for folder in folders]
    return any("fs.s3a." in file.read_text(errors="replace") for file in files if file.is_file())


def _host(endpoint: str) -> str:
    return endpoint.rpartition("://")[2].rstrip("/")


def _ask(question: Mapping[str, Any], environment: Mapping[str, str], timeout_s: int) -> dict[str, Any]:
    package = Path(airflow_hydrogen.__file__).parent.parent
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "airflow_hydrogen.schemas"],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            cwd=package,  # where -m finds it
            env=dict(environment),
            timeout=timeout_s + 1,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnsureError(_no_answer(timeout_s)) from None
    except OSError as error:
        raise UnsureError(f"no process could be started to look at it: {error}") from None
    if ended.returncode < 0:
        raise UnsureError(_no_answer(timeout_s))
    if ended.returncode:
        raise UnsureError(f"the look at it failed: {(ended.stderr.splitlines() or ['without a word'])[-1]}")
    try:
        # Libraries may have written before.
        answer: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        raise UnsureError(f"the look at it answered {ended.stdout[-200:]!r}") from None
    return answer


def _no_answer(timeout_s: int) -> str:
    return f"model or source did not answer within {timeout_s} s"


def _signature(manifest: str) -> Signature:
    try:
        document = json.loads(manifest)
        if document["format_version"] != FORMAT_VERSION:
            raise UnsureError(f"the model's manifest has format version {document['format_version']!r}")
        return Signature.from_dict(document["signature"])
    except (ValueError, KeyError, TypeError) as error:
        raise UnsureError(f"the model's manifest cannot be read: {error!r}") from None
