"""What runs a model: the framework that it was trained with, or ONNX Runtime."""

from __future__ import annotations

import importlib.util

from airflow_hydrogen.contract.errors import EngineError
from airflow_hydrogen.contract.jobs import Engine
from airflow_hydrogen.runtime.models.manifest import Manifest

ONNX = "onnx"
TENSORFLOW = "tensorflow"
TORCH = "torch"
PREDICTOR = "predictor"
"""Neither: a function of the user's loads the model."""

NO_TELEMETRY = ("ORT_DISABLE_TELEMETRY", "1")
"""What ONNX Runtime reads when it is imported. Else it tells its makers of its use, by threads of its own."""

_OF_FRAMEWORKS = {"keras": TENSORFLOW, "tensorflow": TENSORFLOW, ONNX: ONNX, TORCH: TORCH}
_WITHOUT_ONNX = {
    "keras": ": train it with exports=('onnx',), and look in its log where it has none",
    TORCH: ": torch.onnx.export makes an ONNX file of the model, which can be published as well",
}


def choose(uri: str, manifest: Manifest, wanted: Engine, predictor: str | None, gpus: float = 0) -> str:
    """The engine that scores with a model. It is chosen once, so that all workers have the same.

    Args:
        uri: the model's, for messages.
        manifest: the model's.
        wanted: "auto" takes ONNX Runtime where the model is there for it and it is installed here.
        predictor: the job's own loader, or None.
        gpus: of a task. With some, "auto" takes the model's own framework: that it predicts the same in ONNX
            Runtime was seen on processors, and not on GPUs.

    Raises:
        EngineError: the model is not there for the engine that is wanted.
    """
    if predictor or manifest.predictor:
        if wanted != "auto":
            loader = predictor or manifest.predictor
            raise EngineError(uri, wanted, f"predictor {loader!r} loads it: leave engine out")
        return PREDICTOR
    own = _OF_FRAMEWORKS.get(manifest.framework, PREDICTOR)
    found = [own, *(twin.engine for twin in manifest.twins)]
    if wanted == "auto":
        return (
            ONNX
            if not gpus and ONNX in found and importlib.util.find_spec("onnxruntime") is not None
            else own
        )
    if wanted not in found:
        mend = _WITHOUT_ONNX.get(manifest.framework, "") if wanted == ONNX else ""
        raise EngineError(uri, wanted, f"it is there for {', '.join(map(repr, found))} alone{mend}")
    return wanted
