"""The main job, end to end, in an Airflow of its own: load, train on two processes, score some days.

    make demo                  # or: python scripts/demo.py --days 7 --epochs 2

Everything it makes lies in .demo/, which each run makes anew; the data stay.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from scripts.dag_runs import DagRun, DagRunner, migrate, private_environment  # noqa: E402

DAGS = ROOT / "dags"
FIRST_SCORED_DAY = date(2013, 8, 5)

# Of thousands of lines, those that show how far it is.
_PROGRESS = re.compile(
    r"(\[gang\] .*?|dataset '.*?|training \S+ on .*?|published .*? model .*?)(?: \[airflow|$)"
)
_METRICS = {
    "rmse": "RMSE of the delay, minutes",
    "mae": "mean absolute error, minutes",
    "log_loss": "log loss of being late",
    "auc": "AUC of being late",
}


class Failed(Exception):
    """What the demo shows is not so."""


def main() -> int:
    """Run the demo; 0 when everything is as it should be."""
    options = _options()
    home: Path = options.home.resolve()
    for old in ("airflow", "models", "scores", "evaluations"):
        shutil.rmtree(home / old, ignore_errors=True)
    (home / "airflow").mkdir(parents=True)
    log = home / "demo.log"
    log.unlink(missing_ok=True)
    started = time.monotonic()
    print(f"Everything is kept in {home}; Airflow's and Spark's log is {log}")
    try:
        _demo(options, home, log)
    except Failed as failure:
        print(f"\nFAILED: {failure}\nThe log: {log}", file=sys.stderr)
        return 1
    print(f"\nDone in {time.monotonic() - started:.0f} s.")
    return 0


def _demo(options: argparse.Namespace, home: Path, log: Path) -> None:
    environment = private_environment(
        home / "airflow",
        DAGS,
        FLIGHTS_HOME=str(home),
        AIRFLOW__AIRFLOW_HYDROGEN__LOCAL_SESSIONS="True",
        PYTHONPATH=os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    )
    with _step("Making Airflow's database"), log.open("a") as stream:
        migrate(environment, stream)
    with DagRunner(environment, log, _show_progress) as runner:
        _, errors = runner.dags()
        if errors:
            raise Failed("\n".join([f"{file} does not import:\n{error}" for file, error in errors.items()]))
        with _step(f"DAG flights_train: load, train on {options.np} processes, evaluate, gate, publish"):
            train = runner.run("flights_train", conf={"np": options.np, "epochs": options.epochs})
        _require_success("flights_train", train)
        days = [str(FIRST_SCORED_DAY + timedelta(days=number)) for number in range(options.days)]
        scored: list[tuple[str, DagRun, float]] = []
        for day in days:
            began = time.monotonic()
            with _step(f"DAG flights_score, {day}"):
                run = runner.run("flights_score", logical_date=f"{day}T00:00:00+00:00")
            _require_success(f"flights_score of {day}", run)
            scored.append((day, run, time.monotonic() - began))
    print("\n" + _training_table(train))
    print("\n" + _partition_table(home, scored))
    print(f"\nmodel   {train.events['flight_delay_model']['model_uri']}\nscores  {home / 'scores'}")
    _check(train, home, scored)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--days", type=int, default=2, help="days to score, from 2013-08-05 on (default: 2)")
    parser.add_argument("--np", type=int, default=2, help="training processes (default: 2)")
    parser.add_argument("--epochs", type=int, default=4, help="passes over the training data (default: 4)")
    parser.add_argument("--home", type=Path, default=ROOT / ".demo", help="where everything is kept")
    return parser.parse_args()


@contextmanager
def _step(what: str) -> Iterator[None]:
    print(f"{what} ...", flush=True)
    started = time.monotonic()
    yield
    print(f"  {time.monotonic() - started:.0f} s", flush=True)


def _show_progress(line: str) -> None:
    if found := _PROGRESS.search(line.rstrip()):
        print(f"  {found.group(1)}", flush=True)


def _require_success(what: str, run: DagRun) -> None:
    if run.state != "success":
        tasks = ", ".join(f"{task} {state}" for task, state in sorted(run.tasks.items()))
        raise Failed(f"{what}: {run.state} ({tasks})")


def _training_table(train: DagRun) -> str:
    measured = train.events["flight_delay_model"]["metrics"]
    model, baseline = measured["model"], measured["baseline"]
    report = train.xcoms["train"]["report"]
    lines = [
        f"trained on {report['rows']:,} flights by {report['np']} processes in "
        f"{report['seconds']['train']:.0f} s, {report['rows_per_second']:,.0f} rows/s; "
        f"evaluated on {model['flights']:,} flights of the four weeks after",
        "",
        f"{'':<30}{'model':>10}{'baseline':>10}{'better by':>11}",
    ]
    for name, title in _METRICS.items():
        gain = (
            f"{1 - model[name] / baseline[name]:.1%}"
            if name != "auc"
            else f"{model[name] - baseline[name]:.3f}"
        )
        lines.append(f"{title:<30}{model[name]:>10.3f}{baseline[name]:>10.3f}{gain:>11}")
    lines.append("baseline: the carrier's mean delay and share of late flights in the weeks of the training")
    return "\n".join(lines)


def _partition_table(home: Path, scored: list[tuple[str, DagRun, float]]) -> str:
    lines = [
        f"{'partition':<16}{'rows in':>9}{'rows out':>10}{'late, said':>12}{'late, true':>12}"
        f"{'Spark job':>11}{'DAG run':>9}"
    ]
    for day, run, seconds in scored:
        said, true = _late_shares(home, day)
        spark_seconds = run.xcoms["score"]["report"]["seconds"]["total"]
        lines.append(
            f"ds={day:<13}{_rows(home / 'lake/flights', day):>9,}{_rows(home / 'scores', day):>10,}"
            f"{said:>12.1%}{true:>12.1%}{spark_seconds:>9.1f} s{seconds:>7.1f} s"
        )
    return "\n".join(lines)


def _check(train: DagRun, home: Path, scored: list[tuple[str, DagRun, float]]) -> None:
    measured = train.events["flight_delay_model"]["metrics"]
    for name in ("rmse", "log_loss"):
        if not measured["model"][name] < measured["baseline"][name]:
            raise Failed(f"the model's {name} is no better than the baseline's")
    for day, run, _ in scored:
        rows_in, rows_out = _rows(home / "lake/flights", day), _rows(home / "scores", day)
        reported = run.xcoms["score"]["report"]["rows"]
        if not rows_in or not rows_in == rows_out == reported:
            raise Failed(f"ds={day}: {rows_in} rows in, {rows_out} rows out, {reported} rows reported")


def _table(folder: Path, day: str) -> Any:
    import pyarrow.dataset

    return pyarrow.dataset.dataset(folder / f"ds={day}", format="parquet")


def _rows(folder: Path, day: str) -> int:
    return int(_table(folder, day).count_rows())


def _late_shares(home: Path, day: str) -> tuple[float, float]:
    chance = _table(home / "scores", day).to_table(columns=["late_probability"]).to_pandas()
    delays = _table(home / "lake/flights", day).to_table(columns=["arr_delay"]).to_pandas().dropna()
    return float(chance["late_probability"].mean()), float((delays["arr_delay"] > 15).mean())


if __name__ == "__main__":
    sys.exit(main())
