"""The small models of the labs, and the model that engines serve."""

from shared.models.serve import ServedModel, served_model
from shared.models.store import ModelError, minilm, minilm_onnx, smollm2_bf16, smollm2_gguf

__all__ = [
    "ModelError",
    "ServedModel",
    "minilm",
    "minilm_onnx",
    "served_model",
    "smollm2_bf16",
    "smollm2_gguf",
]
