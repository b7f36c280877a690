"""Score many days of flights in one Spark application: the past, once there is a model, or a better one."""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import DAG, Asset, Param, get_current_context, task
from flights import settings

from airflow_hydrogen.contract.jobs import Sink, Source, days
from airflow_hydrogen.operators.inference import ArrowInferenceOperator

MODEL = Asset(settings.MODEL_ASSET)
START, END = "{{ params.start }}", "{{ params.end }}"

with DAG(
    "flights_score_range",
    description="Score many days of flights at once",
    schedule=None,
    default_args={"retries": 1, "retry_delay": timedelta(seconds=30)},
    tags=["airflow-hydrogen", "flights"],
    params={
        "start": Param("2013-07-01", type="string", format="date", title="First day"),
        "end": Param("2014-01-01", type="string", format="date", title="Day after the last one"),
    },
    doc_md=__doc__,
) as dag:

    @task(inlets=[MODEL])
    def newest_model() -> str:
        """The model that was published last."""
        events = get_current_context()["inlet_events"][MODEL]
        if not len(events):
            raise AirflowFailException(f"no model: run flights_train first, whose asset is {MODEL.name!r}")
        return str(events[-1].extra["model_uri"])

    score = ArrowInferenceOperator(
        task_id="score",
        model_uri=newest_model(),
        source=Source.parquet(
            f"{settings.LAKE}/flights",
            where="ds >= :start and ds < :end",
            where_args={"start": START, "end": END},
        ),
        prepare="flights.features:prepare",
        prepare_kwargs={"lake": settings.LAKE},
        keep_columns=["time_hour", "carrier", "flight", "tailnum", "origin", "dest", "sched_dep_time"],
        output_columns={"delay": "predicted_delay", "late": "late_probability"},
        sink=Sink.parquet(settings.SCORES, partition_by=["ds"], partitions=days(START, END)),
        outlets=[Asset(settings.SCORES_ASSET)],
    )
