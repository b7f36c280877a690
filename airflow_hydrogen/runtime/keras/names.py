"""Names of operations, the same on every rank.

Horovod matches the tensors of the ranks by the names of their operations, and makes them of the names of
variables and layers, which Keras counts up in each process. A rank that has loaded a model where the others
have built one would be waited for without end.
"""

from __future__ import annotations

import weakref
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

# Outermost graph -> how often each name was given in it.
_given: weakref.WeakKeyDictionary[Any, Counter[str]] = weakref.WeakKeyDictionary()


def name_of(kind: str, tensors: Sequence[Any]) -> str:
    """The first part of the names of operations on some tensors, of which some may be None.

    The same at every step: names that grew from step to step would each be negotiated anew. Eagerly one
    operation ends before the next begins, so that names may repeat; the shapes are in them, because Horovod
    remembers those by name. In a graph operations run at the same time: they are told apart by the outermost
    function, whose name is the program's, and by their number in it. TensorFlow counts the graphs inside of
    it, branches and loops, in each process.
    """
    if tf.executing_eagerly():
        shapes = [None if t is None else (tf.as_dtype(t.dtype).name, str(t.shape)) for t in tensors]
        return f"hydrogen_{kind}_{zlib.crc32(repr(shapes).encode()):08x}"
    graph = tf.compat.v1.get_default_graph()
    while getattr(graph, "outer_graph", None) is not None and graph.outer_graph.building_function:
        graph = graph.outer_graph
    name = f"{kind}_{getattr(graph, 'name', 'graph')}"
    counter = _given.setdefault(graph, Counter())
    counter[name] += 1
    return f"hydrogen_{name}_{counter[name]}"
