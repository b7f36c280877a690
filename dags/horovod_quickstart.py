"""The smallest training: `@task.horovod` fits a line to the points of another task, once there is room."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from airflow.sdk import DAG, Param, task
from flights import settings

from airflow_hydrogen.contract.jobs import Source
from airflow_hydrogen.sensors.gpu_cluster import GPUClusterSensor

PROCESSES = 2
POINTS = f"{settings.HOME}/quickstart/points"

with DAG(
    "horovod_quickstart",
    description="Fit y = 3x + 1 on two processes",
    schedule=None,
    start_date=datetime(2013, 1, 1, tzinfo=timezone.utc),
    tags=["airflow-hydrogen"],
    params={"epochs": Param(20, type="integer", minimum=1)},
    doc_md=__doc__,
):
    # With GPUs it would ask for gpus_per_process too. It waits on the triggerer and holds no worker.
    room = GPUClusterSensor(
        task_id="wait_for_room", np=PROCESSES, cpus_per_process=1, poke_interval=5, deferrable=True
    )

    @task
    def write_points() -> list[float]:
        """Write a table for the ranks to read, and return what the training is to find."""
        from flights import points

        return points.write(POINTS)

    @task.horovod(
        np=PROCESSES,
        train_data=Source.parquet(POINTS),
        model_uri=f"{settings.MODELS}/quickstart-{{{{ run_id | replace(':', '') | replace('+', '-') }}}}",
        multiple_outputs=False,
    )
    def fit(line: list[float], epochs: str) -> dict[str, Any]:
        """Runs on every rank. Its arguments are XComs or templates; a dict that it returns is its XCom."""
        import keras

        import airflow_hydrogen.runtime as hydrogen

        context = hydrogen.get_context()
        keras.utils.set_random_seed(7)
        rows = hydrogen.get_dataset_shard("train").to_tf(50, label="y")
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(0.05 * context.size)), "mse")
        model.fit(rows, epochs=int(epochs), callbacks=hydrogen.keras.callbacks(), verbose=0)
        slope, offset = (float(weight.numpy().squeeze()) for weight in model.weights)
        return {"slope": slope, "offset": offset, "wanted": line, "processes": context.size}

    room >> fit(write_points(), "{{ params.epochs }}")
