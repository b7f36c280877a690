"""Horovod for Keras 3: the optimizer and the callbacks of a training on several ranks.

Horovod's own (`horovod.keras`) average nothing or fail under Keras 3. With one rank everything here does what
plain Keras does.
"""

from __future__ import annotations

from airflow_hydrogen.runtime.keras.checkpoint import CheckpointCallback
from airflow_hydrogen.runtime.keras.defaults import callbacks
from airflow_hydrogen.runtime.keras.equality import EqualWeightsCallback, require_equal_weights
from airflow_hydrogen.runtime.keras.history import EventsCallback, HistoryCallback, ShardEpochCallback
from airflow_hydrogen.runtime.keras.optimizer import DistributedOptimizer, is_distributed
from airflow_hydrogen.runtime.keras.synchronize import BroadcastCallback, MetricAverageCallback
from airflow_hydrogen.runtime.keras.warmup import LearningRateWarmupCallback
from airflow_hydrogen.runtime.keras.watching import NonFiniteLossCallback, ProgressCallback

__all__ = [
    "BroadcastCallback",
    "CheckpointCallback",
    "DistributedOptimizer",
    "EqualWeightsCallback",
    "EventsCallback",
    "HistoryCallback",
    "LearningRateWarmupCallback",
    "MetricAverageCallback",
    "NonFiniteLossCallback",
    "ProgressCallback",
    "ShardEpochCallback",
    "callbacks",
    "is_distributed",
    "require_equal_weights",
]
