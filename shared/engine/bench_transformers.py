"""The plain way to generate, for comparison: transformers' own loop, without a server.

Run by the engine environment's Python (it needs torch and transformers), as a script:

    python -P shared/engine/bench_transformers.py MODEL_FOLDER < order.json > measured.json

The order holds `prompts`, `max_tokens`, `one_by_one` (how many prompts) and `batches` (sizes).
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any


def main() -> None:
    """Measure what the order asks for and print the figures as JSON."""
    order = json.load(sys.stdin)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16).to(device)

    def generate(prompts: list[str]) -> dict[str, Any]:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        inputs = tokenizer.apply_chat_template(
            chats,
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
            padding=True,
        ).to(device)
        length = order["max_tokens"]
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                **inputs, do_sample=False, min_new_tokens=length, max_new_tokens=length
            )
        made = (out.shape[1] - inputs["input_ids"].shape[1]) * len(prompts)
        return {"tokens": int(made), "seconds": time.perf_counter() - started}

    generate(order["prompts"][:1])  # warm up
    singles = [generate([prompt]) for prompt in order["prompts"][: order["one_by_one"]]]
    figures = {
        "threads": torch.get_num_threads(),
        "device": device,
        "one_by_one": sum(s["tokens"] for s in singles) / sum(s["seconds"] for s in singles),
        "batches": {},
    }
    for size in order["batches"]:
        batch = generate(order["prompts"][:size])
        figures["batches"][size] = batch["tokens"] / batch["seconds"]
    json.dump(figures, sys.stdout)


if __name__ == "__main__":
    main()
