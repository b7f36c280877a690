"""What the ranks of test_keras_training.py run. Imported on the ranks only."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import horovod.tensorflow as hvd
import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.util.event_pb2 import Event

import airflow_hydrogen.runtime as hydrogen
from airflow_hydrogen.contract.errors import CheckpointError, OptimizerError, RanksDivergedError
from airflow_hydrogen.runtime.keras import state, tables
from airflow_hydrogen.runtime.rank.context import dump_history

FEATURES, BATCH, STEPS = 6, 16, 8
VOCABULARY = 20


# --- two ranks on half of the data each, against one process on all of it ----------------------------


def data(kind: str = "dense") -> tuple[np.ndarray, np.ndarray]:
    """All rows, in the order in which one process reads them."""
    random = np.random.default_rng(3)
    rows = BATCH * STEPS
    if kind == "tokens":
        x = random.integers(0, VOCABULARY, (rows, 4)).astype("int32")
        return x, (x.sum(axis=1, keepdims=True) / 40).astype("float32")
    x = random.normal(size=(rows, FEATURES)).astype("float32")
    return x, (x @ np.arange(1, FEATURES + 1, dtype="float32")[:, None] / FEATURES).astype("float32")


def my_rows(array: np.ndarray) -> np.ndarray:
    """This rank's part of every batch, so that the ranks' batches together are those of one process."""
    parts = array.reshape(STEPS, hvd.size(), BATCH // hvd.size(), *array.shape[1:])
    return parts[:, hvd.rank()].reshape(-1, *array.shape[1:])


def make_model(kind: str = "dense") -> keras.Model:
    if kind == "tokens":
        return keras.Sequential(
            [
                keras.Input((4,), dtype="int32"),
                keras.layers.Embedding(VOCABULARY, 5),
                keras.layers.Flatten(),
                keras.layers.Dense(1),
            ]
        )
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1, dtype="float32")]
    return keras.Sequential(layers if kind == "unbuilt" else [keras.Input((FEATURES,)), *layers])


def weights_of(model: keras.Model) -> np.ndarray:
    return np.concatenate([np.asarray(w, dtype="float32").ravel() for w in model.get_weights()])


_alone: dict[str, tuple[np.ndarray, float]] = {}


def trained_alone(name: str, optimizer: Any, kind: str) -> tuple[np.ndarray, float]:
    """The weights of one process that trains on everything, and how far they moved. Rank 0 trains for all."""
    if name not in _alone:
        found = None
        if hvd.rank() == 0:
            x, y = data(kind)
            keras.utils.set_random_seed(1)
            model = make_model(kind)
            model.build((None, *x.shape[1:]))
            first = weights_of(model)
            model.compile(optimizer(), "mse")
            model.fit(x, y, batch_size=BATCH, epochs=2, shuffle=False, verbose=0)
            found = weights_of(model), float(np.abs(weights_of(model) - first).max())
        _alone[name] = hvd.broadcast_object(found, name="alone")
    return _alone[name]


def compare(
    optimizer: Any, *, alone: str, kind: str = "dense", distribute: Any = None, **compile_: Any
) -> dict[str, float]:
    """Train together on parts, from rank 0's first weights, and compare with one process on everything."""
    x, y = data(kind)
    # Rank 0 starts as the single process did, the others elsewhere.
    keras.utils.set_random_seed(1 + hvd.rank() if distribute is not horovods_own else 1)
    model = make_model(kind)
    model.compile((distribute or hydrogen.keras.DistributedOptimizer)(optimizer()), "mse", **compile_)
    model.fit(
        my_rows(x),
        my_rows(y),
        batch_size=BATCH // hvd.size(),
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[] if distribute is horovods_own else [hydrogen.keras.BroadcastCallback()],
    )
    return outcome(model, *trained_alone(alone, optimizer, "dense" if kind == "unbuilt" else kind))


