"""Digits with warm-up, schedules and resuming, in the style of Horovod's examples for Keras."""

import argparse
import os

import horovod.keras as hvd
import keras
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument("--data", required=True)
parser.add_argument("--out", required=True)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--base-lr", type=float, default=0.01)
parser.add_argument("--fp16-allreduce", action="store_true", default=False)
args = parser.parse_args()

# Horovod: initialize Horovod.
hvd.init()

checkpoint_format = os.path.join(args.out, "advanced-{epoch}.h5")

# If set > 0, will resume training from a given checkpoint.
resume_from_epoch = 0
for try_epoch in range(args.epochs, 0, -1):
    if os.path.exists(checkpoint_format.format(epoch=try_epoch)):
        resume_from_epoch = try_epoch
        break

# Horovod: broadcast resume_from_epoch from rank 0 (which will have
# checkpoints) to other ranks.
resume_from_epoch = int(hvd.broadcast(resume_from_epoch, 0, name="resume_from_epoch"))

# Horovod: print logs on the first worker.
verbose = 2 if hvd.rank() == 0 else 0

with np.load(args.data) as stored:
    x, y = stored["images"][..., None].astype("float32") / 255, stored["labels"]
x_train, y_train = x[:512][hvd.rank() :: hvd.size()], y[:512][hvd.rank() :: hvd.size()]
x_test, y_test = x[512:][hvd.rank() :: hvd.size()], y[512:][hvd.rank() :: hvd.size()]

initial_lr = args.base_lr * hvd.size()

# Restore from a previous checkpoint, if initial_epoch is specified.
# Horovod: restore on the first worker which will broadcast both model and optimizer weights
# to other workers.
compression = hvd.Compression.fp16 if args.fp16_allreduce else hvd.Compression.none
if resume_from_epoch > 0 and hvd.rank() == 0:
    model = hvd.load_model(checkpoint_format.format(epoch=resume_from_epoch), compression=compression)
else:
    keras.utils.set_random_seed(7 + hvd.rank())
    model = keras.models.Sequential()
    model.add(keras.Input((12, 12, 1)))
    model.add(keras.layers.Conv2D(8, kernel_size=(3, 3), activation="relu"))
    model.add(keras.layers.MaxPooling2D(pool_size=(2, 2)))
    model.add(keras.layers.Flatten())
    model.add(keras.layers.Dense(10, activation="softmax"))

    # Horovod: add Horovod Distributed Optimizer.
    opt = keras.optimizers.SGD(learning_rate=initial_lr, momentum=0.9)
    opt = hvd.DistributedOptimizer(opt, compression=compression)

    model.compile(loss="sparse_categorical_crossentropy", optimizer=opt, metrics=["accuracy"])

callbacks = [
    # Horovod: broadcast initial variable states from rank 0 to all other processes.
    hvd.callbacks.BroadcastGlobalVariablesCallback(0),
    # Horovod: average metrics among workers at the end of every epoch.
    hvd.callbacks.MetricAverageCallback(),
    # Horovod: scale the learning rate `lr = 1.0` ---> `lr = 1.0 * hvd.size()` during
    # the first epochs. See https://arxiv.org/abs/1706.02677 for details.
    hvd.callbacks.LearningRateWarmupCallback(initial_lr=initial_lr, warmup_epochs=2, verbose=verbose),
    # Horovod: after the warmup reduce learning rate by 10 on the 4th epoch.
    hvd.callbacks.LearningRateScheduleCallback(
        initial_lr=initial_lr, multiplier=1.0, start_epoch=2, end_epoch=3
    ),
    hvd.callbacks.LearningRateScheduleCallback(
        initial_lr=initial_lr, multiplier=lambda epoch: 1e-1, start_epoch=3
    ),
    # Reduce the learning rate if training plateaues.
    keras.callbacks.ReduceLROnPlateau(patience=10, verbose=1),
]

# Horovod: save checkpoints only on the first worker to prevent other workers from corrupting them.
if hvd.rank() == 0:
    callbacks.append(keras.callbacks.ModelCheckpoint(checkpoint_format))

history = model.fit(
    x_train,
    y_train,
    batch_size=64 // hvd.size(),
    shuffle=False,
    callbacks=callbacks,
    epochs=args.epochs,
    initial_epoch=resume_from_epoch,
    verbose=verbose,
    validation_data=(x_test, y_test),
)

# Evaluate the model on the full data set.
score = hvd.allreduce(model.evaluate(x_test, y_test, verbose=0))
if verbose:
    print("Test loss: %.6f, accuracy: %.6f" % tuple(score.numpy()))

np.savez(
    f"{args.out}/keras_advanced-{hvd.rank()}-of-{hvd.size()}.npz",
    *model.get_weights(),
    *[variable.numpy() for variable in model.optimizer.momentums],
    lr=history.history["lr"],
    val_loss=history.history["val_loss"],
    resumed=resume_from_epoch,
)
