"""Score one day of flights with the newest model: every day, after a new model, in backfills and by hand."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import (
    DAG,
    Asset,
    AssetOrTimeSchedule,
    CronTriggerTimetable,
    Param,
    get_current_context,
    task,
)
from flights import settings
from flights.days import day_of_run

from airflow_hydrogen.contract.jobs import Sink, Source
from airflow_hydrogen.operators.inference import ArrowInferenceOperator

MODEL = Asset(settings.MODEL_ASSET)
DAY = "{{ ti.xcom_pull(task_ids='plan')['ds'] }}"

with DAG(
    "flights_score",
    description="Score a day of flights",
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("0 0 * * *", timezone="UTC"),
        assets=[MODEL],
    ),
    start_date=datetime(2013, 1, 1, tzinfo=timezone.utc),
    catchup=False,  # `airflow backfill create` scores the past
    max_active_runs=4,
    default_args={"retries": 1, "retry_delay": timedelta(seconds=30)},
    tags=["airflow-hydrogen", "flights"],
    params={
        "ds": Param(
            None,
            type=["null", "string"],
            format="date",
            title="Day",
            description="The day to score, in 2013. Empty: the day of the run.",
        ),
        "model_uri": Param(
            None,
            type=["null", "string"],
            title="Model",
            description="The model's folder. Empty: the one that was published last.",
        ),
    },
    doc_md=__doc__,
) as dag:

    @task(inlets=[MODEL])
    def plan() -> dict[str, str]:
        """Choose the day and the model of this run."""
        context = get_current_context()
        params, run = context["params"], context["dag_run"]
        # Runs without a logical date (asset events, the CLI's triggers) have no `ds` in their context.
        ds = day_of_run(
            param=params["ds"],
            partition_key=getattr(run, "partition_key", None),
            logical_date=context.get("logical_date"),
            run_after=run.run_after,
        )
        # An asset event that started the run names its model: a run that is cleared later uses it again.
        # (`MODEL in triggering_asset_events` is true in every run.)
        events = context["triggering_asset_events"].get(MODEL) or context["inlet_events"][MODEL]
        model_uri = params["model_uri"] or (events[-1].extra.get("model_uri") if len(events) else None)
        if not model_uri:
            raise AirflowFailException(
                f"no model: asset {MODEL.name!r} has no event with a model_uri. Run flights_train first, "
                "or give the Param model_uri"
            )
        return {"ds": ds, "model_uri": model_uri}

    score = ArrowInferenceOperator(
        task_id="score",
        model_uri="{{ ti.xcom_pull(task_ids='plan')['model_uri'] }}",
        source=Source.parquet(f"{settings.LAKE}/flights/ds={DAY}"),
        prepare="flights.features:prepare",
        prepare_kwargs={"lake": settings.LAKE},
        keep_columns=["time_hour", "carrier", "flight", "tailnum", "origin", "dest", "sched_dep_time"],
        output_columns={"delay": "predicted_delay", "late": "late_probability"},
        sink=Sink.parquet(settings.SCORES, partition={"ds": DAY}),
        outlets=[Asset(settings.SCORES_ASSET)],
    )

    plan() >> score
