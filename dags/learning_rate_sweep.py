"""Sweep a learning rate with `.expand`: one training each, side by side, and the best model by its XCom."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

from airflow.sdk import DAG, Param, XComArg, get_current_context, task
from flights import settings

from airflow_hydrogen.contract.jobs import Source
from airflow_hydrogen.operators.train import HorovodTrainOperator

POINTS = f"{settings.HOME}/sweep/points"
RUN = "{{ run_id | replace(':', '') | replace('+', '-') }}"


def fit(learning_rate: float) -> Any:
    """Runs on every rank of every training; it travels by value."""
    import keras

    import airflow_hydrogen.runtime as hydrogen

    keras.utils.set_random_seed(7)
    rows = hydrogen.get_dataset_shard("train").to_tf(50, label="y")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.SGD(learning_rate)), "mse")
    model.fit(rows, epochs=2, callbacks=hydrogen.keras.callbacks(), verbose=0)
    return model


with DAG(
    "learning_rate_sweep",
    description="Train once with each learning rate, and keep the best model",
    schedule=None,
    start_date=datetime(2013, 1, 1, tzinfo=timezone.utc),
    tags=["airflow-hydrogen"],
    params={"learning_rates": Param([0.001, 0.1], type="array", items={"type": "number"}, minItems=1)},
    doc_md=__doc__,
):

    @task
    def write_points() -> list[dict[str, float]]:
        """Write a table for the ranks to read, and return the arguments of each training."""
        from flights import points

        points.write(POINTS)
        return [{"learning_rate": rate} for rate in get_current_context()["params"]["learning_rates"]]

    train = HorovodTrainOperator.partial(
        task_id="train",
        entrypoint=fit,
        np=2,
        train_data=Source.parquet(POINTS),
        # Each member of the sweep has a model of its own; without its index they would be refused.
        model_uri=f"{settings.MODELS}/sweep-{RUN}-{{{{ ti.map_index }}}}",
        # One after the other on this machine; a cluster takes as many as it has slots for.
        max_active_tis_per_dagrun=1,
    ).expand(entrypoint_kwargs=write_points())

    @task
    def best(models: Iterable[str], reports: Iterable[dict[str, Any]]) -> str:
        """The model with the least loss."""
        losses = {model: report["metrics"]["loss"] for model, report in zip(models, reports, strict=True)}
        return min(losses, key=losses.__getitem__)

    best(train.output, XComArg(train, key="report"))
