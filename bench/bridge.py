"""Training rows/s of Horovod's Keras example under the bridge, against this package's own API.

The same model on two ranks, in turns of half a second; neither start is in it.
"""

from __future__ import annotations

from pathlib import Path

from bench.measure import RANKS, Result, Target, compare
from bench.turns import Contender, meter, rates_in_turns

_BATCH_ROWS = 32
_ROWS = 160 * _BATCH_ROWS
_EPOCHS = 10_000  # it is told when there is enough


def train(notes: str, api: str) -> None:
    """On every rank: the network of Horovod's digits example, on noise.

    Args:
        notes: folder of the contender.
        api: "horovod" or "hydrogen".
    """
    import horovod.tensorflow.keras as hvd
    import numpy as np
    import tensorflow as tf

    import airflow_hydrogen.runtime as hydrogen

    hvd.init()
    random = np.random.default_rng(hvd.rank())
    images = random.random((_ROWS, 28, 28, 1), dtype="float32")
    labels = random.integers(0, 10, _ROWS)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).repeat().batch(_BATCH_ROWS)
    model = tf.keras.Sequential(
        [
            tf.keras.Input((28, 28, 1)),
            tf.keras.layers.Conv2D(32, [3, 3], activation="relu"),
            tf.keras.layers.Conv2D(64, [3, 3], activation="relu"),
            tf.keras.layers.MaxPooling2D(pool_size=(2, 2)),
            tf.keras.layers.Dropout(0.25),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(128, activation="relu"),
            tf.keras.layers.Dropout(0.5),
            tf.keras.layers.Dense(10, activation="softmax"),
        ]
    )
    optimizer = tf.optimizers.Adam(0.001 * hvd.size())
    if api == "horovod":
        optimizer = hvd.DistributedOptimizer(optimizer)
        callbacks = [hvd.callbacks.BroadcastGlobalVariablesCallback(0), hvd.callbacks.MetricAverageCallback()]
    else:
        optimizer = hydrogen.keras.DistributedOptimizer(optimizer)
        callbacks = [hydrogen.keras.BroadcastCallback(), hydrogen.keras.MetricAverageCallback()]
    model.compile(optimizer, tf.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    model.fit(
        dataset,
        steps_per_epoch=_ROWS // _BATCH_ROWS // 8,
        epochs=_EPOCHS,
        callbacks=[*callbacks, meter(notes, hvd.rank())],
        shuffle=False,
        verbose=0,
    )


def measure(folder: Path, quick: bool) -> list[Result]:
    """Start both, and let them move in turns."""
    from airflow_hydrogen.runtime import HorovodRunner

    def contender(api: str) -> Contender:
        runner = HorovodRunner(-RANKS, driver_log_verbosity="log_callback_only")
        return Contender(folder / api, lambda notes: runner.run("bench.bridge:train", notes=notes, api=api))

    scale = _BATCH_ROWS * RANKS
    pairs = rates_in_turns(contender("horovod"), contender("hydrogen"), blocks=1 if quick else 6)
    return [
        compare(
            "Horovod's Keras example under the bridge, 2 ranks",
            [(mine * scale, other * scale) for mine, other in pairs],
            unit="rows/s",
            against="hydrogen.keras",
            target=Target(">=", 0.99),
        )
    ]
