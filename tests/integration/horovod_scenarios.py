"""What the ranks of test_horovod_scripts.py run: Horovod's API under Keras 3, argument by argument."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import horovod.keras as hvd_keras
import horovod.tensorflow as hvd
import horovod.tensorflow.keras as hvd_tf_keras
import keras
import numpy as np
import tensorflow as tf

import airflow_hydrogen.runtime as hydrogen
from airflow_hydrogen.contract.errors import HydrogenError

SCRIPTS = Path(__file__).parent / "horovod_scripts"
RATE = 0.1
LAST_RANK = hvd.ProcessSet([1])


def run_script(name: str, *args: str) -> None:
    """Run one of the scripts as this rank's `__main__`."""
    before = sys.argv
    sys.argv = [str(SCRIPTS / name), *args]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        sys.argv = before


def everything(folder: str, data: str) -> dict[str, Any]:
    hvd.init(process_sets=[LAST_RANK])
    run_script("keras_mnist.py", "--data", data, "--out", folder, "--lr", "0.01")
    run_script("keras_elastic.py", "--data", data, "--out", folder)
    run_script("tape_mnist.py", "--data", data, "--out", folder, "--lr", "0.001")
    run_script("synthetic_benchmark.py", "--out", folder, "--no-cuda", "--fp16-allreduce")
    run_script("keras_advanced.py", "--data", data, "--out", folder, "--epochs", "5")
    interrupted = Path(folder) / "interrupted"
    interrupted.mkdir(exist_ok=True)
    for epochs in ("2", "5"):
        run_script("keras_advanced.py", "--data", data, "--out", str(interrupted), "--epochs", epochs)
    return api(folder)


def alone(folder: str, data: str) -> None:
    """What one process comes to with all of the data, at the rate of two."""
    run_script("keras_mnist.py", "--data", data, "--out", folder, "--lr", "0.02")
    run_script("tape_mnist.py", "--data", data, "--out", folder, "--lr", "0.002")


def api(folder: str) -> dict[str, Any]:
    hvd.init(process_sets=[LAST_RANK])
    keras.utils.set_random_seed(3)
    mine = {
        "optimizers": optimizers(),
        "tapes": tapes(),
        "variables": variables(),
        "callbacks": callbacks(),
        "errors": errors(Path(folder)),
        "collectives": collectives(),
        "normalization": normalization(),
        "loaded": loaded(Path(folder)),
        "elastic": elastic(Path(folder)),
    }
    everyone = hvd.allgather_object(mine, name="scenarios")
    return {"ranks": everyone}


# --- optimizers --------------------------------------------------------------------------------------


def gradient(rank: int, step: int) -> np.ndarray:
    """A rank's gradient at a step: numbers that no other rank and step has."""
    return np.array([1.0, -2.0, 3.0], dtype="float32") * (1 + rank) + step


def applied(make: Callable[[Any], Any], *, steps: int = 4, graph: bool = True, shapes: int = 1) -> list[Any]:
    """The weights after some steps of SGD from zero, and the optimizer's count of them."""
    weights = [keras.Variable(np.zeros(3, "float32"), name=f"w{number}") for number in range(shapes)]
    optimizer = make(keras.optimizers.SGD(RATE))
    optimizer.build(weights)

    def step(gradients: Any) -> None:
        optimizer.apply_gradients(zip(gradients, weights, strict=True))

    run = tf.function(step) if graph else step
    for number in range(steps):
        run([tf.constant(gradient(hvd.rank(), number)) * (1 + place) for place in range(shapes)])
    return [*(np.asarray(weight).tolist() for weight in weights), int(optimizer.iterations)]