def outcome(model: keras.Model, expected: np.ndarray, moved: float) -> dict[str, float]:
    everyone = np.stack(hvd.allgather_object(weights_of(model), name="weights"))
    return {
        "moved": moved,
        "error": float(np.abs(everyone - expected).max()),
        "spread": float(np.abs(everyone - everyone[0]).max()),
    }


def horovods_own(optimizer: Any) -> Any:
    """Horovod's optimizer without the bridge."""
    import horovod._keras as implementation

    return implementation.create_distributed_optimizer(
        keras=keras,
        optimizer=optimizer,
        name=None,
        device_dense="",
        device_sparse="",
        compression=hvd.Compression.none,
        sparse_as_dense=False,
        gradient_predivide_factor=1.0,
        op=hvd.Average,
    )


def averaging(folder: Path) -> dict[str, dict[str, float]]:
    optimizers = keras.optimizers
    distributed = hydrogen.keras.DistributedOptimizer

    def sgd() -> Any:
        return optimizers.SGD(0.05, momentum=0.9)

    def adam() -> Any:
        return optimizers.Adam(0.01)

    results = {
        "sgd": compare(sgd, alone="sgd"),
        "fp16": compare(sgd, alone="sgd", distribute=lambda o: distributed(o, compression="fp16")),
        "sum": compare(sgd, alone="sgd", distribute=lambda o: halved(distributed(o, op="sum"))),
        "horovods_own": compare(sgd, alone="sgd", distribute=horovods_own),
        "adam": compare(adam, alone="adam"),
        "unbuilt": compare(adam, alone="adam", kind="unbuilt"),
        "eager": compare(adam, alone="adam", run_eagerly=True),
        "steps_per_execution": compare(adam, alone="adam", steps_per_execution=4),
        "xla_off": compare(adam, alone="adam", jit_compile=True),
        "custom_loop": custom_loop(eagerly=False),
        "custom_loop_eager": custom_loop(eagerly=True),
        "clipped": compare(lambda: optimizers.SGD(0.05, global_clipnorm=0.1), alone="clipped"),
        "accumulation": compare(
            lambda: optimizers.Adam(0.01, gradient_accumulation_steps=2), alone="accumulation"
        ),
        "schedule": compare(
            lambda: optimizers.SGD(optimizers.schedules.CosineDecay(0.1, 12)), alone="schedule"
        ),
        "sparse": compare(adam, alone="sparse", kind="tokens"),
        "sparse_fp16": compare(
            adam, alone="sparse", kind="tokens", distribute=lambda o: distributed(o, compression="fp16")
        ),
    }
    keras.config.set_dtype_policy("mixed_float16")
    try:
        # A scale at which nothing overflows: half batches overflow before whole ones.
        results["mixed_float16"] = compare(
            lambda: optimizers.LossScaleOptimizer(adam(), initial_scale=64.0), alone="mixed_float16"
        )
        results["overflow"] = overflow_on_one_rank()
    finally:
        keras.config.set_dtype_policy("float32")
    save_models(folder)
    return results


def halved(optimizer: Any) -> Any:
    optimizer.learning_rate = float(optimizer.learning_rate) / hvd.size()
    return optimizer


def custom_loop(*, eagerly: bool) -> dict[str, float]:
    x, y = (my_rows(array) for array in data())
    keras.utils.set_random_seed(1)
    model = make_model()
    optimizer = hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(0.01))
    optimizer.build(model.trainable_variables)

    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x) - y) ** 2)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

    run = step if eagerly else tf.function(step)
    batch = BATCH // hvd.size()
    for start in [*range(0, len(x), batch)] * 2:
        run(tf.constant(x[start : start + batch]), tf.constant(y[start : start + batch]))
    return outcome(model, *trained_alone("adam", None, "dense"))


