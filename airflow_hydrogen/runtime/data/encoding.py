"""Columns -> the arrays that a training sees: one matrix or named inputs, with labels or without."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from airflow_hydrogen.contract.errors import ColumnTypeError
from airflow_hydrogen.contract.signatures import ColumnSpec
from airflow_hydrogen.runtime.data.columns import stack, to_numpy

Layout = Literal["matrix", "columns"]


@dataclass(frozen=True)
class FeatureLayout:
    """How columns were turned into the model's input: the model's signature is made from it."""

    layout: Layout
    features: tuple[ColumnSpec, ...]


class Encoder:
    """A table -> the arrays of the model's input, and of the labels.

    Args:
        layout: of the features.
        labels: columns of the labels.
        single_label: the label is an array; else a dict of arrays.

    Raises:
        ColumnTypeError: a column that does not go into a matrix.
    """

    def __init__(self, layout: FeatureLayout, labels: tuple[ColumnSpec, ...], single_label: bool) -> None:
        self._layout, self._labels, self._single_label = layout, labels, single_label
        if layout.layout == "matrix":
            for spec in layout.features:
                if spec.dtype == "string":
                    raise ColumnTypeError(
                        spec.name, "a number", "string", "a matrix holds numbers: use layout='columns'"
                    )

    @property
    def columns(self) -> list[str]:
        """The columns to read."""
        return [spec.name for spec in (*self._layout.features, *self._labels)]

    def __call__(self, table: pa.Table) -> Any:
        """The features, or (features, labels).

        Raises:
            NullValueError, RaggedTensorError: naming the column.
        """
        arrays = {
            spec.name: to_numpy(spec.name, table.column(spec.name), spec.width)
            for spec in (*self._layout.features, *self._labels)
        }
        features = [arrays[spec.name] for spec in self._layout.features]
        inputs: Any = (
            stack(features)
            if self._layout.layout == "matrix"
            else {spec.name: arrays[spec.name] for spec in self._layout.features}
        )
        if not self._labels:
            return inputs
        if self._single_label:
            return inputs, arrays[self._labels[0].name]
        return inputs, {spec.name: arrays[spec.name] for spec in self._labels}

    def tensor_specs(self, tf: Any) -> Any:
        """TensorFlow's description of what `__call__` returns."""

        def spec_of(spec: ColumnSpec) -> Any:
            shape = (None,) if spec.width is None else (None, spec.width)
            return tf.TensorSpec(
                shape, tf.string if spec.dtype == "string" else tf.dtypes.as_dtype(spec.dtype)
            )

        features = self._layout.features
        inputs: Any = (
            tf.TensorSpec((None, sum(spec.values for spec in features)), tf.float32)
            if self._layout.layout == "matrix"
            else {spec.name: spec_of(spec) for spec in features}
        )
        if not self._labels:
            return inputs
        if self._single_label:
            return inputs, spec_of(self._labels[0])
        return inputs, {spec.name: spec_of(spec) for spec in self._labels}
