"""Keras on two real Horovod ranks: gradients averaged, ranks the same, a stopped training resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from airflow_hydrogen.runtime import HorovodRunner

pytestmark = pytest.mark.integration

SCENARIOS = "tests.integration.keras_scenarios"
FLOAT32 = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keras")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Any]:
    """One launch of two ranks for everything but the resume: TensorFlow takes seconds to import."""
    random = np.random.default_rng(5)
    columns = {name: random.standard_normal(1_600).astype("float32") for name in (*"abcdef", "y")}
    pq.write_table(pa.table(columns), folder / "rows.parquet", row_group_size=130)
    return HorovodRunner(np=-2).run(f"{SCENARIOS}:everything", folder=str(folder))


@pytest.fixture(scope="module")
def averaging(outcomes: dict[str, Any]) -> dict[str, dict[str, float]]:
    return outcomes["averaging"]


@pytest.fixture(scope="module")
def ranks(outcomes: dict[str, Any]) -> list[dict[str, Any]]:
    """What the callbacks did on rank 0 and on rank 1."""
    return outcomes["behaviour"]


@pytest.fixture(scope="module")
def runs(outcomes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Two fits, of four and of two epochs: in one go; stopped in the first; and resumed by new processes."""
    checkpoints = folder / "checkpoints" / "fit-0"
    kept = sorted(path.name for path in checkpoints.iterdir())
    # As a full disk would leave it: the newest checkpoint is short of its end.
    (newest,) = (checkpoints / kept[-1]).glob("*.npz")
    newest.write_bytes(newest.read_bytes()[:-7])
    resumed = HorovodRunner(np=-2).run(f"{SCENARIOS}:resumed", folder=str(folder))
    return {**outcomes, **resumed, "kept": kept}


@pytest.fixture(scope="module")
def loaded(outcomes: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The saved models, in an interpreter without this package."""
    code = """
import json, sys
import keras, numpy as np

@keras.saving.register_keras_serializable(package="tests")
class PatientSGD(keras.optimizers.SGD):
    pass

x = np.random.default_rng(3).normal(size=(128, 6)).astype("float32")[:4]
found = {}
for name in ("plain", "registered"):
    model = keras.models.load_model(f"{name}.keras")
    error = float(abs(model.predict(x, verbose=0) - np.load(f"{name}.npy")).max())
    model.fit(x, np.zeros((4, 1)), verbose=0)
    kind = type(model.optimizer)
    found[name] = {
        "error": error,
        "optimizer": kind.__name__,
        "plain": kind in (keras.optimizers.Adam, PatientSGD),
        "iterations": int(model.optimizer.iterations),
    }
found["modules"] = [name for name in sys.modules if "hydrogen" in name or "horovod" in name]
print(json.dumps(found))
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# --- the weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "tolerance"),
    [
        ("sgd", FLOAT32),
        ("adam", FLOAT32),
        ("unbuilt", FLOAT32),
        ("eager", FLOAT32),
        ("steps_per_execution", FLOAT32),
        ("accumulation", FLOAT32),
        ("schedule", FLOAT32),
        ("clipped", FLOAT32),
        ("sparse", FLOAT32),
        ("sum", FLOAT32),
        ("custom_loop", FLOAT32),
        ("custom_loop_eager", FLOAT32),
        ("xla_off", FLOAT32),
        ("fp16", 2e-3),
        ("sparse_fp16", 1e-2),
        ("mixed_float16", 1e-2),
    ],
)
def test_two_ranks_train_what_one_process_trains_on_all_data(
    averaging: dict[str, dict[str, float]], way: str, tolerance: float
) -> None:
    found = averaging[way]
    assert found["spread"] == 0.0, "the ranks have different weights"
    assert found["error"] < tolerance
    assert found["moved"] > max(10 * tolerance, 0.01), "hardly trained: the test would not notice an error"


def test_horovods_own_optimizer_drifts(averaging: dict[str, dict[str, float]]) -> None:
    """Why there is a bridge: from the same first weights the ranks end with different ones, and no error."""
    assert averaging["horovods_own"]["spread"] > 0.01
    assert averaging["horovods_own"]["error"] > 0.01


