"""Names of Keras 2 that Horovod's documentation and examples use, and Keras 3 has dropped.

Only those that say the same thing under Keras 3. They are added when Horovod is imported, to the classes of
Keras in this process.
"""

from __future__ import annotations

import functools
from typing import Any

import keras
import tensorflow as tf

from airflow_hydrogen.runtime.keras.reduction import plain


class CallableList(list[Any]):
    """`optimizer.variables`, which Keras 2 takes with and without parentheses."""

    def __call__(self) -> CallableList:
        """Itself."""
        return self


@functools.cache
def install() -> None:
    """Add them, once."""
    _callable_variables(keras.optimizers.Optimizer)
    _callable_variables(keras.optimizers.LossScaleOptimizer)
    _compile_takes_more()
    # `opt.lr`, as `K.set_value(opt.lr, 0.1)` and `opt.lr.assign(0.1)` use it.
    keras.optimizers.Optimizer.lr = property(
        lambda self: self.learning_rate, lambda self, rate: setattr(self, "learning_rate", rate)
    )
    set_value = tf.keras.backend.set_value
    # Keras's own asks a variable's type for its name, and it is a string.
    tf.keras.backend.set_value = functools.wraps(set_value)(lambda x, value: plain(x).assign(value))


def _callable_variables(optimizer: type) -> None:
    base = next(kind for kind in optimizer.__mro__ if "variables" in vars(kind))
    variables: property = vars(base)["variables"]
    getter = variables.fget
    assert getter is not None
    base.variables = property(lambda self: CallableList(getter(self)), doc=variables.__doc__)  # type: ignore[attr-defined]


def _compile_takes_more() -> None:
    """`compile(experimental_run_tf_function=...)`, which has had no effect since TensorFlow 2.4."""
    # The class that has it: Keras compiles what it loads only where `compile` is that class's own.
    trainer = next(kind for kind in keras.Model.__mro__ if "compile" in vars(kind))
    compile_ = trainer.compile

    @functools.wraps(compile_)
    def compile(self: Any, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("experimental_run_tf_function", None)
        return compile_(self, *args, **kwargs)

    trainer.compile = compile
