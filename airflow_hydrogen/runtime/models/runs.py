"""Runs of Airflow, and the models that they have published."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from airflow_hydrogen.contract.errors import ModelError, SharedModelUriError
from airflow_hydrogen.contract.jobs import Run
from airflow_hydrogen.runtime.models import directory
from airflow_hydrogen.runtime.models.manifest import Manifest


def look_at(uri: str, run: Run | None, job: str) -> tuple[Manifest | None, Manifest | None]:
    """See what lies at the URI of a model, which is this application's own, before one is made there.

    What applications have left there that were killed is removed: nobody else works at the URI.

    Args:
        uri: the model's.
        run: what makes it.
        job: fingerprint of that.

    Returns:
        The model that lies there, and the same if an earlier try of the run has published it.

    Raises:
        InvalidUriError: other things lie there.
        SharedModelUriError: another task of the run has published a model there.
    """
    directory.require_replaceable(uri)
    there = model_there(uri)
    refuse_shared_uri(uri, there, run)
    directory.sweep_staging(uri)
    return there, finished_model(uri, there, run, job)


def work_of(run: Run | None) -> dict[str, Any]:
    """What a run works at: the same for all of its tries, after a clear too; empty outside of Airflow."""
    if run is None:
        return {}
    return without_clears(dataclasses.asdict(run))


def without_clears(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run as it is told from others, however often it was cleared."""
    return {name: value for name, value in run.items() if name != "clear_number"}


def model_there(uri: str) -> Manifest | None:
    """What the model at a URI says of itself, whoever published it; None where there is none to be read."""
    try:
        return directory.find_manifest(uri)
    except ModelError:
        return None


def finished_model(uri: str, there: Manifest | None, run: Run | None, job: str) -> Manifest | None:
    """The model that an earlier try of the same run has published, if it is still sound.

    Args:
        uri: where it would be.
        there: the model that lies there.
        run: the run.
        job: fingerprint of what makes the model.
    """
    if run is None or there is None:
        return None
    if there.run != dataclasses.asdict(run) or there.job != job:
        return None
    try:
        directory.open_model(uri)
    except ModelError:
        return None
    return there


def refuse_shared_uri(uri: str, there: Manifest | None, run: Run | None) -> None:
    """Refuse to replace what another task of the same DAG run has published.

    Raises:
        SharedModelUriError: a sweep whose members share a `model_uri`, or two tasks that do.
    """
    if run is None or there is None or there.run is None:
        return
    same_run = (there.run.get("dag_id"), there.run.get("run_id")) == (run.dag_id, run.run_id)
    theirs, index = there.run.get("task_id"), there.run.get("map_index", -1)
    if same_run and (theirs, index) != (run.task_id, run.map_index):
        raise SharedModelUriError(uri, f"task {theirs}[{index}]" if index >= 0 else f"task {theirs}")
