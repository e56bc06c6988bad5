"""The device that Lab 5's bundles are made for: its format, its counts, and what it notices."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

onnx = pytest.importorskip("onnx", reason="the tools of Lab 5 are not installed")

import numpy as np  # noqa: E402

from shared.device.cycles import CostModel, Rates  # noqa: E402
from shared.device.device import Device, Run  # noqa: E402
from shared.device.isolation import isolated, why_not  # noqa: E402
from shared.device.keys import new_key, sign, signature_holds  # noqa: E402
from shared.device.layout import (  # noqa: E402
    MANIFEST,
    FileEntry,
    Manifest,
    Refused,
    members,
    version_key,
)
from shared.device.section import Section  # noqa: E402

RUNTIME = """
import numpy as np
{imports}
from shared.device.session import Session

class Model:
    def __init__(self, folder):
        self.session = Session(folder / "model" / "m.onnx")
{loading}
    def answer(self, text):
{answering}
        (y,) = self.session.run({{"x": np.ones((len(text), 8), np.float32)}})
        return str(y.shape[0]), [len(text)]

def load(folder):
    return Model(folder)
"""


def product(kind: type = np.float32) -> bytes:
    """A product with a matrix of 8 by 4."""
    helper = onnx.helper
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["x"], ["cast"], to=number),
            helper.make_node("MatMul", ["cast", "w"], ["y"]),
        ],
        "product",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", number, ["n", 4])],
        [onnx.numpy_helper.from_array(np.ones((8, 4), kind), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def bundle(path: Path, **code: str) -> Path:
    """A bundle with a runtime that does something besides."""
    packed = io.BytesIO()
    places = {"imports": "", "loading": "", "answering": ""} | code
    with zipfile.ZipFile(packed, "w") as wheel:
        wheel.writestr("bundle_runtime.py", RUNTIME.format(**places))
    with tarfile.open(path, "w") as tar:
        for name, content in {
            "model/m.onnx": product(),
            "runtime/bundle_runtime-1-py3-none-any.whl": packed.getvalue(),
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with Device(b"", 1 << 20) as running:
        yield running


def test_a_manifest_is_read_as_it_was_written_and_only_so() -> None:
    manifest = Manifest("router", "1.10.0", {"model/m.onnx": FileEntry("0" * 64, 7)})
    content = manifest.to_bytes()
    assert Manifest.from_bytes(content) == manifest
    read = json.loads(content)
    for broken in (
        b"",
        b"[]",
        b"{" * 100_000,
        json.dumps(read).encode(),
        json.dumps(read | {"layout": 2}, indent=1, sort_keys=True).encode() + b"\n",
        content.replace(b"1.10.0", b"1.x"),
        content.replace(b"0" * 64, b"0" * 63),
    ):
        with pytest.raises(Refused) as error:
            Manifest.from_bytes(broken)
        assert error.value.member == MANIFEST


def test_versions_are_compared_as_numbers() -> None:
    assert version_key("1.10") > version_key("1.9.9")
    assert version_key("1.0") == version_key("1.0.0")
    for wrong in ("1.x", "", "1..2", "01.2", "1.2.3.4.5"):
        with pytest.raises(ValueError, match="numbers"):
            version_key(wrong)


def test_a_signature_holds_for_its_key_and_message_only() -> None:
    private, public = new_key()
    mark = sign(private, b"manifest")
    assert signature_holds(public, b"manifest", mark)
    assert not signature_holds(public, b"manifesto", mark)
    assert not signature_holds(new_key()[1], b"manifest", mark)
    assert not signature_holds(public, b"manifest", b"")


def test_a_section_is_a_file_of_its_own() -> None:
    file = io.BytesIO(b"0123456789")
    one, two = Section(file, 2, 5), Section(file, 7, 9)
    assert (one.read(2), two.read(), one.read()) == (b"23", b"789", b"456")
    assert (one.seek(-1, io.SEEK_END), one.read(), one.read()) == (4, b"6", b"")
    with pytest.raises(OSError, match="before the start"):
        one.seek(-6, io.SEEK_END)


def test_cycles_follow_from_shapes_and_types() -> None:
    rates = Rates()
    for kind, rate in ((np.float32, rates.float32), (np.float64, 8), (np.float16, 2)):
        cost = CostModel(onnx.load_model_from_string(product(kind)))
        assert cost.cycles({"x": (3, 8)}) == 3 * 8 + 3 * 4 * 8 * rate
        assert cost.cycles({"x": (6, 8)}) == 2 * cost.cycles({"x": (3, 8)})


def test_a_run_reports_answers_tokens_and_cycles(device: Device, tmp_path: Path) -> None:
    plain = bundle(tmp_path / "plain.tar")
    run = device.run(plain, ["abc", "a"])
    assert (run.error, run.answers, run.tokens) == (None, ("3", "1"), ((3,), (1,)))
    assert run.cycles == (3 * 8 + 3 * 4 * 8 * 4, 8 + 4 * 8 * 4)
    assert run.sockets == run.processes == ()
    assert device.run(plain, ["abc", "a"]).cycles == run.cycles
    assert device.ran == [plain, plain]
    assert set(members(plain)) == {"model/m.onnx", "runtime/bundle_runtime-1-py3-none-any.whl"}


def test_a_report_that_shows_a_run_and_its_device_stays_short() -> None:
    run = Run(("a",) * 400, ((1, 2),) * 400, (7,), sockets=("bind",), seconds=0.088559110998)
    assert repr(run) == (
        "Run(answers=<400>, tokens=<400>, cycles=(7,), peak_bytes=0, sockets=('bind',), "
        "processes=(), seconds=0.0886, error=None)"
    )
    assert repr(Device(bytes(32), 1 << 20, [Path("a.tar")])) == (
        "Device(memory_bytes=1048576, runs=1)"
    )


def test_the_peak_of_memory_is_kept_after_it_was_given_back(device: Device, tmp_path: Path) -> None:
    calm = device.run(bundle(tmp_path / "calm.tar"), ["a"])
    line = "        np.ones(64 << 20, np.uint8)\n"
    greedy = device.run(bundle(tmp_path / "greedy.tar", loading=line), ["a"])
    assert calm.peak_bytes < 16 << 20
    assert greedy.peak_bytes > 60 << 20
    assert device.run(bundle(tmp_path / "calm.tar"), ["a"]).peak_bytes < 16 << 20


def test_what_a_bundle_tries_is_noted_and_fails(device: Device, tmp_path: Path) -> None:
    quiet = "        try:\n            {}\n        except Exception:\n            self.failed = 1\n"
    connect = "socket.create_connection(('127.0.0.1', 9), 1)"
    run = device.run(
        bundle(tmp_path / "s.tar", imports="import socket", loading=quiet.format(connect)), ["a"]
    )
    assert run.sockets
    assert run.error is None
    start = "subprocess.run(['true'])"
    run = device.run(
        bundle(tmp_path / "p.tar", imports="import subprocess", loading=quiet.format(start)), ["a"]
    )
    assert run.processes
    assert not run.sockets


def test_what_breaks_is_reported_and_the_next_bundle_runs(device: Device, tmp_path: Path) -> None:
    breaks = "        if text == 'b':\n            raise KeyError(text)\n"
    run = device.run(bundle(tmp_path / "b.tar", answering=breaks), ["a", "b", "c"])
    assert run.answers == ("1",)
    assert run.error is not None
    assert "KeyError" in run.error
    run = device.run(
        bundle(tmp_path / "e.tar", imports="import os", loading="        os._exit(3)\n"), ["a"]
    )
    assert run.error is not None
    assert "3" in run.error
    (tmp_path / "no.tar").write_bytes(b"no archive")
    assert device.run(tmp_path / "no.tar", ["a"]).error is not None
    assert device.run(bundle(tmp_path / "f.tar"), ["a"]).error is None


def test_a_closed_device_leaves_no_process(tmp_path: Path) -> None:
    with Device(b"", 1) as short:
        short.run(bundle(tmp_path / "a.tar"), ["a"])
        worker = short._worker
        assert worker is not None
    assert worker.poll() is not None


def test_isolation_leaves_one_folder_writable(tmp_path: Path) -> None:
    import subprocess

    if why_not():
        pytest.skip(why_not())
    script = f"echo x > {tmp_path}/in && ! echo x > {tmp_path.parent}/out && cat /proc/net/dev"
    done = subprocess.run(
        isolated(["sh", "-c", script], tmp_path), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0
    devices = [line.split(":")[0].strip() for line in done.stdout.splitlines() if ":" in line]
    assert devices == ["lo"]
    assert (tmp_path / "in").is_file()
    assert not (tmp_path.parent / "out").exists()