def overflow_on_one_rank() -> dict[str, float]:
    """The gradients of rank 1's first batch overflow: all ranks must skip that step, and none may wait."""
    x, y = (my_rows(array).copy() for array in data())
    if hvd.rank() == 1:
        y[: BATCH // hvd.size()] = np.inf
    keras.utils.set_random_seed(1)
    model = make_model()
    # compile() would put a LossScaleOptimizer around it, but finds one.
    model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.SGD(1e-4)), "mse")
    model.optimizer.initial_scale = 64.0
    model.fit(x, y, batch_size=BATCH // hvd.size(), epochs=1, shuffle=False, verbose=0)
    mine = {"scale": float(model.optimizer.dynamic_scale), "updates": int(model.optimizer.iterations)}
    everyone = hvd.allgather_object(mine, name="overflow")
    assert everyone[0] == everyone[1]
    return {**mine, **outcome(model, weights_of(model), 0.0)}


@keras.saving.register_keras_serializable(package="tests")
class PatientSGD(keras.optimizers.SGD):
    """An optimizer of the user's own, registered under a name that is not its class's."""


def save_models(folder: Path) -> None:
    x, y = data()
    for name, optimizer in (("plain", keras.optimizers.Adam(0.01)), ("registered", PatientSGD(0.01))):
        model = make_model()
        model.compile(hydrogen.keras.DistributedOptimizer(optimizer), "mse")
        model.fit(my_rows(x), my_rows(y), batch_size=8, verbose=0, callbacks=hydrogen.keras.callbacks())
        if hvd.rank() == 0:
            model.save(folder / f"{name}.keras")
            np.save(folder / f"{name}.npy", model.predict(x[:4], verbose=0))


# --- callbacks and errors ----------------------------------------------------------------------------


def behaviour(folder: Path) -> list[dict[str, Any]]:
    mine = {
        "errors": errors(),
        "seeds": dropout_seeds(),
        "early_stopping": early_stopping(),
        "warmup": warmup(),
        "defaults": defaults(folder),
        "own_steps": own_steps(folder),
        "compared": compared(),
        "adapted": adapted(folder),
        "vectors": vectors(folder),
    }
    everyone: list[dict[str, Any]] = hvd.allgather_object(mine, name="behaviour")
    return everyone


def message_of(action: Any) -> str:
    try:
        action()
    except (OptimizerError, CheckpointError) as error:
        return str(error)
    return "no error"


def errors() -> dict[str, str]:
    distributed = hydrogen.keras.DistributedOptimizer
    x, y = data()

    def fit(optimizer: Any, *, callbacks: Any = (), **compile_: Any) -> None:
        model = make_model()
        model.compile(optimizer, "mse", **compile_)
        model.fit(x, y, verbose=0, callbacks=list(callbacks))

    def scaled() -> None:
        optimizer = distributed(keras.optimizers.Adam())
        fit(keras.optimizers.LossScaleOptimizer(optimizer))

    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    return {
        "plain": message_of(lambda: fit(keras.optimizers.Adam(), callbacks=hydrogen.keras.callbacks())),
        "twice": message_of(lambda: distributed(distributed(keras.optimizers.Adam()))),
        "op": message_of(lambda: distributed(keras.optimizers.Adam(), op="max")),
        "compression": message_of(lambda: distributed(keras.optimizers.Adam(), compression="zip")),
        "xla": message_of(lambda: fit(distributed(keras.optimizers.Adam()), jit_compile=True)),
        "scaled_outside": message_of(scaled),
        "schedule": message_of(
            lambda: fit(
                distributed(keras.optimizers.SGD(schedule)),
                callbacks=[hydrogen.keras.LearningRateWarmupCallback(2)],
            )
        ),
        "different_models": message_of(different_models),
        "different_shapes": message_of(different_shapes),
        "different_metrics": message_of(different_metrics),
        "vocabulary": message_of(lambda: fit_words(f"only on {hvd.rank()}")),
        "same_vocabulary": message_of(lambda: fit_words("everywhere")),
        "bins": message_of(fit_bins),
        "other_vocabulary": message_of(resume_with_another_vocabulary),
    }


def different_models() -> None:
    model = keras.Sequential([keras.Input((3,)), *[keras.layers.Dense(3) for _ in range(1 + hvd.rank())]])
    state.broadcast_state(model)


def different_shapes() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4 + hvd.rank()), keras.layers.Dense(1)])
    state.broadcast_state(model)