def optimizers() -> dict[str, Any]:
    if hvd.rank() == 0:  # a rank may have made more of them than the others
        hvd.DistributedOptimizer(keras.optimizers.SGD())
        keras.Variable(0.0)
    make = hvd.DistributedOptimizer

    def with_local(optimizer: Any) -> Any:
        return LateLocal(make(optimizer))

    return {
        "average": applied(make),
        "average_eager": applied(make, graph=False),
        "sum": applied(lambda o: make(o, op=hvd.Sum)),
        "tf_keras_sum": applied(lambda o: hvd_tf_keras.DistributedOptimizer(o, op=hvd.Sum)),
        "odd_name": applied(lambda o: make(o, name="my optimizer/1")),
        "positional": applied(
            lambda o: hvd_keras.DistributedOptimizer(o, "name", "", "", hvd.Compression.fp16)
        ),
        "predivide": applied(lambda o: make(o, gradient_predivide_factor=4.0)),
        "two_passes": applied(lambda o: make(o, backward_passes_per_step=2)),
        "two_passes_eager": applied(lambda o: make(o, backward_passes_per_step=2), graph=False),
        "three_passes": applied(lambda o: make(o, backward_passes_per_step=3)),
        "two_passes_averaged": applied(
            lambda o: make(o, backward_passes_per_step=2, average_aggregated_gradients=True)
        ),
        "groups": applied(lambda o: make(o, groups=2), shapes=3),
        "num_groups_eager": applied(lambda o: make(o, num_groups=1), shapes=3, graph=False),
        "process_set": applied(lambda o: make(o, process_set=LAST_RANK)),
        "local": applied(with_local, shapes=2),
        "unscaled_local": applied(lambda o: LateLocal(make(o, scale_local_gradients=False)), shapes=2),
        "variable_groups": variable_groups(),
        "partial": partial(),
        "sparse": sparse_optimizer(),
        "copies": copies(),
        "pickled": type(pickle.loads(pickle.dumps(make(keras.optimizers.SGD())))).__name__,
        "restored": restored(),
        "named": type(hvd_keras.DistributedOptimizer("adam")).__name__,
    }


def copies() -> list[Any]:
    """Three optimizers of which two were made from the other, in one graph."""
    weights = [keras.Variable(np.zeros(3, "float32")) for _ in range(3)]
    first = hvd.DistributedOptimizer(keras.optimizers.SGD(RATE))
    second = type(first).from_config(first.get_config())
    third = copy.deepcopy(first)
    for optimizer, weight in zip((first, second, third), weights, strict=True):
        optimizer.build([weight])

    @tf.function
    def step(value: Any) -> None:
        first.apply_gradients([(value, weights[0])])
        second.apply_gradients([(2 * value, weights[1])])
        third.apply_gradients([(3 * value, weights[2])])

    step(tf.constant(gradient(hvd.rank(), 0)))
    return [np.asarray(weight).tolist() for weight in weights]


def restored() -> list[Any]:
    """A state that goes back in the middle of a window of two passes."""
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros")]
    )
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(RATE), backward_passes_per_step=2)
    state = hvd.elastic.TensorFlowKerasState(model, optimizer)
    kernel = model.layers[0].kernel
    for _ in range(2):
        optimizer.apply_gradients([(tf.constant(gradient(hvd.rank(), 0))[:, None], kernel)])
        state.restore()
    return np.asarray(kernel).ravel().tolist()


class LateLocal:
    """An optimizer whose second variable stays each rank's own."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer

    def build(self, weights: Any) -> None:
        self._optimizer.build(weights)
        self._optimizer.register_local_var(weights[1])

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


def variable_groups() -> list[Any]:
    weights = [keras.Variable(np.zeros(3, "float32")) for _ in range(3)]
    optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(RATE), groups=[[weights[2], weights[0].value]])
    optimizer.apply_gradients([(tf.constant(gradient(hvd.rank(), 0)), weight) for weight in weights])
    return [np.asarray(weight).tolist() for weight in weights]


def partial() -> list[Any]:
    """One layer is each rank's own. It has no weights yet when the optimizer is told."""
    shared, own = (
        keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
        keras.layers.Dense(1, use_bias=False, kernel_initializer="zeros"),
    )
    model = keras.Sequential(
        [keras.Input((3,)), keras.layers.Dense(2, kernel_initializer="ones", trainable=False)]
    )
    optimizer = hvd_keras.PartialDistributedOptimizer(keras.optimizers.SGD(RATE), local_layers=own)
    rows = tf.constant(gradient(hvd.rank(), 0))[None]
    inputs = model(rows)
    shared(inputs), own(inputs)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(shared(inputs) + own(inputs))
    sources = [*shared.trainable_variables, *own.trainable_variables]
    optimizer.apply_gradients(zip(tape.gradient(loss, sources), sources, strict=True))
    return [np.asarray(source).ravel().tolist() for source in sources]