def test_overflow_on_one_rank_skips_the_step_on_all(averaging: dict[str, dict[str, float]]) -> None:
    found = averaging["overflow"]
    assert found["spread"] == 0.0
    assert found["scale"] == 32.0, "64, halved once"
    assert found["updates"] == 7, "8 batches, one skipped"


@pytest.mark.parametrize(("name", "optimizer"), [("plain", "Adam"), ("registered", "PatientSGD")])
def test_saved_model_loads_where_this_package_is_not(
    loaded: dict[str, Any], name: str, optimizer: str
) -> None:
    assert loaded["modules"] == []
    assert (loaded[name]["optimizer"], loaded[name]["plain"]) == (optimizer, True)
    assert loaded[name]["error"] < FLOAT32
    assert loaded[name]["iterations"] == 9, "8 in the gang and one here: its state came along"


# --- errors instead of wrong models ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("plain", "compiled with a plain Adam: the 2 ranks would each train a model of their own"),
        ("twice", "Adam is distributed already"),
        ("op", "op must be 'average' or 'sum', found 'max'"),
        ("compression", "found 'zip'"),
        ("xla", "pass jit_compile=False to compile()"),
        ("scaled_outside", "DistributedOptimizer(keras.optimizers.LossScaleOptimizer(Adam(...)))"),
        ("schedule", "needs a plain learning rate, found CosineDecay"),
        ("different_models", "the ranks have [2, 4]: every rank must build the same model"),
        ("different_shapes", "kernel' is float32[3, 4] on rank 0, 'sequential"),
        ("different_metrics", "rank 0 has loss, mae; rank 1 has loss, mse"),
        ("vocabulary", "has learnt something else on each rank (8 entries on rank 0, 8 entries on rank 1)"),
        ("vocabulary", "TextVectorization(vocabulary=sorted(set().union(*words)))"),
        ("same_vocabulary", "no error"),
        ("other_vocabulary", "(TextVectorization) has another table than the checkpoint was trained with"),
        ("bins", "Discretization(bin_boundaries=hvd.broadcast_object(adapted.bin_boundaries))"),
    ],
)
def test_what_cannot_work_is_an_error_on_every_rank(
    ranks: list[dict[str, Any]], case: str, message: str
) -> None:
    for rank in ranks:
        assert message in rank["errors"][case]


# --- ranks that diverge --------------------------------------------------------------------------------


