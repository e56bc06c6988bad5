"""The pinned sets agree with each other and with what they are made from."""

from __future__ import annotations

import re

from shared.paths import ROOT

FOLDER = ROOT / "requirements"
PIN = re.compile(r"^([a-z0-9.-]+)==(\S+)", re.MULTILINE)


def pins(name: str) -> set[tuple[str, str]]:
    return set(PIN.findall((FOLDER / f"{name}.txt").read_text(encoding="utf-8")))


def test_lab_5_s_tools_are_added_without_changing_what_is_there() -> None:
    labs, compress = pins("labs"), pins("compress")
    assert labs <= compress
    assert {"torch", "transformers", "llmcompressor"} <= {name for name, _ in compress - labs}


def test_a_cluster_s_tools_are_added_without_changing_what_is_there() -> None:
    labs, classroom = pins("labs"), pins("classroom")
    assert labs <= classroom
    assert "ray" in {name for name, _ in classroom - labs}


def test_no_set_for_a_cpu_brings_cuda() -> None:
    for name in ("labs", "compress", "classroom", "engine-cpu"):
        assert not [p for p, _ in pins(name) if p.startswith(("cuda-", "nvidia-cu"))]


def test_everything_asked_for_is_pinned() -> None:
    for source in FOLDER.glob("*.in"):
        asked = re.findall(r"^([A-Za-z0-9._-]+)", source.read_text(encoding="utf-8"), re.MULTILINE)
        wanted = {name.lower().replace("_", "-") for name in asked if name != "-r"}
        assert wanted <= {name for name, _ in pins(source.stem)}, source.name
