"""How good predictions are, beside a baseline: the carrier's mean delay and its share of late flights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.dataset as ds

from flights.features import LATE_MINUTES

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def measure(scores_uri: str, flights: str, first_day: str, last_day: str) -> dict[str, dict[str, float]]:
    """Measure a scored table and the baseline on the same flights.

    Args:
        scores_uri: Parquet with `carrier`, `delay`, `late`, `predicted_delay` and `late_probability`.
        flights: folder of the flights, from which the baseline learns.
        first_day, last_day: the days that the model was trained on, the last one included.

    Returns:
        "model" and "baseline" -> `rmse` and `mae` of the delay in minutes, `auc` and `log_loss` of being
        late, and `flights`, their number.

    Raises:
        ValueError: no scores.
    """
    scores = ds.dataset(scores_uri.removeprefix("file://"), format="parquet").to_table().to_pandas()
    if scores.empty:
        raise ValueError(f"{scores_uri} is empty: no flights arrived in the weeks of the evaluation")
    known = (
        ds.dataset(flights, format="parquet", partitioning=ds.HivePartitioning.discover())
        .to_table(
            columns=["carrier", "arr_delay"],
            filter=(pc.field("ds") >= first_day) & (pc.field("ds") <= last_day),
        )
        .to_pandas()
        .dropna()
    )
    known["late"] = known["arr_delay"] > LATE_MINUTES
    by_carrier = known.groupby("carrier")[["arr_delay", "late"]].mean()
    overall = known[["arr_delay", "late"]].mean()
    baseline = by_carrier.reindex(scores["carrier"]).fillna(overall)
    delay, late = scores["delay"], scores["late"]
    return {
        "model": _metrics(delay, scores["predicted_delay"], late, scores["late_probability"]),
        "baseline": _metrics(delay, baseline["arr_delay"], late, baseline["late"]),
    }


def _metrics(
    delay: ArrayLike, predicted_delay: ArrayLike, late: ArrayLike, probability: ArrayLike
) -> dict[str, float]:
    error = np.asarray(predicted_delay, dtype=float) - np.asarray(delay, dtype=float)
    label, chance = np.asarray(late, dtype=float), np.asarray(probability, dtype=float)
    return {
        "rmse": float(np.sqrt(np.mean(error**2))),
        "mae": float(np.mean(np.abs(error))),
        "auc": auc(label, chance),
        "log_loss": log_loss(label, chance),
        "flights": len(error),
    }


def auc(label: np.ndarray, score: np.ndarray) -> float:
    """The chance that a late flight scores higher than one that is not; ties count half."""
    ranks = pd.Series(score).rank().to_numpy()
    positives = label.sum()
    negatives = len(label) - positives
    if not positives or not negatives:
        return 0.5
    return float((ranks[label == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def log_loss(label: np.ndarray, probability: np.ndarray) -> float:
    """The mean of -log of the probability that was given to what happened."""
    chance = np.clip(probability, 1e-6, 1 - 1e-6)
    return float(-np.mean(label * np.log(chance) + (1 - label) * np.log(1 - chance)))
