"""Make the bfloat16 safetensors directory that vLLM serves, from the GGUF.

Run by the engine environment's Python, as a script of its own (with -P, so that this folder does
not shadow packages): it needs torch, transformers and gguf, which the labs environment may lack.
The values are the dequantized 4-bit weights; rounding them to bfloat16 brings nothing back.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

CONVERSION = 1
"""Raise it when the outcome changes: what an older one made is then made again."""


def convert(gguf: Path, out: Path) -> None:
    """Write model, tokenizer and chat template into `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    if not tokenizer.chat_template:
        raise SystemExit(f"{gguf.name} carries no chat template")
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    # The GGUF reader leaves the begin-of-message token as the tokenizer's end token.
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(model.config.eos_token_id)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    if "quantization_config" in config:
        raise SystemExit("the converted model still says that it is quantized")


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
