"""Digits with a state that is committed, in the style of Horovod's elastic examples for TensorFlow 2."""

import argparse
import os
import signal

import horovod.tensorflow.keras as hvd
import numpy as np
import tensorflow as tf

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True)
parser.add_argument("--out", required=True)
parser.add_argument(
    "--die-at", type=int, default=0, help="kill rank 1 at this step of the second epoch, once"
)
args = parser.parse_args()

hvd.init()

with np.load(args.data) as stored:
    images, labels = stored["images"], stored["labels"]
dataset = tf.data.Dataset.from_tensor_slices(
    (tf.cast(images[..., tf.newaxis] / 255.0, tf.float32), tf.cast(labels, tf.int64))
)
dataset = dataset.shard(hvd.size(), hvd.rank()).batch(64 // hvd.size())

tf.keras.utils.set_random_seed(7)
model = tf.keras.Sequential(
    [
        tf.keras.Input((12, 12, 1)),
        tf.keras.layers.Flatten(),
        tf.keras.layers.Dense(16, activation="relu"),
        tf.keras.layers.Dense(10, activation="softmax"),
    ]
)

scaled_lr = 0.001 * hvd.size()
opt = tf.optimizers.Adam(scaled_lr)

# Horovod: add Horovod DistributedOptimizer.
opt = hvd.DistributedOptimizer(opt, backward_passes_per_step=1, average_aggregated_gradients=True)

model.compile(
    loss=tf.losses.SparseCategoricalCrossentropy(),
    optimizer=opt,
    metrics=["accuracy"],
    experimental_run_tf_function=False,
)

state = hvd.elastic.KerasState(model, batch=0, epoch=0)


def on_state_reset():
    tf.keras.backend.set_value(state.model.optimizer.lr, 0.001 * hvd.size())


state.register_reset_callbacks([on_state_reset])


class Accident(tf.keras.callbacks.Callback):
    def on_batch_begin(self, batch, logs=None):
        mark = args.out + "/died"
        if args.die_at and hvd.rank() == 1 and state.epoch == 1 and batch == args.die_at:
            if not os.path.exists(mark):
                with open(mark, "w"):
                    os.kill(os.getpid(), signal.SIGKILL)


callbacks = [
    hvd.elastic.UpdateEpochStateCallback(state),
    hvd.elastic.UpdateBatchStateCallback(state),
    hvd.elastic.CommitStateCallback(state),
    Accident(),
]


# Horovod: train in a function that is run again when workers come or go.
@hvd.elastic.run
def train(state):
    print("from epoch %d, batch %d" % (state.epoch, state.batch))
    state.model.fit(dataset, epochs=3 - state.epoch, callbacks=callbacks, verbose=2 if hvd.rank() == 0 else 0)


train(state)

np.savez(
    f"{args.out}/keras_elastic-{hvd.rank()}-of-{hvd.size()}.npz",
    *model.get_weights(),
    epoch=state.epoch,
    batch=state.batch,
)
