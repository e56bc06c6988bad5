"""What Lab 5 compresses and measures with: SmolLM2 in PyTorch, its activations, and the texts.

    from shared.compression.model import layer_inputs, linear_weight, token_windows
    from shared.compression.texts import calibration_texts, held_out_texts

    windows = token_windows(calibration_texts("finance"), length=128)
    inputs = layer_inputs(["model.layers.0.mlp.down_proj"], windows)

The model is the bfloat16 copy that vLLM serves, whose values are the dequantized 4-bit weights of
the published GGUF: "the original" in this lab means that copy.
"""
