"""Load a model as a scorer does, and say what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from airflow_hydrogen.contract.errors import HydrogenError
from airflow_hydrogen.runtime.models import engines, predictors
from airflow_hydrogen.runtime.models.manifest import Manifest
from airflow_hydrogen.runtime.models.predictors import Arrays

_MESSAGE_CHARACTERS = 500
# Keras puts whole configurations before the message of the error that it met, and behind its own.
_CAUSE, _CONFIGURATION = "Exception encountered: ", "Full object config:"


@dataclass(frozen=True)
class Trial:
    """A model to load.

    Attributes:
        folder: the model's.
        manifest: as far as loading needs it.
        batch: rows to predict, or None.
    """

    folder: Path
    manifest: Manifest
    batch: Arrays | None


@dataclass(frozen=True)
class Answer:
    """What came of it.

    Attributes:
        outputs: what the model predicts for the trial's rows.
        problem: why it could not be loaded, or not predict; None where it could.
        error_type: the class of the error.
        missing: the module that is not installed, where that is the problem.
    """

    outputs: Arrays | None = None
    problem: str | None = None
    error_type: str | None = None
    missing: str | None = None


def attempt(trial: Trial) -> Answer:
    """Load the model in this process."""
    try:
        predict = predictors.load(
            str(trial.folder), trial.manifest, trial.folder, None, threads=1, engine=engines.PREDICTOR
        )
        return Answer(outputs=None if trial.batch is None else predict(trial.batch))
    except Exception as error:
        return Answer(problem=describe(error), error_type=type(error).__name__, missing=_missing(error))


def describe(error: Exception) -> str:
    """An error in a line."""
    if isinstance(error, HydrogenError):
        return str(error)
    text = str(error).rpartition(_CAUSE)[2].partition(_CONFIGURATION)[0].strip()
    line = (text.splitlines() or [""])[0][:_MESSAGE_CHARACTERS]
    return f"{type(error).__name__}: {line}" if line else repr(error)


def _missing(error: BaseException | None) -> str | None:
    """The module that is not installed, where this error or one that it comes from says so."""
    while error is not None:
        if isinstance(error, ModuleNotFoundError):
            return error.name
        error = error.__cause__
    return None