def different_metrics() -> None:
    callback = hydrogen.keras.MetricAverageCallback()
    callback.on_epoch_end(0, {"loss": 0.5, ["mae", "mse"][hvd.rank()]: 0.25})


def fit_words(word: str) -> None:
    state.broadcast_state(model_of_words(word))


def model_of_words(word: str) -> keras.Model:
    words = keras.layers.TextVectorization(max_tokens=9, output_sequence_length=2)
    words.adapt(["seen by both", word])
    return keras.Sequential([keras.Input((1,), dtype="string"), words, keras.layers.Embedding(9, 2)])


def resume_with_another_vocabulary() -> None:
    saved = tables.checksums(model_of_words("yesterday"))
    tables.require_those_of(model_of_words("yesterday"), saved)
    tables.require_those_of(model_of_words("today"), saved)


def fit_bins() -> None:
    bins = keras.layers.Discretization(num_bins=3)
    bins.adapt(np.arange(9.0) * (1 + hvd.rank()))
    state.broadcast_state(keras.Sequential([keras.Input((1,)), bins]))


class OwnStep(keras.Sequential):
    """A training step of the user's own."""

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(x, training=True) - y) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


def divergence_of(action: Any) -> str:
    try:
        action()
    except RanksDivergedError as error:
        return str(error)
    return "the same"


def own_steps(folder: Path) -> dict[str, Any]:
    context = hydrogen.get_context()
    x, y = (my_rows(array) for array in data())
    context.checkpoints_uri = str(folder / "own_steps")
    context.history.clear()

    def fit(optimizer: Any, **callbacks: Any) -> None:
        model = OwnStep(make_model().layers)
        model.build((None, FEATURES))
        model.compile(optimizer)
        model.fit(x, y, epochs=2, verbose=0, callbacks=hydrogen.keras.callbacks(**callbacks))

    try:
        plain = divergence_of(lambda: fit(keras.optimizers.SGD(0.05)))
        left = {"history": list(context.history), "checkpoints": (folder / "own_steps" / "fit-0").exists()}
        context.weights_compared = False
        ours = hydrogen.keras.DistributedOptimizer(keras.optimizers.SGD(0.05))
        found = {
            "plain": plain,
            **left,
            "unchecked": divergence_of(lambda: fit(keras.optimizers.SGD(0.05), check_weights=False)),
            "believed": context.weights_compared,
            "averaged": divergence_of(lambda: fit(ours)),
            "compared": context.weights_compared,
        }
    finally:
        context.checkpoints_uri = None
    return found


def compared() -> dict[str, str]:
    """What `require_equal_weights` says of weights that one rank has changed."""

    def after(number: int, change: Any) -> str:
        keras.utils.set_random_seed(1)
        model = make_model()
        model.add(keras.layers.BatchNormalization(name="statistics"))
        if hvd.rank() == 1:
            variable = model.weights[number]
            variable.assign(change(np.asarray(variable)))
        return divergence_of(lambda: hydrogen.keras.require_equal_weights(model))

    def one_nan(values: np.ndarray) -> np.ndarray:
        return np.where(np.arange(values.size).reshape(values.shape) == 0, np.nan, values)

    return {
        "third": after(2, lambda values: values + 0.25),
        "nan": after(0, one_nan),
        "rounding": after(0, lambda values: np.nextafter(values, np.float32(9))),
        "statistics": after(6, lambda values: values + 1),
        "nothing": after(0, lambda values: values),
    }