def sparse_optimizer() -> dict[str, Any]:
    def embedded(passes: int = 1, **options: Any) -> Any:
        table = keras.layers.Embedding(4, 2, embeddings_initializer="zeros")
        table.build()
        optimizer = hvd.DistributedOptimizer(keras.optimizers.SGD(RATE), **options)
        for _ in range(passes):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(table(tf.constant([hvd.rank(), 3])))
            grads = tape.gradient(loss, table.trainable_variables)
            assert isinstance(grads[0], tf.IndexedSlices)
            optimizer.apply_gradients(zip(grads, table.trainable_variables, strict=True))
        return np.asarray(table.embeddings).tolist()

    return {
        "gathered": embedded(),
        "as_dense": embedded(sparse_as_dense=True),
        "accumulated": message_of(lambda: embedded(backward_passes_per_step=2)),
        "accumulated_as_dense": embedded(3, backward_passes_per_step=2, sparse_as_dense=True),
    }


# --- tapes -------------------------------------------------------------------------------------------


def tapes() -> dict[str, Any]:
    """Gradients of `rank + 1` times the sum of a variable: 1.5 on average."""
    ours = keras.Variable(np.ones(2, "float32"))
    theirs = tf.Variable(np.ones(3, "float32"))
    factor = float(hvd.rank() + 1)

    def recorded(persistent: bool = False) -> tuple[tf.GradientTape, Any]:
        with tf.GradientTape(persistent=persistent) as tape:
            loss = factor * (tf.reduce_sum(ours) + 2 * tf.reduce_sum(theirs))
        return tape, loss

    def gradients(**options: Any) -> Any:
        tape, loss = recorded()
        return numbers(hvd.DistributedGradientTape(tape, **options).gradient(loss, [ours, theirs]))

    def local() -> Any:
        tape, loss = recorded()
        distributed = hvd.DistributedGradientTape(tape)
        distributed.register_local_source(theirs)
        mine, shared = distributed.get_local_and_global_gradients(loss, [ours, theirs])
        return {
            "local": [(source is theirs, g.numpy().tolist()) for source, g in mine],
            "shared": [(source is ours, g.numpy().tolist()) for source, g in shared],
        }

    def partial() -> Any:
        layer = keras.layers.Dense(1, kernel_initializer="ones")
        layer.build((None, 2))
        with tf.GradientTape() as tape:
            loss = factor * (tf.reduce_sum(layer.kernel) + tf.reduce_sum(ours))
        distributed = hvd.PartialDistributedGradientTape(tape, local_layers=[layer])
        return numbers(distributed.gradient(loss, [layer.kernel, ours]))

    def sparse() -> Any:
        table = tf.Variable(tf.ones((4, 1)))
        with tf.GradientTape() as tape:
            loss = factor * tf.reduce_sum(tf.gather(table, [hvd.rank(), 3]))
        (found,) = hvd.DistributedGradientTape(tape).gradient(loss, [table])
        return {
            "sparse": isinstance(found, tf.IndexedSlices),
            "sum": tf.convert_to_tensor(found).numpy().tolist(),
        }

    def left_alone() -> Any:
        tape, loss = recorded(persistent=True)
        distributed = hvd.DistributedGradientTape(tape)
        return [numbers(t.gradient(loss, [ours])) for t in (distributed, tape, distributed)]

    @tf.function
    def two_in_a_graph() -> Any:
        first, loss = recorded()
        second, other = recorded()
        return [
            hvd.DistributedGradientTape(first).gradient(loss, [ours])[0],
            hvd.DistributedGradientTape(second).gradient(other, [theirs])[0],
        ]

    def structured() -> Any:
        tape, loss = recorded()
        found = hvd.DistributedGradientTape(tape).gradient(loss, {"a": ours, "b": tf.Variable(1.0)})
        return {"a": found["a"].numpy().tolist(), "b": found["b"]}

    return {
        "average": gradients(),
        "sum": gradients(op=hvd.Sum),
        "fp16": gradients(compression=hvd.Compression.fp16),
        "max": gradients(op=hvd.Max),
        "predivide": gradients(gradient_predivide_factor=2.0),
        "groups": gradients(groups=1),
        "local": local(),
        "partial": partial(),
        "sparse": sparse(),
        "left_alone": left_alone(),
        "two_in_a_graph": numbers(two_in_a_graph()),
        "structured": structured(),
    }


