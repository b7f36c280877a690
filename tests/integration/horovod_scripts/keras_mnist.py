"""Digits with tf.keras, in the style of Horovod's examples for TensorFlow 2."""

import argparse

import horovod.tensorflow.keras as hvd
import numpy as np
import tensorflow as tf

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--lr", type=float, default=0.01)
args = parser.parse_args()


def main():
    # Horovod: initialize Horovod.
    hvd.init()

    # Horovod: pin GPU to be used to process local rank (one GPU per process)
    gpus = tf.config.experimental.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        tf.config.experimental.set_visible_devices(gpus[hvd.local_rank()], "GPU")

    with np.load(args.data) as stored:
        images, labels = stored["images"], stored["labels"]
    dataset = tf.data.Dataset.from_tensor_slices(
        (tf.cast(images[..., tf.newaxis] / 255.0, tf.float32), tf.cast(labels, tf.int64))
    )
    dataset = dataset.shard(hvd.size(), hvd.rank()).repeat().batch(64 // hvd.size())

    # Every rank begins with weights of its own: the broadcast has to make them the same.
    tf.keras.utils.set_random_seed(7 + hvd.rank())
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(8, [3, 3], activation="relu"),
            tf.keras.layers.MaxPooling2D(pool_size=(2, 2)),
            tf.keras.layers.Flatten(),
            tf.keras.layers.Dense(16, activation="relu"),
            tf.keras.layers.Dense(10, activation="softmax"),
        ]
    )

    # Horovod: adjust learning rate based on number of GPUs.
    scaled_lr = args.lr * hvd.size()
    opt = tf.optimizers.SGD(scaled_lr, momentum=0.9)

    # Horovod: add Horovod DistributedOptimizer.
    opt = hvd.DistributedOptimizer(opt, backward_passes_per_step=1, average_aggregated_gradients=True)

    # Horovod: Specify `experimental_run_tf_function=False` to ensure TensorFlow
    # uses hvd.DistributedOptimizer() to compute gradients.
    model.compile(
        loss=tf.losses.SparseCategoricalCrossentropy(),
        optimizer=opt,
        metrics=["accuracy"],
        experimental_run_tf_function=False,
    )

    callbacks = [
        # Horovod: broadcast initial variable states from rank 0 to all other processes.
        hvd.callbacks.BroadcastGlobalVariablesCallback(0),
        # Horovod: average metrics among workers at the end of every epoch.
        hvd.callbacks.MetricAverageCallback(),
    ]

    # Horovod: save checkpoints only on worker 0 to prevent other workers from corrupting them.
    if hvd.rank() == 0:
        callbacks.append(tf.keras.callbacks.ModelCheckpoint(args.out + "/checkpoint-{epoch}.h5"))

    # Horovod: write logs on worker 0.
    verbose = 2 if hvd.rank() == 0 else 0

    history = model.fit(dataset, steps_per_epoch=10, callbacks=callbacks, epochs=3, verbose=verbose)

    np.savez(
        f"{args.out}/keras_mnist-{hvd.rank()}-of-{hvd.size()}.npz",
        *model.get_weights(),
        loss=history.history["loss"],
    )


if __name__ == "__main__":
    main()