def adapted(folder: Path) -> dict[str, Any]:
    """Each rank normalizes by its own shard, predicts something, and then trains."""
    x, y = (my_rows(array) for array in data())
    inner = keras.layers.Normalization()
    inner.adapt(x * (1 + hvd.rank()) + hvd.rank())
    model = keras.Sequential(
        [keras.Input((FEATURES,)), keras.Sequential([inner, keras.layers.Dense(3)]), keras.layers.Dense(1)]
    )
    model.compile(hydrogen.keras.DistributedOptimizer("sgd"), "mse")
    rows = data()[0][:5]
    before = model.predict(rows, verbose=0)
    model.train_on_batch(x[:4], y[:4])  # traced, with this rank's own mean inside
    model.fit(x, y, epochs=1, verbose=0, callbacks=hydrogen.keras.callbacks())
    found = {"before": before.tolist(), "after": model.predict(rows, verbose=0).tolist()}
    found["unbuilt"] = unbuilt_normalized(x, y, rows)
    found["everywhere"] = learnt_from_all_rows(x)
    if hvd.rank() == 0:
        model.save(folder / "adapted.keras")
        found["loaded"] = keras.models.load_model(folder / "adapted.keras").predict(rows, verbose=0).tolist()
    return found


def unbuilt_normalized(x: np.ndarray, y: np.ndarray, rows: np.ndarray) -> Any:
    """Without an Input: the statistics are broadcast while the training step is traced."""
    scale = keras.layers.Normalization()
    scale.adapt(x + hvd.rank())
    model = keras.Sequential([scale, keras.layers.Dense(1)])
    model.compile(hydrogen.keras.DistributedOptimizer("sgd"), "mse")
    model.fit(x, y, epochs=1, verbose=0, callbacks=hydrogen.keras.callbacks())
    return model.predict(rows, verbose=0).tolist()


def learnt_from_all_rows(x: np.ndarray) -> dict[str, Any]:
    """What docs/keras.md shows: layers that are adapted to the rows of all ranks."""
    scale = keras.layers.Normalization()
    scale.adapt(x)
    mean = hvd.allreduce(scale.mean, name="mean")
    variance = hvd.allreduce(scale.variance + scale.mean**2, name="square") - mean**2
    scale = keras.layers.Normalization(mean=mean.numpy().ravel(), variance=variance.numpy().ravel())
    whole = keras.layers.Normalization()
    whole.adapt(data()[0])
    lookup = keras.layers.StringLookup()
    lookup.adapt(["seen by both", f"only on {hvd.rank()}"])
    words = hvd.allgather_object(lookup.get_vocabulary(include_special_tokens=False))
    lookup = keras.layers.StringLookup(vocabulary=sorted(set().union(*words)))
    return {
        "error": float(np.abs(np.asarray(scale(x)) - np.asarray(whole(x))).max()),
        "words": lookup.get_vocabulary(include_special_tokens=False),
    }


def vectors(folder: Path) -> dict[str, Any]:
    """A metric with a number for each class."""
    own: list[list[float]] = []
    seen: list[list[float]] = []

    class Own(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            own.append(logs["f1_score"].tolist())

    class Seen(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append(logs["f1_score"].tolist())

    context = hydrogen.get_context()
    context.events_uri = (folder / "vectors").as_uri()
    context.history.clear()
    keras.utils.set_random_seed(4)
    x, _ = data()
    labels = np.eye(3, dtype="float32")[np.digitize(x[:, 0], [-0.5, 0.5])]
    model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(3, activation="softmax")])
    adam = hydrogen.keras.DistributedOptimizer("adam")
    model.compile(adam, "categorical_crossentropy", metrics=[keras.metrics.F1Score()])
    rows = my_rows(x), my_rows(labels)
    callbacks = [Own(), *hydrogen.keras.callbacks(), Seen()]
    model.fit(*rows, validation_data=rows, epochs=2, verbose=0, callbacks=callbacks)
    context.events_uri = None
    return {
        "own": own,
        "seen": seen,
        "history": list(context.history),
        "text": dump_history(context.history),
        "events": events(folder / "vectors" / "validation") if hvd.rank() == 0 else {},
    }