def test_ranks_that_diverge_are_an_error_after_the_first_epoch(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank["own_steps"]
        assert found["plain"].startswith("after epoch 0 the ranks have different weights: 4 of 4 trainable")
        assert "kernel' is the first variable that differs" in found["plain"]
        assert "rank 1 by up to 0." in found["plain"]
        assert "DistributedOptimizer" in found["plain"]
        assert (found["history"], found["checkpoints"]) == ([], False), "nothing reported, nothing saved"


def test_own_training_step_with_averaged_gradients_passes(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["own_steps"]["averaged"] == "the same"
        assert rank["own_steps"]["compared"] is True


def test_ranks_that_are_meant_to_differ_may(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["own_steps"]["unchecked"] == "the same"
        assert rank["own_steps"]["believed"] is False


def test_error_names_the_first_variable_that_differs(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "now the ranks have different weights: 1 of 6 trainable" in rank["compared"]["third"]
        assert "/kernel' on rank 1 by up to 0.25 from rank 0" in rank["compared"]["third"]
        assert "on rank 1 by up to inf from rank 0" in rank["compared"]["nan"]


@pytest.mark.parametrize("case", ["rounding", "statistics", "nothing"])
def test_rounding_and_moving_statistics_are_no_divergence(ranks: list[dict[str, Any]], case: str) -> None:
    assert [rank["compared"][case] for rank in ranks] == ["the same"] * 2


# --- layers that are adapted ---------------------------------------------------------------------------


def test_normalization_adapted_to_shards_computes_the_same_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["adapted"] for rank in ranks)
    assert first["before"] != second["before"]
    assert first["after"] == second["after"]
    assert np.allclose(first["loaded"], first["after"], atol=1e-6), "what is published is what was trained"
    assert first["unbuilt"] == second["unbuilt"]


def test_layers_adapted_as_the_docs_say_have_learnt_from_all_rows(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["adapted"]["everywhere"]["error"] < 1e-5
        assert rank["adapted"]["everywhere"]["words"] == ["only on 0", "only on 1", "seen by both"]


# --- several optimizers ----------------------------------------------------------------------------------


def test_all_optimizers_start_as_rank_0s(runs: dict[str, Any]) -> None:
    first, second = runs["adversarial_unbroken"]
    assert first == second
    assert first["rates"] == pytest.approx([0.01, 0.02])


def test_all_optimizers_are_resumed(runs: dict[str, Any]) -> None:
    for rank in (0, 1):
        resumed, unbroken = runs["adversarial_resumed"][rank], runs["adversarial_unbroken"][rank]
        assert resumed["steps"] == [32, 32], "4 epochs of 8"
        assert resumed["rates"] == unbroken["rates"], "of the checkpoint, not of this start"
        assert resumed["weights"] == unbroken["weights"]
        assert resumed["made"] == unbroken["made"], "normalized as in the checkpoint"
        assert runs["adversarial_stopped"][rank]["weights"] != unbroken["weights"]


# --- callbacks ---------------------------------------------------------------------------------------


def test_broadcast_equals_weights_and_leaves_dropout_different(ranks: list[dict[str, Any]]) -> None:
    for name in ("same", "different"):
        first, second = (rank["seeds"][name] for rank in ranks)
        assert first["weights"] == second["weights"]
        assert first["before"] == first["after"], "rank 0 keeps its seed"
        assert first["after"] != second["after"]
        assert first["mask"] != second["mask"]
    same, different = (ranks[1]["seeds"][name] for name in ("same", "different"))
    assert same["before"] == ranks[0]["seeds"]["same"]["before"], "set_random_seed(5) on both"
    assert different["before"] == different["after"], "seeds that differ already are left alone"


def test_metrics_are_averaged_before_early_stopping_looks(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["early_stopping"] for rank in ranks)
    assert first == second
    assert first["seen"] == [0.0, 1.0, 2.0], "(-epoch + 3 epoch) / 2"
    assert first["epochs"] == 3, "patience 2; rank 0 alone would have gone on for six epochs"


def test_warmup_rises_from_one_ranks_rate_to_all_ranks(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        rates, steps = rank["warmup"]["rates"], rank["warmup"]["steps"]
        rising = 2 * steps
        expected = [0.1 + 0.1 * (step + 1) / rising for step in range(rising)] + [0.2] * steps
        assert rates == pytest.approx(expected, rel=1e-5)


def test_default_callbacks_write_history_and_events(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["defaults"] for rank in ranks)
    assert second["history"] == [], "rank 0 reports"
    assert [line["epoch"] for line in first["history"]] == [0, 1]
    for line in first["history"]:
        assert set(line) == {"epoch", "loss", "mae", "val_loss", "val_mae", "seconds", "rows_per_second"}
        # 128 rows, 64 on each rank; both numbers are rounded.
        assert line["rows_per_second"] * line["seconds"] == pytest.approx(128, rel=0.05)
    # Opened once an epoch for training and once for validation, always in that epoch's order.
    assert [first["opened"].count(epoch) for epoch in (0, 1)] == [2, 2]

    for run, name in (("train", "loss"), ("validation", "val_loss")):
        expected = [[line["epoch"], pytest.approx(line[name], rel=1e-5)] for line in first["history"]]
        assert first["events"][run]["epoch_loss"] == expected


def test_metric_that_is_a_vector_is_averaged_and_written_number_by_number(
    ranks: list[dict[str, Any]],
) -> None:
    first, second = (rank["vectors"] for rank in ranks)
    assert first["own"] != second["own"]
    means = (np.array(first["own"]) + np.array(second["own"])) / 2
    assert np.allclose(first["seen"], means), "callbacks behind see the vector itself"
    assert first["seen"] == second["seen"]
    for epoch, line in enumerate(first["history"]):
        assert [line[f"f1_score_{place}"] for place in range(3)] == first["seen"][epoch]
        assert {f"val_f1_score_{place}" for place in range(3)} < set(line)
    assert [json.loads(line) for line in first["text"].splitlines()] == first["history"]
    assert {"epoch_f1_score_0", "epoch_f1_score_2"} < set(first["events"])


# --- checkpoint and resume -----------------------------------------------------------------------------


def test_resumed_training_ends_with_the_weights_of_an_unbroken_one(runs: dict[str, Any]) -> None:
    for rank in (0, 1):
        assert runs["resumed"][rank]["weights"] == runs["unbroken"][rank]["weights"]
        assert runs["stopped"][rank]["weights"] != runs["unbroken"][rank]["weights"]
        assert runs["resumed"][rank]["seeds"] == runs["unbroken"][rank]["seeds"]


def test_two_checkpoints_are_kept_and_a_damaged_one_is_passed_over(runs: dict[str, Any]) -> None:
    assert runs["kept"] == [f"step-{epochs * 8:08d}" for epochs in (2, 3)], "of 8 steps each"
    assert [rank["resumed"] for rank in runs["resumed"]] == [2, 2], "all ranks, from the one before"


def test_a_training_stopped_within_an_epoch_sees_every_row_as_often_as_an_unbroken_one(
    runs: dict[str, Any],
) -> None:
    for rank in (0, 1):
        resumed = runs["partly_resumed"][rank]
        assert (resumed["resumed"], resumed["partial"]) == (1, 1), "in the epoch that was cut off"
        # Adam and dropout: another order, a row less or a row more would show.
        assert resumed["weights"] == runs["partly_unbroken"][rank]["weights"]
        assert runs["partly_stopped"][rank]["weights"] != runs["partly_unbroken"][rank]["weights"]
    assert runs["partly_resumed"][0]["history"] == [0, 1, 2]


def test_resumed_training_reads_the_rest_of_the_epochs_in_their_order(runs: dict[str, Any]) -> None:
    assert runs["unbroken"][0]["opened"] == [0, 1, 2, 3, 0, 1]
    assert [rank["opened"] for rank in runs["stopped"]] == [[0, 1, 2]] * 2
    assert [rank["opened"] for rank in runs["resumed"]] == [[2, 3, 0, 1]] * 2


def test_history_is_whole(runs: dict[str, Any]) -> None:
    assert runs["resumed"][0]["history"] == [0, 1, 2, 3, 0, 1]
    assert runs["resumed"][0]["losses"] == runs["unbroken"][0]["losses"]


# --- one rank ------------------------------------------------------------------------------------------


def alone(checkpoints: str) -> dict[str, Any]:
    import sys

    import keras
    import numpy as np

    import airflow_hydrogen.runtime as hydrogen

    context = hydrogen.get_context()
    context.checkpoints_uri = checkpoints
    adam = keras.optimizers.Adam(0.01)
    optimizer = hydrogen.keras.DistributedOptimizer(adam)
    epochs = []
    for _ in range(2):
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile(optimizer, "mse")
        x = np.ones((8, 2), "float32")
        history = model.fit(
            x, x[:, :1], epochs=3, verbose=0, callbacks=hydrogen.keras.callbacks(warmup_epochs=1)
        )
        epochs.append(len(history.epoch))
        optimizer = hydrogen.keras.DistributedOptimizer("adam")
    return {
        "same": model.optimizer is not adam and type(adam) is keras.optimizers.Adam,
        "epochs": epochs,
        "horovod": [name for name in sys.modules if name.partition(".")[0] == "horovod"],
        "rate": float(adam.learning_rate),
    }


def test_one_rank_is_plain_keras_without_horovod(tmp_path: Path) -> None:
    # A template has imported Horovod for whatever comes.
    found = HorovodRunner(np=-1, fork=False).run(alone, checkpoints=str(tmp_path))
    assert found["same"]
    assert found["horovod"] == []
    assert found["epochs"] == [3, 3], "each fit has checkpoints of its own"
    assert found["rate"] == pytest.approx(0.01)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fit-0", "fit-1"]
