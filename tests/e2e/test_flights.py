"""The example DAGs, run by `dag.test()` on the real flights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from scripts.dag_runs import DagRun, DagRunner
from tests.e2e.conftest import SHORT_TRAINING, Home

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

ReadDay = Callable[[str, str], pd.DataFrame]


def test_every_dag_imports(runner: DagRunner) -> None:
    dag_ids, errors = runner.dags()
    assert errors == {}
    assert dag_ids == [
        "flights_score",
        "flights_score_range",
        "flights_train",
        "horovod_quickstart",
        "learning_rate_sweep",
    ]


def test_a_model_that_beats_the_baseline_is_published(trained: DagRun) -> None:
    assert set(trained.tasks.values()) == {"success"}
    event = trained.events["flight_delay_model"]
    model, baseline = event["metrics"]["model"], event["metrics"]["baseline"]
    assert model["flights"] == baseline["flights"] > 5_000
    assert model["rmse"] < 0.98 * baseline["rmse"]
    assert model["log_loss"] < 0.95 * baseline["log_loss"]
    assert model["auc"] > 0.65


def test_the_asset_event_names_the_model_of_the_run(trained: DagRun) -> None:
    model_uri = trained.events["flight_delay_model"]["model_uri"]
    assert model_uri == trained.xcoms["train"]["return_value"]
    folder = Path(model_uri.removeprefix("file://"))
    assert not set(folder.name) & set(":+ ")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["entrypoint"], manifest["np"]) == ("flights.train:main", 2)
    assert manifest["run"]["run_id"] == trained.run_id
    assert not (folder / "checkpoints").exists()


def test_the_training_report_is_an_xcom(trained: DagRun) -> None:
    report = trained.xcoms["train"]["report"]
    assert (report["np"], report["epochs"], report["reused"]) == (2, SHORT_TRAINING["epochs"], False)
    assert report["rows"] > 50_000
    assert report["rows_per_second"] > 0
    assert {"keras", "tensorflow", "horovod", "pyspark"} <= set(report["versions"])


def test_the_log_of_a_training_tells_its_story(home: Home, trained: DagRun) -> None:
    lines = home.log.read_text().splitlines()
    begin = next(n for n, line in enumerate(lines) if "Training on local" in line)
    end = next(n for n, line in enumerate(lines) if "Trained on" in line and n > begin)
    story, groups, folded = [], [], False
    for line in lines[begin : end + 1]:
        if "::group::" in line:
            assert not folded, "groups do not nest"
            folded = True
            groups.append(line.partition("::group::")[2].split()[0])
        elif "::endgroup::" in line:
            folded = False
        elif not folded:
            story.append(line)
    assert not folded
    assert list(dict.fromkeys(groups)) == ["Submission", "Spark", "Preparation", "Training:", "Publishing"]
    epochs = [line for line in story if "[gang] epoch=" in line]
    assert len(epochs) == SHORT_TRAINING["epochs"]
    assert all("rows_per_second=" in line and " s left" in line for line in epochs)
    assert len(story) < 59, "with one epoch more it is less than 60"
    assert end - begin < 120, "the details are few as well"
    assert not any("shuffle=True" in line for line in lines)


def test_a_model_that_does_not_beat_the_baseline_is_not_published(runner: DagRunner, trained: DagRun) -> None:
    untrained = {"train_until": "2013-05-02", "train_from": "2013-05-01", "epochs": 1, "learning_rate": 1e-9}
    run = runner.run("flights_train", conf={**SHORT_TRAINING, **untrained})
    assert run.state == "failed"
    assert (run.tasks["gate"], run.tasks["publish"]) == ("failed", "upstream_failed")
    assert run.events == {}


@pytest.fixture(scope="module")
def scored(runner: DagRunner, trained: DagRun) -> DagRun:
    run = runner.run("flights_score", logical_date="2013-07-01T00:00:00+00:00")
    assert run.state == "success", run.tasks
    return run


def test_a_day_is_scored_with_the_model_of_the_asset(
    scored: DagRun, trained: DagRun, read_day: ReadDay
) -> None:
    assert scored.xcoms["plan"]["return_value"] == {
        "ds": "2013-07-01",
        "model_uri": trained.events["flight_delay_model"]["model_uri"],
    }
    scores, flights = read_day("scores", "2013-07-01"), read_day("lake/flights", "2013-07-01")
    assert len(scores) == len(flights) == scored.xcoms["score"]["report"]["rows"]
    kept = ["carrier", "flight", "origin", "dest", "sched_dep_time"]
    pd.testing.assert_frame_equal(scores[kept], flights[kept])
    assert scores["late_probability"].between(0, 1).all()
    assert scores["predicted_delay"].std() > 1
    extra = scored.events["flight_delay_scores"]
    assert extra["rows"] == len(scores)
    assert extra["output_uri"] == scored.xcoms["score"]["return_value"]


def test_scoring_a_day_again_changes_nothing_also_by_the_params_of_a_run_without_a_logical_date(
    runner: DagRunner, scored: DagRun, trained: DagRun, read_day: ReadDay
) -> None:
    before = read_day("scores", "2013-07-01")
    given = {"ds": "2013-07-01", "model_uri": trained.xcoms["train"]["return_value"]}
    again = runner.run("flights_score", logical_date=None, conf=given)
    assert again.state == "success", again.tasks
    assert again.run_id != scored.run_id
    assert again.xcoms["plan"]["return_value"] == given
    assert again.xcoms["score"]["report"]["rows"] == len(before)
    pd.testing.assert_frame_equal(read_day("scores", "2013-07-01"), before)


def test_a_day_that_a_param_names_is_planned_with_the_model_of_the_asset(
    runner: DagRunner, trained: DagRun
) -> None:
    run = runner.run("flights_score", conf={"ds": "2013-07-03"}, done="score")
    assert run.xcoms["plan"]["return_value"] == {
        "ds": "2013-07-03",
        "model_uri": trained.events["flight_delay_model"]["model_uri"],
    }


def test_many_days_are_scored_by_one_application(
    runner: DagRunner, trained: DagRun, scored: DagRun, read_day: ReadDay
) -> None:
    before = read_day("scores", "2013-07-01")
    run = runner.run("flights_score_range", conf={"start": "2013-07-02", "end": "2013-07-05"})
    assert run.state == "success", run.tasks
    flights = {day: len(read_day("lake/flights", day)) for day in ("2013-07-02", "2013-07-03", "2013-07-04")}
    partitions = {f"ds={day}": rows for day, rows in flights.items()}
    assert run.xcoms["score"]["report"]["partitions"] == partitions
    assert run.events["flight_delay_scores"]["partitions"] == partitions
    assert {day: len(read_day("scores", day)) for day in flights} == flights
    assert run.events["flight_delay_scores"]["output_uri"] == run.xcoms["score"]["return_value"]
    pd.testing.assert_frame_equal(read_day("scores", "2013-07-01"), before)


def test_scoring_without_any_model_says_what_to_do(empty_home: Home) -> None:
    with DagRunner(empty_home.environment, empty_home.log) as runner:
        run = runner.run("flights_score", conf={"ds": "2013-07-04"})
    assert run.tasks == {"plan": "failed", "score": "upstream_failed"}
    assert "Run flights_train first, or give the Param model_uri" in empty_home.log.read_text()


def test_a_task_horovod_trains_on_two_processes(runner: DagRunner) -> None:
    run = runner.run("horovod_quickstart")
    assert run.state == "success", run.tasks
    found = run.xcoms["fit"]["return_value"]
    assert found["processes"] == 2
    assert [found["slope"], found["offset"]] == pytest.approx(found["wanted"], abs=0.05)


def test_a_sweep_keeps_a_model_for_each_rate_and_picks_the_best(runner: DagRunner) -> None:
    run = runner.run("learning_rate_sweep")
    assert run.state == "success", run.tasks
    models = [run.xcoms[f"train[{index}]"]["return_value"] for index in range(2)]
    assert len(set(models)) == 2
    losses = [run.xcoms[f"train[{index}]"]["report"]["metrics"]["loss"] for index in range(2)]
    assert losses[1] < losses[0], "a rate of 0.1 learns more in two epochs than one of 0.001"
    assert run.xcoms["best"]["return_value"] == models[1]
    assert [json.loads(Path(model, "manifest.json").read_text())["run"]["map_index"] for model in models] == [
        0,
        1,
    ]
