"""Activations of SmolLM2 to calibrate on and to judge by, and the error that is judged.

PyTorch is imported when the first activations are wanted, not before: only the last checks need it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CALIBRATION_WINDOWS, HELD_OUT_WINDOWS, TOKENS = 4, 2, 128


@dataclass(frozen=True)
class LayerData:
    """One linear layer with what it was given.

    Attributes:
        weight: (out_features, in_features).
        calibration: a batch for each window of calibration texts: (tokens, in_features).
        held_out: (tokens, in_features), from documents that calibration does not see.
    """

    weight: Floats
    calibration: tuple[Floats, ...]
    held_out: Floats


def layer_data(domain: str, names: tuple[str, ...]) -> dict[str, LayerData]:
    """What the layers are given when SmolLM2 reads a few windows of the domain's texts."""
    import torch

    from shared.compression.model import layer_inputs, linear_weight, token_windows
    from shared.compression.texts import calibration_texts, held_out_texts

    seen = _spread(token_windows(calibration_texts(domain), TOKENS), CALIBRATION_WINDOWS)
    unseen = _spread(token_windows(held_out_texts(domain), TOKENS), HELD_OUT_WINDOWS)
    threads = torch.get_num_threads()
    # On a busy machine several threads wait for each other, spinning: 27 s of CPU time, not 5.
    torch.set_num_threads(1)
    try:
        inputs = layer_inputs(names, np.concatenate([seen, unseen]))
    finally:
        torch.set_num_threads(threads)
    return {
        name: LayerData(
            weight=linear_weight(name).astype(np.float64),
            calibration=tuple(
                rows[i * TOKENS : (i + 1) * TOKENS] for i in range(CALIBRATION_WINDOWS)
            ),
            held_out=rows[CALIBRATION_WINDOWS * TOKENS :],
        )
        for name, rows in ((name, inputs[name].astype(np.float64)) for name in names)
    }


def rounded(values: Floats, limit: float | Floats, bits: int) -> Floats:
    """The values on a symmetric grid up to `limit`."""
    steps = 2 ** (bits - 1) - 1
    scale = np.asarray(limit, dtype=np.float64) / steps
    codes = np.rint(values / np.where(scale > 0, scale, 1.0))
    return np.asarray(np.clip(codes, -steps, steps) * scale)


def error_of(
    inputs: Floats, weight: Floats, limit: float, bits: int, scales: Floats | None = None
) -> float:
    """Relative error of the layer's output, weights in 8 bits a row."""
    scales = np.ones(weight.shape[1]) if scales is None else scales
    exact = inputs @ weight.T
    turned = weight * scales
    codes = rounded(turned, abs(turned).max(axis=1, keepdims=True), 8)
    got = rounded(inputs / scales, limit, bits) @ codes.T
    return float(np.sqrt(((got - exact) ** 2).sum() / (exact**2).sum()))


def _spread(windows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """So many windows, evenly from the first to the last."""
    return windows[np.linspace(0, len(windows) - 1, count).astype(int)]