def numbers(tensors: Any) -> list[Any]:
    return [None if tensor is None else np.asarray(tensor).tolist() for tensor in tensors]


# --- variables, callbacks, errors ----------------------------------------------------------------------


def variables() -> dict[str, Any]:
    mine = float(hvd.rank())
    ours, theirs = keras.Variable(mine), tf.Variable(mine)
    hvd.broadcast_variables([ours, theirs], root_rank=1)
    in_place = keras.Variable(mine)
    hvd.broadcast_variables([in_place], root_rank=1, inplace=True)
    underscored = keras.Variable(mine)
    hvd.broadcast_([underscored], 1)
    keras.utils.set_random_seed(11 + hvd.rank())
    dropout = keras.layers.Dropout(0.5)
    seed = np.asarray(dropout.seed_generator.state).tolist()
    hvd.broadcast_variables(dropout.variables, root_rank=0)
    optimizer = keras.optimizers.Adam(0.5)
    optimizer.build([ours])
    found = {
        "broadcast": [float(ours), float(theirs), float(in_place), float(underscored)],
        "seed_is_own": np.asarray(dropout.seed_generator.state).tolist() == seed,
        "callable": [v.path for v in optimizer.variables()] == [v.path for v in optimizer.variables],
        "lr": float(optimizer.lr),
    }
    tf.keras.backend.set_value(optimizer.lr, 0.25)
    optimizer.lr.assign(optimizer.lr * 0.5)
    found["lr_set"] = float(optimizer.learning_rate)
    return found


def make_model(**layer: Any) -> keras.Model:
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, **layer)])


