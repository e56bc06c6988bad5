"""Read what an offline Weights & Biases run has written.

The file is LevelDB's log format: 32 KiB blocks of records, each with checksum, length and type.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK = 32_768
_HEADER = 7


def read_run(path: Path) -> dict[str, Any]:
    """A run's `id`, `project`, `config`, `summary`, `steps` (one dict each) and `finished`."""
    run: dict[str, Any] = {"config": {}, "summary": {}, "steps": [], "finished": False}
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run |= {"id": record.run.run_id, "project": record.run.project}
            run["config"] |= _items(record.run.config.update)
        elif kind == "config":
            run["config"] |= _items(record.config.update)
        elif kind == "history":
            run["steps"].append(_items(record.history.item))
        elif kind == "summary":
            run["summary"] |= _items(record.summary.update)
        elif kind == "exit":
            run["finished"] = record.exit.exit_code == 0
    return run


def _items(items: Any) -> dict[str, Any]:
    return {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}


def _records(data: bytes) -> Iterator[Any]:
    position, parts = _HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, position)
        position += _HEADER
        parts += data[position : position + length]
        position += length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""