def dropout_seeds() -> dict[str, Any]:
    found = {}
    for name, seed in (("same", 5), ("different", 5 + hvd.rank())):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dropout(0.5), keras.layers.Dense(1)])
        model.compile(hydrogen.keras.DistributedOptimizer("sgd"), "mse")
        before = [np.asarray(variable).tolist() for variable in state._seed_variables(model)]
        callback = hydrogen.keras.BroadcastCallback()
        callback.set_model(model)
        callback.on_train_begin()
        after = [np.asarray(variable).tolist() for variable in state._seed_variables(model)]
        mask = np.asarray(model.layers[0](np.ones((1, 64), "float32"), training=True) > 0)
        found[name] = {
            "before": before,
            "after": after,
            "mask": mask.tolist(),
            "weights": weights_of(model).tolist(),
        }
    return found


def early_stopping() -> dict[str, Any]:
    """Rank 0's loss falls, rank 1's rises by more: the mean rises, and both must stop."""
    seen: list[float] = []

    class Loss(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["trend"] = -1.0 * epoch if hvd.rank() == 0 else 3.0 * epoch
            if hvd.rank() == 0:  # another order of the keys on every rank
                logs["other"] = logs.pop("loss")
            else:
                logs.update({"other": logs.pop("loss"), "trend": logs.pop("trend")})

    class Seen(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            seen.append(logs["trend"])

    x, y = data()
    model = make_model()
    model.compile(hydrogen.keras.DistributedOptimizer("sgd"), "mse")
    history = model.fit(
        my_rows(x),
        my_rows(y),
        epochs=6,
        verbose=0,
        callbacks=[
            Loss(),
            hydrogen.keras.MetricAverageCallback(),
            Seen(),
            keras.callbacks.EarlyStopping(monitor="trend", mode="min", patience=2),
        ],
    )
    return {"seen": seen, "epochs": len(history.epoch), "other": history.history["other"]}


def warmup() -> dict[str, Any]:
    rates: list[float] = []

    class Rates(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            rates.append(float(self.model.optimizer.learning_rate))

    x, y = data()
    model = make_model()
    model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.SGD(0.2)), "mse")
    model.fit(
        my_rows(x),
        my_rows(y),
        batch_size=BATCH // 2,
        epochs=3,
        verbose=0,
        callbacks=[*hydrogen.keras.callbacks(warmup_epochs=2), Rates()],
    )
    return {"rates": rates, "steps": STEPS}


class Shard:
    """As DatasetShard: the order of the rows is a function of the epoch."""

    name = "train"

    def __init__(self) -> None:
        self.epoch = 0
        self.error = None
        self.opened: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return BATCH * STEPS // hvd.size()

    def batches(self) -> Any:
        self.opened.append(self.epoch)
        x, y = (my_rows(array) for array in data())
        order = np.random.default_rng([11, self.epoch]).permutation(len(x))
        for part in np.split(order, STEPS):
            yield x[part], y[part]

    def to_tf(self) -> tf.data.Dataset:
        size = BATCH // hvd.size()
        signature = (tf.TensorSpec((size, FEATURES)), tf.TensorSpec((size, 1)))
        dataset = tf.data.Dataset.from_generator(self.batches, output_signature=signature)
        return dataset.apply(tf.data.experimental.assert_cardinality(STEPS))


def defaults(folder: Path) -> dict[str, Any]:
    context = hydrogen.get_context()
    context.shards["train", 0, True] = Shard()
    context.events_uri = (folder / "events").as_uri()
    context.history.clear()
    model = make_model()
    model.compile(hydrogen.keras.DistributedOptimizer("sgd"), "mse", metrics=["mae"])
    rows = context.shards["train", 0, True].to_tf()
    model.fit(rows, validation_data=rows, epochs=2, verbose=0, callbacks=hydrogen.keras.callbacks())
    context.events_uri = None
    return {
        "history": list(context.history),
        "opened": context.shards.pop(("train", 0, True)).opened,
        "events": {
            run: events(folder / "events" / run) for run in ("train", "validation") if hvd.rank() == 0
        },
    }


def events(folder: Path) -> dict[str, list[list[float]]]:
    """What TensorBoard would read: tag -> steps and values."""
    (file,) = folder.iterdir()
    found: dict[str, list[list[float]]] = {}
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        event = Event.FromString(record)
        for value in event.summary.value:
            found.setdefault(value.tag, []).append([event.step, value.simple_value])
    return found


# --- resume ------------------------------------------------------------------------------------------


class Stopped(Exception):
    """The training is cut off."""


class StopBefore(keras.callbacks.Callback):
    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == self.epoch:
            raise Stopped


def resumable(checkpoints: str | None, stop_before: int | None = None) -> list[dict[str, Any]]:
    """Two fits in a row, of four and two epochs, with dropout and Adam."""
    context = hydrogen.get_context()
    context.checkpoints_uri = checkpoints
    context.resumed_from_epoch = None
    context.history.clear()
    shard = context.shards["train", 0, True] = Shard()
    keras.utils.set_random_seed(21)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dropout(0.25),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(1),
        ]
    )
    rows = shard.to_tf()
    stop = [] if stop_before is None else [StopBefore(stop_before)]
    try:
        for epochs, rate in ((4, 0.01), (2, 0.001)):
            model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(rate)), "mse")
            model.fit(rows, epochs=epochs, verbose=0, callbacks=[*hydrogen.keras.callbacks(), *stop])
    except Stopped:
        pass
    seeds = [np.asarray(variable).tolist() for variable in state._seed_variables(model)]
    mine = {
        "weights": weights_of(model).tolist(),
        "seeds": seeds,
        "opened": shard.opened,
        "resumed": context.resumed_from_epoch,
        "history": [line["epoch"] for line in context.history],
        "losses": [line["loss"] for line in context.history],
    }
    everyone: list[dict[str, Any]] = hvd.allgather_object(mine, name="resumable")
    return everyone


