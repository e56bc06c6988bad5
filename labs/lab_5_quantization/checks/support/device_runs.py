"""The installer and a language model run as on the device: no network, one folder to write."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import zipfile
from pathlib import Path

from support.device_bundles import Workshop

from shared.device.isolation import isolated, why_not
from shared.device.layout import Component
from shared.grading.expect import fail

INSTALL = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("bundle", sys.argv[1])
sys.modules["bundle"] = bundle = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bundle)
done = bundle.install(Path(sys.argv[2]), Path(sys.argv[3]), bytes.fromhex(sys.argv[4]))
print(done.folder)
"""


ASK = """
import json, socket, sys, threading
folder = sys.argv[1]
sys.path.insert(0, folder + "/site")
import xllamacpp
params = xllamacpp.CommonParams()
params.model.path = folder + "/model/smollm2.gguf"
params.n_ctx = 128
params.n_predict = 12
params.n_parallel = 1
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.warmup = False
server = xllamacpp.Server(params)
reply = server.handle_chat_completions({
    "messages": [{"role": "user", "content": "What is a bank?"}],
    "max_tokens": 12,
    "temperature": 0,
})
try:
    socket.create_connection(("192.0.2.1", 9), timeout=0.2)
    network = "reached"
except OSError as error:
    network = str(error)
try:
    open("/bundle-was-here", "w")
    root = "writable"
except OSError:
    root = "read-only"
print(json.dumps({
    "text": reply["choices"][0]["message"]["content"],
    "tokens": reply["usage"]["completion_tokens"],
    "from": xllamacpp.__file__,
    "network": network,
    "root": root,
}), flush=True)
"""


def on_device(command: list[str], dest: Path, environment: dict[str, str], what: str) -> str:
    """What a command prints without a network and with everything read-only but `dest`.

    Where the system has no such isolation it runs as it is; the report says so.
    """
    line = isolated(command, dest) if why_not() == "" else command
    done = subprocess.run(
        line,
        env={"PATH": os.environ["PATH"], "HOME": str(dest)} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.returncode:
        fail(
            observed=f"{what} ended with {done.returncode}: {done.stderr.strip()[-500:]}",
            expected=f"{what} to run without a network, with {dest.name} the one writable folder",
            why="This is the device.",
            hint="on-the-device",
        )
    return done.stdout.strip()


def installed_wheel(package: str, workshop: Workshop) -> Component:
    """The wheel of a package that is installed here, put together again from its files."""
    found = importlib.metadata.distribution(package)
    path = workshop.folder / f"{package}-{found.version}-cp311-abi3-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as packed:
        for file in found.files or []:
            if ".." not in file.parts and file.suffix != ".pyc":
                packed.write(str(found.locate_file(file)), str(file))
    return Component(
        f"runtime/{path.name}", path, "library", package, found.version, "MIT", workshop.mit
    )
