"""Horovod's Keras API under Keras 3: scripts written for `horovodrun` and Keras 2 run as they are.

What of Horovod 0.28 cannot work with Keras 3 is replaced in memory when it is imported, by what does as
Horovod's documentation says. In a gang that happens by itself. Under `horovodrun` it is asked for:

    horovodrun -np 2 python -m airflow_hydrogen.runtime.horovod_bridge script.py --epochs 3

or by `horovod_bridge.install()` as the first thing that a script does. docs/horovodrun.md has the API, line
by line.
"""

from __future__ import annotations

from airflow_hydrogen.runtime.rank.horovod_imports import install

__all__ = ["install"]
