"""Single-node Keras, plus Horovod's hooks: the entry point of the training DAG."""

from __future__ import annotations

from typing import Any

import airflow_hydrogen.runtime as hydrogen

CARRIERS = ["9E", "AA", "AS", "B6", "DL", "EV", "F9", "FL", "HA", "MQ", "OO", "UA", "US", "VX", "WN", "YV"]
ORIGINS = ["EWR", "JFK", "LGA"]
AIRPORT_BINS = 512


def build_model() -> Any:
    """A network with two outputs: the delay in minutes and the chance of more than 15."""
    import keras

    from flights.features import NUMBERS

    inputs = {name: keras.Input((1,), name=name) for name in NUMBERS}
    scaled = [
        keras.layers.Normalization(mean=mean, variance=deviation**2)(inputs[name])
        for name, (mean, deviation) in NUMBERS.items()
    ]
    words = {name: keras.Input((1,), name=name, dtype="string") for name in ("carrier", "origin", "dest")}
    encoded = [
        keras.layers.StringLookup(vocabulary=CARRIERS, output_mode="one_hot")(words["carrier"]),
        keras.layers.StringLookup(vocabulary=ORIGINS, output_mode="one_hot")(words["origin"]),
        keras.layers.Flatten()(
            keras.layers.Embedding(AIRPORT_BINS, 8)(keras.layers.Hashing(AIRPORT_BINS)(words["dest"]))
        ),
    ]
    hidden = keras.layers.Concatenate()([*scaled, *encoded])
    for width in (128, 64):
        hidden = keras.layers.Dense(width, activation="relu")(hidden)
    outputs = {
        "delay": keras.layers.Dense(1, name="delay")(hidden),
        "late": keras.layers.Dense(1, activation="sigmoid", name="late")(hidden),
    }
    return keras.Model({**inputs, **words}, outputs)


def main(epochs: int = 4, learning_rate: float = 1e-3, batch_size: int = 512) -> Any:
    """Train on every rank's shard and return the model, which rank 0 publishes.

    Args:
        epochs: passes over the data.
        learning_rate: of one rank; it grows with the number of ranks, as the batch does.
        batch_size: rows of a step on one rank.
    """
    import keras

    from flights.features import LABELS, NUMBERS, WORDS

    context = hydrogen.get_context()
    keras.utils.set_random_seed(2013)
    rows = hydrogen.get_dataset_shard("train").to_tf(
        batch_size, label=LABELS, features=[*NUMBERS, *WORDS], layout="columns"
    )
    model = build_model()
    model.compile(
        hydrogen.keras.DistributedOptimizer(keras.optimizers.Adam(learning_rate * context.size)),
        # The delay's tail is long: minutes are divided by 40 so that both losses weigh alike.
        loss={"delay": "mse", "late": "binary_crossentropy"},
        loss_weights={"delay": 1 / 40**2, "late": 1.0},
    )
    model.fit(
        rows,
        epochs=epochs,
        callbacks=hydrogen.keras.callbacks(),
        verbose=0,
    )
    return model
