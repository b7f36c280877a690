"""Scripts as Horovod's users have them, and Horovod's API, under Keras 3 on two real ranks."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from airflow_hydrogen.runtime import HorovodRunner
from airflow_hydrogen.runtime.runner import rank_task

pytestmark = [pytest.mark.integration, pytest.mark.large]

SCENARIOS = "tests.integration.horovod_scenarios"
SCRIPTS = Path(__file__).parent / "horovod_scripts"
FLOAT32 = 1e-5
SERVED = "Horovod's Keras API is served by airflow-hydrogen"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """640 noisy pictures of ten digits, 12 x 12."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 640)
    images = random.integers(0, 255, (10, 12, 12))[labels] + random.normal(0, 60, (640, 12, 12))
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, images=np.clip(images, 0, 255), labels=labels)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scripts")


@pytest.fixture(scope="module")
def ranks(folder: Path, digits: Path) -> list[dict[str, Any]]:
    """One launch of two ranks for all scripts, and for the API; what rank 0 and rank 1 came to."""
    found = HorovodRunner(np=-2).run(f"{SCENARIOS}:everything", folder=str(folder), data=str(digits))
    HorovodRunner(np=-1).run(f"{SCENARIOS}:alone", folder=str(folder), data=str(digits))
    return found["ranks"]


def saved(folder: Path, script: str, rank: int, size: int = 2) -> tuple[list[np.ndarray], dict[str, Any]]:
    """The weights that a script has saved, and the rest by name."""
    with np.load(folder / f"{script}-{rank}-of-{size}.npz") as stored:
        weights = [stored[name] for name in stored.files if name.startswith("arr_")]
        return weights, {name: stored[name].tolist() for name in stored.files if not name.startswith("arr_")}


def apart(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


# --- scripts -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize(
    "script", ["keras_mnist", "tape_mnist", "synthetic_benchmark", "keras_advanced", "keras_elastic"]
)
def test_script_ends_with_the_same_weights_on_both_ranks(folder: Path, script: str) -> None:
    (first, _), (second, _) = saved(folder, script, 0), saved(folder, script, 1)
    assert apart(first, second) == 0.0


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("script", ["keras_mnist", "tape_mnist"])
def test_script_on_two_ranks_trains_what_one_process_trains_on_all_data(folder: Path, script: str) -> None:
    together, trained = saved(folder, script, 0)
    expected, alone = saved(folder, script, 0, size=1)
    assert apart(together, expected) < FLOAT32
    assert trained["loss"][-1] < 0.95 * trained["loss"][0], (
        "hardly trained: the test would not notice an error"
    )
    if script == "keras_mnist":  # MetricAverageCallback
        assert trained["loss"] == pytest.approx(alone["loss"], rel=1e-4)


@pytest.mark.usefixtures("ranks")
def test_warm_up_and_schedules_set_the_rate(folder: Path) -> None:
    _, trained = saved(folder, "keras_advanced", 0)
    assert trained["lr"] == pytest.approx([0.015, 0.02, 0.02, 0.002, 0.002], rel=1e-5)


@pytest.mark.usefixtures("ranks")
def test_script_that_resumes_from_a_saved_model_ends_as_if_it_had_not_stopped(folder: Path) -> None:
    """The optimizer's velocity, which `hvd.load_model` brings back, is among what is compared."""
    through, _ = saved(folder, "keras_advanced", 0)
    resumed, how = saved(folder / "interrupted", "keras_advanced", 0)
    assert how["resumed"] == 2
    assert apart(through, resumed) < FLOAT32


