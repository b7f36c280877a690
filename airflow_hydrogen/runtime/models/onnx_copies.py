"""The weights of an ONNX model once in the memory of a host, however many processes score with it.

ONNX Runtime reads the weights of a file into each process, and packs most of them in the order in which its
kernels want them. A session cannot be shared: it has threads, which a fork loses. So the first process of a
host has the model written as it would be in memory, with all these weights in a file that sessions map.

That file is good for one processor and one version of ONNX Runtime. It is written by a fresh process, which
gives its memory back, and used where it predicts the very same bits.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from airflow_hydrogen.contract.signatures import Signature
from airflow_hydrogen.runtime import afresh, devices
from airflow_hydrogen.runtime.models import engines, host_copies, onnx_session
from airflow_hydrogen.runtime.models.directory import HeldModel

FILE = "packed.onnx"
_ROWS = (4, 1)  # of a single one kernels may take another way
_WORDS = np.array(["", "a"], object)


@dataclass(frozen=True)
class Packing:
    """A model to write as it is in memory.

    Attributes:
        uri: the model's, for messages.
        source: its ONNX file.
        folder: where it is written.
        signature: the model's.
        is_twin: see `onnx_session.load`.
    """

    uri: str
    source: Path
    folder: Path
    signature: Signature
    is_twin: bool


@contextmanager
def shared(held: HeldModel, entry: str, *, is_twin: bool) -> Iterator[Path | None]:
    """The ONNX file of a model whose weights all processes of this host map, for as long as the block lasts.

    Args:
        held: the model.
        entry: its ONNX file, below its folder.
        is_twin: see `onnx_session.load`.

    Returns:
        None where each process has the weights for itself: they are few, or cannot be shared.

    Raises:
        ModelChangedError: the model was written while it was read.
    """
    if not _is_worth_it(held, entry, is_twin) or importlib.util.find_spec("onnxruntime") is None:
        yield None
        return
    os.environ.setdefault(*engines.NO_TELEMETRY)
    import onnxruntime

    def make(folder: Path) -> str | None:
        packing = Packing(held.uri, held.folder / entry, folder, held.manifest.signature, is_twin)
        try:
            return afresh.call(pack, packing, folder.parent)
        except afresh.FreshProcessError as error:
            return str(error)

    with host_copies.hold(held, f"onnx-{onnxruntime.__version__}", make) as folder:
        yield folder and folder / FILE


def _is_worth_it(held: HeldModel, entry: str, is_twin: bool) -> bool:
    """Whether there are many weights, or files of them in the model's folder, where they would be mapped.

    What a GPU computes with lies in its own memory.
    """
    files = [file for file in held.manifest.files if not is_twin or file.path == entry]
    is_large = sum(file.size for file in files) >= host_copies.SHARED_BYTES
    return host_copies.CAN_SHARE and not devices.held() and (is_large or len(files) > 1)


def pack(packing: Packing) -> str | None:
    """Write a model as it is in memory, in this process, and hold it against the model.

    Returns:
        Why it is not to be used; None where it predicts the same.
    """
    uri, file, signature = packing.uri, packing.folder / FILE, packing.signature
    try:
        model = onnx_session.load(uri, packing.source, signature, 1, is_twin=packing.is_twin, packed=file)
        copy = onnx_session.load(uri, file, signature, 1, is_twin=packing.is_twin, is_packed=True)
        answers = [(model(rows), copy(rows)) for rows in _made_up_rows(signature)]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    for expected, found in answers:
        if not all(_is_same(expected[name], found[name]) for name in expected):
            return "the model written for this host predicts something else"
    return None


def _made_up_rows(signature: Signature) -> Iterator[dict[str, np.ndarray]]:
    """Rows that most models take: places of an embedding are 0 and 1."""
    random = np.random.default_rng(0)
    for rows in _ROWS:
        found = {}
        for spec in signature.inputs:
            shape = (rows, *spec.shape)
            if spec.dtype == "string":
                found[spec.name] = random.choice(_WORDS, shape)
            elif "float" in spec.dtype:
                found[spec.name] = random.standard_normal(shape).astype(spec.dtype)
            else:
                found[spec.name] = random.integers(0, 2, shape).astype(spec.dtype)
        yield found


def _is_same(expected: np.ndarray, found: np.ndarray) -> bool:
    """Whether two tensors have the same bits, NaN among them."""
    expected, found = np.asarray(expected), np.asarray(found)
    if expected.dtype == object:
        return bool(expected.tolist() == found.tolist())
    are_alike = (expected.dtype, expected.shape) == (found.dtype, found.shape)
    return are_alike and expected.tobytes() == found.tobytes()
