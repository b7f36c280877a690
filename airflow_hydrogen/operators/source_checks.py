"""A scoring's source against its model, before a job is launched."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_hydrogen.contract import differences, uris
from airflow_hydrogen.contract.catalogs import opening_s3
from airflow_hydrogen.contract.errors import HydrogenError, MissingColumnError
from airflow_hydrogen.contract.jobs import InferenceJob
from airflow_hydrogen.contract.sources import Source
from airflow_hydrogen.contract.stores import S3Access
from airflow_hydrogen.hooks import catalogs, databases
from airflow_hydrogen.hooks.launchers import worker_environment
from airflow_hydrogen.schemas import looks
from airflow_hydrogen.schemas.looks import Seen
from airflow_hydrogen.schemas.unsure import UnsureError

if TYPE_CHECKING:
    from airflow_hydrogen.hooks.spark_submit import HydrogenSparkSubmitHook

log = logging.getLogger(__name__)


def check(
    job: InferenceJob, hook: HydrogenSparkSubmitHook, env_vars: Mapping[str, str] | None, *, first_try: bool
) -> None:
    """Hold the source's columns against the model's signature, where both can be seen without Spark.

    Where they cannot, a line in the log says why, and the driver checks alone.

    Args:
        job: what is to be submitted.
        hook: of the submission.
        env_vars: the driver's, beside this process's environment.
        first_try: no other try of the run can have opened the source: a retry reads what the first one did.

    Raises:
        HydrogenError: what the driver would raise: the one difference, or all in a SourceMisfitError.
    """
    started = time.monotonic()
    try:
        seen = _look(job, hook, env_vars, first_try)
    except UnsureError as unsure:
        log.info("The source is not held against the model before submission: %s", unsure)
        return
    differences.require_none(found(job, seen))
    seconds = time.monotonic() - started
    what = "what is known of it" if job.prepare else f"{len(seen.columns or ())} columns"
    log.info("The source fits the model: %s, looked at without Spark in %.1f s", what, seconds)


def found(job: InferenceJob, seen: Seen) -> list[HydrogenError]:
    """The differences between what was seen and what the job needs. Pure.

    `prepare` may bring any column: then only what it is given is looked at.
    """
    selected, problems = _selected(job.source, seen.columns)
    if job.prepare or selected is None:
        return [*problems, *differences.of_output_names(seen.signature, job)]
    return [
        *problems,
        *differences.of_features(seen.signature, selected),
        *differences.of_output(seen.signature, [name for name, _ in selected], job),
    ]


def _selected(
    source: Source, columns: differences.Columns | None
) -> tuple[differences.Columns | None, list[HydrogenError]]:
    """The columns that `columns=` leaves, and those that it names and are not there."""
    if columns is None or source.columns is None:
        return columns, []
    types = dict(columns)
    missing = [name for name in source.columns if name not in types]
    # What is missing is told once: as a column, not as a feature too.
    left = [(name, types.get(name)) for name in source.columns]
    return left, [MissingColumnError("column", missing, types)] if missing else []


def _look(
    job: InferenceJob, hook: HydrogenSparkSubmitHook, env_vars: Mapping[str, str] | None, first_try: bool
) -> Seen:
    source = job.source
    wanted = source if not job.prepare or source.columns is not None else None
    places = [job.model_uri, *([source.uri] if wanted and source.uri else [])]
    if hook.is_cluster_mode and any(uris.local_path(place) is not None for place in places):
        raise UnsureError("its driver runs on the cluster, and has other local files")
    environment = worker_environment(env_vars)
    if wanted:
        _require_same_view(wanted, hook, environment, job.s3)
    return looks.look(
        job.model_uri,
        wanted,
        None if first_try else job.snapshot_uri,
        _client(source, hook, job.s3),
        environment,
        looks.TIMEOUT_S,
        job.s3,
    )


def _require_same_view(
    source: Source, hook: HydrogenSparkSubmitHook, environment: Mapping[str, str], s3: S3Access | None
) -> None:
    seen_by = dict(environment)
    if s3 is not None:
        s3.set_variables(seen_by)
    try:
        settings = {**hook.settings, **(s3.spark_settings() if s3 is not None else {})}
        looks.require_same_view(source, settings, seen_by)
    except (OSError, ValueError) as error:  # spark-submit will have its own to say about that
        raise UnsureError(f"Spark's settings cannot be read: {error}") from None


def _client(source: Source, hook: HydrogenSparkSubmitHook, s3: S3Access | None) -> dict[str, Any] | None:
    if source.kind == "iceberg" and source.conn_id is None:
        return opening_s3(source.catalog, s3)
    if source.kind == "iceberg":
        return opening_s3(catalogs.properties(hook.get_connection(str(source.conn_id))), s3)
    if source.kind != "jdbc":
        return None
    return databases.client_options(hook.get_connection(str(source.conn_id)))