def test_horovodrun_with_the_bridge_trains_the_same(
    ranks: Any, folder: Path, digits: Path, tmp_path: Path
) -> None:
    script = [str(SCRIPTS / "keras_mnist.py"), "--data", str(digits), "--out", str(tmp_path), "--lr", "0.01"]
    bridge = [sys.executable, "-m", "airflow_hydrogen.runtime.horovod_bridge"]
    done = subprocess.run(
        [Path(sys.executable).with_name("horovodrun"), "-np", "2", *bridge, *script],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert output.count(SERVED) == 1
    in_gang, _ = saved(folder, "keras_mnist", 0)
    for rank in (0, 1):
        assert apart(saved(tmp_path, "keras_mnist", rank)[0], in_gang) < FLOAT32


def test_elastic_script_resumes_after_a_rank_was_killed(
    ranks: Any, folder: Path, digits: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script, out = str(SCRIPTS / "keras_elastic.py"), tmp_path / "out"
    out.mkdir()
    task = rank_task(script, ("--data", str(digits), "--out", str(out), "--die-at", "4"), {})
    task = dataclasses.replace(task, checkpoints_uri=str(tmp_path / "checkpoints"))
    HorovodRunner(np=-2, max_restarts=1, driver_log_verbosity="all").run_task(task)
    said = capfd.readouterr()
    assert (out / "died").exists()
    assert "resuming from commit" in said.out + said.err
    weights, state = saved(out, "keras_elastic", 0)
    assert (state["epoch"], state["batch"]) == (3, 0)
    assert apart(weights, saved(folder, "keras_elastic", 0)[0]) < FLOAT32


# --- the API -----------------------------------------------------------------------------------------

# Gradients are [1, -2, 3] * (1 + rank) + step, over four steps, at a rate of 0.1.
AVERAGE = [-1.2, 0.6, -2.4]
OWN = {0: [-1.0, 0.2, -1.8], 1: [-1.4, 1.0, -3.0]}


@pytest.mark.parametrize(
    ("way", "weights"),
    [
        ("average", [AVERAGE]),
        ("average_eager", [AVERAGE]),
        ("predivide", [AVERAGE]),
        ("positional", [AVERAGE]),
        ("odd_name", [AVERAGE]),
        ("sum", [[-2.4, 1.2, -4.8]]),
        ("tf_keras_sum", [[-2.4, 1.2, -4.8]]),
        ("two_passes", [AVERAGE]),
        ("two_passes_eager", [AVERAGE]),
        ("two_passes_averaged", [[-0.6, 0.3, -1.2]]),
        ("three_passes", [[-0.75, 0.6, -1.65]]),
        ("groups", [AVERAGE, [-2.4, 1.2, -4.8], [-3.6, 1.8, -7.2]]),
        ("num_groups_eager", [AVERAGE, [-2.4, 1.2, -4.8], [-3.6, 1.8, -7.2]]),
    ],
)
def test_arguments_of_the_optimizer(
    ranks: list[dict[str, Any]], way: str, weights: list[list[float]]
) -> None:
    for rank in ranks:
        *found, iterations = rank["optimizers"][way]
        np.testing.assert_allclose(found, weights, rtol=1e-3 if way == "positional" else 1e-5)
        assert iterations == 4, "Horovod counts passes"


def test_optimizers_do_not_get_in_each_others_way(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        np.testing.assert_allclose(
            rank["optimizers"]["copies"],
            [[-0.15, 0.3, -0.45], [-0.3, 0.6, -0.9], [-0.45, 0.9, -1.35]],
            rtol=1e-5,
        )
        assert rank["optimizers"]["pickled"] == "SGD"
        assert rank["optimizers"]["restored"] == [0.0, 0.0, 0.0]
        assert rank["optimizers"]["named"] == "Adam"


def test_groups_of_variables(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        np.testing.assert_allclose(
            rank["optimizers"]["variable_groups"], [[-0.15, 0.3, -0.45]] * 3, rtol=1e-5
        )


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_local_stays_each_ranks_own(ranks: list[dict[str, Any]], rank: int) -> None:
    found = ranks[rank]["optimizers"]
    np.testing.assert_allclose(found["process_set"][0], OWN[rank], rtol=1e-5, err_msg="rank 0 is outside")
    shared, local, _ = found["local"]
    np.testing.assert_allclose([shared, local], [AVERAGE, OWN[rank]], rtol=1e-5)  # twice the gradient, by two
    np.testing.assert_allclose(found["unscaled_local"][1], 2 * np.array(OWN[rank]), rtol=1e-5)
    np.testing.assert_allclose(found["partial"], [[-0.3] * 2, [-0.1 * (1 + rank)] * 2], rtol=1e-5)
    tapes = ranks[rank]["tapes"]
    assert tapes["local"] == {"local": [(True, [1.0 + rank] * 3)], "shared": [(True, [1.5] * 2)]}
    assert tapes["partial"] == [[[0.5 * (1 + rank)]] * 2, [1.5, 1.5]]
    assert tapes["left_alone"] == [[[1.5] * 2], [[1.0 + rank] * 2], [[1.5] * 2]]


def test_sparse_gradients(ranks: list[dict[str, Any]]) -> None:
    once = [[-0.05] * 2, [-0.05] * 2, [0.0] * 2, [-0.1] * 2]
    for rank in ranks:
        found = rank["optimizers"]["sparse"]
        np.testing.assert_allclose(found["gathered"], once, rtol=1e-5)
        np.testing.assert_allclose(found["as_dense"], once, rtol=1e-5)
        np.testing.assert_allclose(found["accumulated_as_dense"], 2 * np.array(once), rtol=1e-5)
        assert "pass sparse_as_dense=True" in found["accumulated"]
        assert rank["tapes"]["sparse"] == {"sparse": True, "sum": [[0.5], [1.0], [0.0], [1.5]]}


@pytest.mark.parametrize(
    ("way", "gradients"),
    [
        ("average", [[1.5] * 2, [3.0] * 3]),
        ("fp16", [[1.5] * 2, [3.0] * 3]),
        ("predivide", [[1.5] * 2, [3.0] * 3]),
        ("groups", [[1.5] * 2, [3.0] * 3]),
        ("sum", [[3.0] * 2, [6.0] * 3]),
        ("max", [[2.0] * 2, [4.0] * 3]),
        ("two_in_a_graph", [[1.5] * 2, [3.0] * 3]),
        ("structured", {"a": [1.5] * 2, "b": None}),
    ],
)
def test_arguments_of_the_tape(ranks: list[dict[str, Any]], way: str, gradients: Any) -> None:
    for rank in ranks:
        assert rank["tapes"][way] == gradients


def test_variables_of_keras_3_are_taken_as_those_of_keras_2(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["variables"] == {
            "broadcast": [1.0, 1.0, 1.0, 1.0],
            "seed_is_own": True,
            "callable": True,
            "lr": 0.5,
            "lr_set": 0.125,
        }
        assert rank["collectives"] == {
            "allreduce": 0.5,
            "of_variable": 0.5,
            "broadcast": 1,
            "allgather": [0, 1],
        }


@pytest.mark.parametrize("module", ["horovod.keras", "horovod.tensorflow.keras"])
def test_callbacks_set_rates_and_correct_momentum(ranks: list[dict[str, Any]], module: str) -> None:
    rates = [
        0.225,
        0.25,
        0.275,
        0.3,
        0.325,
        0.35,
        0.375,
        0.4,
        *[0.4] * 4,
        *[0.2] * 4,
        0.016,
        0.017,
        0.018,
        0.019,
    ]
    for rank in ranks:
        found = rank["callbacks"][module]
        assert found["rates"] == rates
        assert found["corrected"] == pytest.approx(0.5)
        assert found["uncorrected"] == 1.0


def test_warm_up_ends_at_the_rate_where_an_execution_has_several_steps(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["callbacks"]["executions"] == [0.225, 0.325, 0.4]


def test_broadcast_callback_leaves_local_variables_out(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["callbacks"] for rank in ranks)
    assert first["root_kernel"] == second["root_kernel"]
    assert (first["local_bias"], second["local_bias"]) == ([0.0], [1.0])


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_loaded_model_has_its_optimizers_state_and_averages(ranks: list[dict[str, Any]], kind: str) -> None:
    for rank in ranks:
        found = rank["loaded"][kind]
        assert (found["state"], found["averages"], found["plain"]) == (0.0, True, "no error")
        assert found["untrained"]
        assert found["moments"] > 0


def test_batches_are_normalized_over_all_ranks(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank["normalization"]
        assert found["apart"] > 1
        assert max(found["error"], found["moving"], found["gradient"]) < FLOAT32


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("global", "write hvd.broadcast_variables(model.variables, root_rank=0)"),
        ("keras_global", "hvd.callbacks.BroadcastGlobalVariablesCallback(0)"),
        ("op", "op of a Keras optimizer can be hvd.Average or hvd.Sum"),
        ("locking", "leave use_locking out"),
        ("passes", "backward_passes_per_step must be >= 1, found 0"),
        ("accumulations", "leave out either backward_passes_per_step or gradient_accumulation_steps"),
        ("jacobian", "take the Jacobian from the tf.GradientTape"),
        ("predivide", "it needs op=hvd.Average"),
        ("groups", "groups must be a number > 0, or lists of variables, found -1"),
        ("layers", "local_layers must be layers of Keras, found 'dense'"),
        ("twice", "SGD is distributed already"),
        ("legacy", "leave legacy_opts out"),
        ("no_optimizer", "compile it with hvd.DistributedOptimizer(...)"),
        ("initial_lr", "needs initial_lr"),
        ("warmup_epochs", "warmup_epochs must be > 0"),
        ("schedule", "LearningRateWarmupCallback needs a plain learning rate, found CosineDecay"),
        ("momentum", "found WithMomentum: pass momentum_correction=False"),
        ("best", "use keras.callbacks.ModelCheckpoint(filepath, save_best_only=True)"),
        ("fused", "pass fused=False"),
        ("plain", "compiled with a plain SGD"),
        ("state_variables", "pass variables=[...]"),
        ("state_json", "keep arrays in variables"),
        ("state_model", "pass optimizer=, or compile it"),
        ("elastic_state", "needs a KerasState, TensorFlowKerasState or TensorFlowState, found object"),
    ],
)
def test_what_cannot_be_served_is_an_error_that_says_what_to_write(
    ranks: list[dict[str, Any]], case: str, message: str
) -> None:
    for rank in ranks:
        assert rank["errors"][case].startswith("OptimizerError: ")
        assert message in rank["errors"][case]


def test_elastic_state_resumes_from_the_last_commit(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        found = rank["elastic"]
        assert found["stopped"]["steps"] == [0, 1, 2]
        assert found["resumed"]["steps"] == [3, 4, 5]
        assert found["resumed"]["weights"] == found["through"]["weights"]
        assert found["stopped"]["weights"] != found["through"]["weights"]
        assert found["resumed"]["resets"] == 0
        assert found["smaller"] == {"before": 0, "after": 1}, "reset callbacks, where the size is another"


def test_elastic_fit_trains_on_no_batch_twice(ranks: list[dict[str, Any]]) -> None:
    """With the commit before the counting callbacks, as in Horovod's documentation."""
    for rank in ranks:
        found = rank["elastic"]
        assert found["fitted"]["begun"] == [(0, 0)]
        assert found["fitted_on"]["begun"] == [(1, 2)]
        assert found["fitted_on"]["end"] == found["fitted_through"]["end"] == (3, 0)
        assert found["fitted_on"]["weights"] == found["fitted_through"]["weights"]