def fit(optimizer: Any, *callbacks: Any, epochs: int = 1, steps: int = 4, **options: Any) -> keras.Model:
    random = np.random.default_rng(hvd.rank())
    x = random.normal(size=(4 * steps, 2)).astype("float32")
    model = options.pop("model", None) or make_model()
    model.compile(optimizer, keras.losses.MeanSquaredError(), **options)
    model.fit(x, x[:, :1], batch_size=4, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return model


class Rates(keras.callbacks.Callback):
    """The learning rate of every step, and the velocity before it."""

    def __init__(self) -> None:
        super().__init__()
        self.rates: list[float] = []
        self.velocities: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.rates.append(round(float(self.model.optimizer.learning_rate), 6))
        self.velocities.append(float(np.asarray(self.model.optimizer.momentums[0])[0, 0]))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.velocities.append(float(np.asarray(self.model.optimizer.momentums[0])[0, 0]))


def callbacks() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in (hvd_keras, hvd_tf_keras):
        schedule = module.callbacks.LearningRateScheduleCallback
        warmup = module.callbacks.LearningRateWarmupCallback(0.4, warmup_epochs=2)
        rates = Rates()
        fit(
            module.DistributedOptimizer(keras.optimizers.SGD(0.4, momentum=0.9)),
            module.callbacks.BroadcastGlobalVariablesCallback(0),
            module.callbacks.MetricAverageCallback(),
            warmup,
            schedule(0.4, 0.5, start_epoch=2, end_epoch=4),
            schedule(0.4, lambda epoch: epoch / 100, start_epoch=4, staircase=False),
            rates,
            epochs=5,
        )
        found[module.__name__] = {
            "rates": rates.rates,
            # After the last step of the second epoch comes the first of the third, at another rate.
            "corrected": rates.velocities[2 * 12] / rates.velocities[2 * 12 - 1],
            "uncorrected": rates.velocities[2 * 9] / rates.velocities[2 * 9 - 1],
        }
    model = make_model(bias_initializer=keras.initializers.Constant(hvd.rank()))
    broadcast = hvd_keras.callbacks.BroadcastGlobalVariablesCallback(
        1, local_variables=[model.layers[0].bias]
    )
    first = Biases()
    fit(hvd.DistributedOptimizer(keras.optimizers.SGD(0.0)), broadcast, first, model=model)
    found["local_bias"] = first.bias
    found["root_kernel"] = first.kernel
    rates = Rates()
    fit(
        hvd.DistributedOptimizer(keras.optimizers.SGD(0.4, momentum=0.9)),
        hvd_keras.callbacks.BroadcastGlobalVariablesCallback(0),
        hvd_keras.callbacks.LearningRateWarmupCallback(0.4, warmup_epochs=2),
        rates,
        epochs=3,
        steps_per_execution=4,
    )
    found["executions"] = rates.rates
    return found


class Biases(keras.callbacks.Callback):
    """The weights before the first step."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 0:
            self.kernel = np.asarray(self.model.layers[0].kernel).ravel().tolist()
            self.bias = np.asarray(self.model.layers[0].bias).tolist()


def message_of(action: Callable[[], Any]) -> str:
    try:
        action()
    except HydrogenError as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def errors(folder: Path) -> dict[str, str]:
    sgd = keras.optimizers.SGD
    make = hvd.DistributedOptimizer
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    warmup = hvd_keras.callbacks.LearningRateWarmupCallback
    path = folder / f"unknown-{hvd.rank()}.keras"
    make_model().save(path)
    return {
        "global": message_of(lambda: hvd.broadcast_global_variables(0)),
        "keras_global": message_of(lambda: hvd_keras.broadcast_global_variables(0)),
        "op": message_of(lambda: make(sgd(), op=hvd.Adasum)),
        "locking": message_of(lambda: make(sgd(), use_locking=True)),
        "passes": message_of(lambda: make(sgd(), backward_passes_per_step=0)),
        "accumulations": message_of(
            lambda: make(sgd(gradient_accumulation_steps=2), backward_passes_per_step=2)
        ),
        "jacobian": message_of(lambda: hvd.DistributedGradientTape(tf.GradientTape()).jacobian(None, None)),
        "predivide": message_of(lambda: make(sgd(), op=hvd.Sum, gradient_predivide_factor=2.0)),
        "groups": message_of(lambda: make(sgd(), groups=-1)),
        "layers": message_of(lambda: hvd_keras.PartialDistributedOptimizer(sgd(), local_layers=["dense"])),
        "twice": message_of(lambda: make(make(sgd()))),
        "legacy": message_of(lambda: hvd_keras.load_model(path, legacy_opts=True)),
        "no_optimizer": message_of(lambda: hvd_keras.load_model(path)),
        "initial_lr": message_of(lambda: warmup(None)),
        "warmup_epochs": message_of(lambda: warmup(0.1, warmup_epochs=0)),
        "schedule": message_of(lambda: fit(make(sgd(schedule)), warmup(0.1))),
        "momentum": message_of(lambda: fit(make(WithMomentum(0.1)), warmup(0.1))),
        "best": message_of(lambda: hvd_tf_keras.callbacks.BestModelCheckpoint()),
        "fused": message_of(lambda: hvd.SyncBatchNormalization(fused=True)),
        "plain": message_of(lambda: fit(sgd(), hvd_keras.callbacks.BroadcastGlobalVariablesCallback(0))),
        "state_variables": message_of(lambda: hvd.elastic.TensorFlowState()),
        "state_json": message_of(lambda: hvd.elastic.TensorFlowState([tf.Variable(1.0)], rows=np.ones(2))),
        "state_model": message_of(lambda: hvd_keras.elastic.KerasState(make_model())),
        "elastic_state": message_of(lambda: hvd.elastic.run(lambda state: None)(object())),
    }


class WithMomentum(keras.optimizers.Adam):
    momentum = 0.9


def collectives() -> dict[str, Any]:
    mine = float(hvd.rank())

    return {
        "allreduce": float(hvd_keras.allreduce(mine, name="a")),
        "of_variable": float(hvd_tf_keras.allreduce(keras.Variable(mine), name="b")),
        "broadcast": int(hvd_keras.broadcast(hvd.rank(), 1, name="c")),
        "allgather": hvd_keras.allgather([hvd.rank()], name="d").numpy().tolist(),
    }


def loaded(folder: Path) -> dict[str, Any]:
    """A model that was trained, saved, and loaded again."""
    found = {}
    for kind in ("keras", "h5"):
        path = folder / f"trained-{hvd.rank()}.{kind}"
        model = fit(hvd.DistributedOptimizer(keras.optimizers.Adam(0.1)))
        model.save(path)
        again = hvd_keras.load_model(path, compression=hvd.Compression.fp16)
        pairs = zip(model.optimizer.variables, again.optimizer.variables, strict=True)
        fresh = folder / f"fresh-{hvd.rank()}.{kind}"
        untrained = make_model()
        untrained.compile(
            hvd.DistributedOptimizer(keras.optimizers.Adam(0.1)), keras.losses.MeanSquaredError()
        )
        untrained.save(fresh)
        found[kind] = {
            "untrained": hydrogen.keras.is_distributed(hvd_keras.load_model(fresh).optimizer),
            "state": max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs),
            "moments": float(np.abs(np.asarray(model.optimizer.variables[2])).max()),
            "averages": hydrogen.keras.is_distributed(again.optimizer),
            "plain": message_of(lambda again=again: again.compile(keras.optimizers.SGD(), "mse")),
        }
    return found


def normalization() -> dict[str, Any]:
    """Two ranks that normalize a batch together, against one process with all of it."""
    rows = np.random.default_rng(5).normal(2, 3, (8, 4)).astype("float32")
    mine = rows[hvd.rank() :: hvd.size()]
    together, alone = hvd.SyncBatchNormalization(momentum=0.5), keras.layers.BatchNormalization(momentum=0.5)
    expected = alone(rows, training=True)
    weights = tf.constant(np.arange(32, dtype="float32").reshape(8, 4))
    inputs, all_rows = tf.constant(mine), tf.constant(rows)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        found = together(inputs, training=True)
        loss = tf.reduce_sum(found * weights[hvd.rank() :: hvd.size()])
    mine_gradient = tape.gradient(loss, inputs)
    with tf.GradientTape() as tape:
        tape.watch(all_rows)
        loss = tf.reduce_sum(keras.layers.BatchNormalization()(all_rows, training=True) * weights)
    expected_gradient = tape.gradient(loss, all_rows)[hvd.rank() :: hvd.size()]
    return {
        "error": float(np.abs(found - expected[hvd.rank() :: hvd.size()]).max()),
        "moving": float(
            np.abs(np.asarray(together.moving_variance) - np.asarray(alone.moving_variance)).max()
        ),
        "gradient": float(np.abs(mine_gradient - expected_gradient).max()),
        "apart": float(np.abs(expected_gradient).max()),
    }


# --- elastic -------------------------------------------------------------------------------------------


def elastic(folder: Path) -> dict[str, Any]:
    """A loop that ends in the middle, and is run again as new processes would run it."""
    context = hydrogen.get_context()
    context.checkpoints_uri = str(folder / "elastic")
    try:
        return {
            "stopped": trained(stop_at=3),
            "resumed": restarted(lambda: trained()),
            "through": restarted(lambda: trained(), "elastic-through"),
            "smaller": restarted(smaller, "elastic-smaller"),
            "fitted": restarted(lambda: fitted(stop_after=6), "elastic-fitted"),
            "fitted_on": restarted(lambda: fitted()),
            "fitted_through": restarted(lambda: fitted(), "elastic-fitted-through"),
        }
    finally:
        context.checkpoints_uri = None


def restarted(action: Callable[[], Any], place: str | None = None) -> Any:
    """What new processes would find: no counts of earlier runs."""
    from airflow_hydrogen.runtime.horovod_bridge import elastic

    elastic._runs.clear()
    context = hydrogen.get_context()
    if place is not None:
        context.checkpoints_uri = str(Path(context.checkpoints_uri or "").with_name(place))
    return action()


def trained(stop_at: int | None = None) -> dict[str, Any]:
    keras.utils.set_random_seed(1)
    model = make_model()
    optimizer = keras.optimizers.Adam(0.1)
    steps: list[int] = []
    resets: list[int] = []

    @tf.function
    def training_step(x: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - tf.reduce_sum(x, axis=1, keepdims=True)) ** 2)
        tape = hvd.DistributedGradientTape(tape)
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))

    @hvd.elastic.run
    def train(state: Any) -> None:
        for batch in range(state.batch, 6):
            if batch == stop_at:
                raise KeyboardInterrupt  # whatever ends a rank
            rows = np.random.default_rng([batch, hvd.rank()]).normal(size=(4, 2))
            training_step(tf.constant(rows.astype("float32")))
            steps.append(batch)
            state.batch = batch + 1
            state.commit()

    state = hvd.elastic.TensorFlowKerasState(model, optimizer, batch=0)
    every_commit(state)
    state.register_reset_callbacks([lambda: resets.append(1)])
    with contextlib.suppress(KeyboardInterrupt):
        train(state)
    return {"weights": weights_of(model), "steps": steps, "resets": len(resets)}


def smaller() -> dict[str, Any]:
    """A checkpoint that a gang of another size has written."""
    written = trained(stop_at=2)
    context = hydrogen.get_context()
    if hvd.rank() == 0:
        for path in Path(context.checkpoints_uri or "").rglob("checkpoint.json"):
            text = path.read_text()
            assert '"size": 2' in text
            path.write_text(text.replace('"size": 2', '"size": 3'))
    hvd.allreduce(tf.constant(0.0), name="written")
    return {"before": written["resets"], "after": restarted(lambda: trained())["resets"]}


def fitted(stop_after: int | None = None) -> dict[str, Any]:
    """`fit`, with the callbacks in the order of Horovod's documentation: three epochs of four batches."""
    keras.utils.set_random_seed(1)
    model = make_model()
    model.compile(hvd.DistributedOptimizer(keras.optimizers.Adam(0.1)), keras.losses.MeanSquaredError())
    state = hvd_keras.elastic.KerasState(model, batch=0, epoch=0)
    every_commit(state)
    x = np.random.default_rng(hvd.rank()).normal(size=(16, 2)).astype("float32")
    begun: list[tuple[int, int]] = []
    batches = itertools.count(1)

    def stop(batch: int, logs: Any) -> None:
        if next(batches) == stop_after:
            raise KeyboardInterrupt

    @hvd.elastic.run
    def train(state: Any) -> None:
        begun.append((state.epoch, state.batch))
        callbacks = [
            hvd_keras.elastic.CommitStateCallback(state),
            hvd_keras.elastic.UpdateBatchStateCallback(state),
            hvd_keras.elastic.UpdateEpochStateCallback(state),
            keras.callbacks.LambdaCallback(on_train_batch_end=stop),
        ]
        model.fit(x, x[:, :1], 4, epochs=3 - state.epoch, verbose=0, shuffle=False, callbacks=callbacks)

    with contextlib.suppress(KeyboardInterrupt):
        train(state)
    return {"weights": weights_of(model), "begun": begun, "end": (state.epoch, state.batch)}


def every_commit(state: Any) -> None:
    """Ten seconds from one commit to the next, and none to write it: each is written."""
    state._writer._clock = (10.0 * commit for commit in itertools.count() for _ in range(2)).__next__


def weights_of(model: keras.Model) -> list[float]:
    return np.concatenate([np.ravel(weight) for weight in model.get_weights()]).tolist()