class StopWithin(keras.callbacks.Callback):
    """Cut off the training before a batch of the second epoch."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if (self.epoch, batch) == (1, self.batch):
            raise Stopped


def partly(rows: str, checkpoints: str | None, stop_before: int | None = None) -> list[dict[str, Any]]:
    """Three epochs of 40 steps over Parquet, with a checkpoint every few milliseconds."""
    context = hydrogen.get_context()
    context.checkpoints_uri = checkpoints
    context.resumed_from_epoch = context.partial_epoch = None
    context.history.clear()
    context.shards.clear()
    context.datasets = {"train": rows}
    keras.utils.set_random_seed(22)
    model = keras.Sequential(
        [
            keras.Input((FEATURES,)),
            keras.layers.Dense(8, activation="tanh"),
            keras.layers.Dropout(0.25),
            keras.layers.Dense(1),
        ]
    )
    model.compile(hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(0.01)), "mse")
    shard = hydrogen.get_dataset_shard("train").to_tf(len_of_batch(), label="y")
    stop = [] if stop_before is None else [StopWithin(stop_before)]
    callbacks = hydrogen.keras.callbacks(checkpoint_every_s=0.001, tensorboard=False)
    with contextlib.suppress(Stopped):
        model.fit(shard, epochs=3, verbose=0, callbacks=[*callbacks, *stop])
    mine = {
        "weights": weights_of(model).tolist(),
        "resumed": context.resumed_from_epoch,
        "partial": context.partial_epoch,
        "history": [line["epoch"] for line in context.history],
    }
    everyone: list[dict[str, Any]] = hvd.allgather_object(mine, name="partly")
    return everyone


class Adversaries(keras.Model):
    """Two networks against each other, with an optimizer each, as a GAN has them."""

    def __init__(self, seen: np.ndarray) -> None:
        super().__init__()
        scale = keras.layers.Normalization()
        scale.adapt(seen)
        self.maker = keras.Sequential([keras.Input((FEATURES,)), scale, keras.layers.Dense(FEATURES)])
        self.judge = keras.Sequential([keras.Input((FEATURES,)), keras.layers.Dense(1)])

    def compile(self, maker: Any, judge: Any) -> None:
        super().compile()
        self.maker_optimizer = maker
        self.others = {"judge": [judge]}

    def train_step(self, batch: Any) -> dict[str, Any]:
        x, _ = batch
        losses = {}
        for name, network, optimizer, sign in (
            ("judge", self.judge, self.others["judge"][0], 1.0),
            ("maker", self.maker, self.maker_optimizer, -1.0),
        ):
            with tf.GradientTape() as tape:
                difference = self.judge(self.maker(x)) - self.judge(x)
                loss = sign * tf.reduce_mean(tf.tanh(difference))
            gradients = tape.gradient(loss, network.trainable_variables)
            optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
            losses[name] = loss
        return losses


def adversarial(checkpoints: str | None, *, shift: float = 0.0, stop_before: int | None = None) -> Any:
    """Four epochs. Rank 1's rates are wrong, and each rank normalizes by a shard of its own, shifted."""
    context = hydrogen.get_context()
    context.checkpoints_uri = checkpoints
    context.history.clear()
    context.shards["train", 0, True] = Shard()
    keras.utils.set_random_seed(23)
    model = Adversaries(my_rows(data()[0]) + hvd.rank() + shift)
    distributed = hydrogen.keras.DistributedOptimizer
    wrong = 1 + hvd.rank() + shift
    model.compile(
        distributed(keras.optimizers.Adam(0.01 * wrong)), distributed(keras.optimizers.Adam(0.02 * wrong))
    )
    stop = [] if stop_before is None else [StopBefore(stop_before)]
    callbacks = hydrogen.keras.callbacks(tensorboard=False)
    with contextlib.suppress(Stopped):
        model.fit(
            context.shards["train", 0, True].to_tf(), epochs=4, verbose=0, callbacks=[*callbacks, *stop]
        )
    x = data()[0][:5]
    mine = {
        "weights": weights_of(model).tolist(),
        "made": np.asarray(model.maker(x)).tolist(),
        "rates": [float(model.maker_optimizer.learning_rate), float(model.others["judge"][0].learning_rate)],
        "steps": [int(model.maker_optimizer.iterations), int(model.others["judge"][0].iterations)],
    }
    context.checkpoints_uri = None
    everyone: list[dict[str, Any]] = hvd.allgather_object(mine, name="adversarial")
    return everyone


def len_of_batch() -> int:
    """Rows of a step on one rank: 40 steps an epoch."""
    return len(hydrogen.get_dataset_shard("train")) // 40


# --- the launches --------------------------------------------------------------------------------------


def everything(folder: str) -> dict[str, Any]:
    hvd.init()
    root = Path(folder)
    return {
        "averaging": averaging(root),
        "behaviour": behaviour(root),
        "unbroken": resumable(None),
        "stopped": resumable(str(root / "checkpoints"), stop_before=3),
        "adversarial_unbroken": adversarial(None),
        "adversarial_stopped": adversarial(str(root / "adversarial"), stop_before=2),
        "partly_unbroken": partly(str(root / "rows.parquet"), None),
        "partly_stopped": partly(str(root / "rows.parquet"), str(root / "partly"), stop_before=23),
    }


def resumed(folder: str) -> dict[str, Any]:
    hvd.init()
    root = Path(folder)
    return {
        "resumed": resumable(str(root / "checkpoints")),
        "adversarial_resumed": adversarial(str(root / "adversarial"), shift=0.5),
        "partly_resumed": partly(str(root / "rows.parquet"), str(root / "partly")),
    }
