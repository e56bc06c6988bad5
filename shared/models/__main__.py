"""`python -m shared.models` fetches what is not there; `... verify` hashes what is."""

from __future__ import annotations

import sys

from shared.models.catalog import MINILM, SMOLLM2
from shared.models.store import (
    ModelError,
    converting_python,
    minilm,
    minilm_onnx,
    smollm2_bf16,
    smollm2_gguf,
    verify,
)


def main() -> int:
    """0 when all is well, 1 with a sentence when not."""
    if sys.argv[1:] == ["verify"]:
        findings = verify()
        for finding in findings:
            print(f"{finding.name}: {finding.says}")
        return 0 if all(f.ok for f in findings) else 1
    if sys.argv[1:]:
        print("usage: python -m shared.models [verify]", file=sys.stderr)
        return 2
    try:
        for name, prepare in ((SMOLLM2.name, smollm2_gguf), (MINILM.name, minilm)):
            print(f"{name}: {prepare(print)}")
        print(f"{MINILM.name}-onnx: {minilm_onnx(print)}")
        if converting_python() is not None:
            print(f"{SMOLLM2.name}-bf16: {smollm2_bf16(print)}")
    except ModelError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
