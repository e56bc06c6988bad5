"""Model servers to measure: given, nothing to write here.

    with serve(folder_or_gguf) as server:
        server.prompt_logprobs(tokens)
        server.generate("Tell me a story.", max_tokens=64)
        server.memory_bytes()

A folder in Hugging Face's format is served by vLLM, a .gguf file by llama.cpp (the portable
engine), each as the labs' own engine is. `attached` does the same to an engine that runs already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
import psutil

from shared.engine import Engine, EngineError
from shared.engine.launch import START_LIMIT_S, TOKEN_VARIABLE, make_plan
from shared.engine.ports import free_port
from shared.engine.processes import ProcessId, end_owned
from shared.paths import ROOT

Entries = list[dict[str, dict[str, Any]] | None]
"""What a server says of a prompt, one entry a token: see `ModelServer.prompt_logprobs`."""

_CERTAIN = 1e6
"""Added to one token's logit, it makes that token the one that is picked."""
_STOP_GRACE_S = 10.0


class ModelServer(Protocol):
    """What can be measured: a server, or something that answers like one."""

    def prompt_logprobs(self, tokens: list[int]) -> Entries:
        """How likely the model finds each token of a prompt, given those before it.

        This is the form in which vLLM gives `prompt_logprobs`, as JSON.

        Returns:
            For each token of the prompt None (the first one always: nothing stands before it), or
            a dict from token ids, as text, to ``{"logprob": ..., "rank": ...,
            "decoded_token": ...}``. It has the prompt's own token at this place and the token that
            the model finds most likely here, which may be the same. `rank` (1 is the most likely)
            and `decoded_token` may be missing.
        """

    def generate(self, prompt: str, max_tokens: int) -> int:
        """Answer a chat message with exactly `max_tokens` tokens; return how many they were.

        May be called from several threads at once.
        """

    def memory_bytes(self) -> int:
        """The most memory that the server has had so far."""


@dataclass(frozen=True)
class HttpServer:
    """A server of the labs' engines."""

    root_url: str
    model: str
    kind: str
    """``"vllm-gpu"``, ``"vllm-cpu"`` or ``"portable"``."""
    pid: int
    http: httpx.Client = field(default_factory=lambda: _client(), repr=False)

    def prompt_logprobs(self, tokens: list[int]) -> Entries:
        """As `ModelServer` says. llama.cpp is asked token by token: it scores no prompts."""
        if self.kind == "portable":
            return [None, *(self._forced(tokens, place) for place in range(1, len(tokens)))]
        body = {"model": self.model, "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 1}
        answer = self._post("/v1/completions", body | {"temperature": 0})
        entries: Entries = answer["choices"][0]["prompt_logprobs"]
        return entries

    def generate(self, prompt: str, max_tokens: int) -> int:
        """As `ModelServer` says."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        return int(self._post("/v1/chat/completions", body)["usage"]["completion_tokens"])

    def memory_bytes(self) -> int:
        """Largest resident memory, over the server's processes; on a GPU the GPU's in use."""
        try:
            server = psutil.Process(self.pid)
            processes = [server, *server.children(recursive=True)]
        except psutil.NoSuchProcess:
            return _told_memory(self.pid)
        if self.kind == "vllm-gpu":
            return gpu_memory_bytes({p.pid for p in processes})
        return sum(_peak(p) for p in processes)

    def _forced(self, tokens: list[int], place: int) -> dict[str, dict[str, Any]]:
        """The entry of one token: it is made the one that is picked, and its logprob, which
        llama.cpp gives as it was before that, is read.
        """
        own = tokens[place]
        body = {
            "prompt": tokens[:place],
            "n_predict": 1,
            "n_probs": 1,
            "logit_bias": [[own, _CERTAIN]],
            "temperature": 0,
            "cache_prompt": True,
        }
        picked = self._post("/completion", body)["completion_probabilities"][0]
        if picked["id"] != own:
            raise EngineError(f"llama.cpp picked token {picked['id']}, not {own}")
        first = picked["top_logprobs"][0]
        entry: dict[str, dict[str, Any]] = {str(own): {"logprob": picked["logprob"]}}
        return entry | {str(first["id"]): {"logprob": first["logprob"], "rank": 1}}

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            response = self.http.post(f"{self.root_url}{path}", json=body)
        except httpx.HTTPError as error:
            raise EngineError(f"the server at {self.root_url} does not answer: {error}") from error
        if response.status_code != 200:
            raise EngineError(f"status {response.status_code} of {path}: {response.text[:300]}")
        answer: dict[str, Any] = response.json()
        return answer


def _client() -> httpx.Client:
    """One for all requests: its threads share connections, and making one takes milliseconds."""
    return httpx.Client(timeout=600, trust_env=False, verify=False)


def attached(engine: Engine) -> HttpServer:
    """A running engine as something to measure."""
    return HttpServer(engine.root_url, engine.model, engine.kind, engine.pid)


@contextmanager
def serve(model: Path, log: Path | None = None) -> Iterator[HttpServer]:
    """A server for this model alone, from when it is ready until the block ends.

    Args:
        model: a folder in Hugging Face's format (vLLM) or a .gguf file (llama.cpp).
        log: where its output goes; beside nothing, it is thrown away.

    Raises:
        EngineUnavailable: vLLM has no build for this machine.
        EngineError: the server did not start; the end of its log is in the message.
    """
    wanted = "portable" if model.suffix.lower() == ".gguf" else "vllm"
    with _served_model(model):
        plan = make_plan(wanted)  # type: ignore[arg-type]
    port, token = free_port(), uuid.uuid4().hex
    spec = plan.spec(port)
    with _leash(token), open(log or os.devnull, "wb") as output:
        process = subprocess.Popen(
            spec.argv,
            env=spec.env | {TOKEN_VARIABLE: token},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        leader = ProcessId.of(process.pid)
        try:
            _await_health(process, spec.health_url, START_LIMIT_S[plan.kind], log)
            yield HttpServer(f"http://127.0.0.1:{port}", plan.model, plan.kind, process.pid)
        finally:
            end_owned(token, leader, grace=_STOP_GRACE_S)
            process.wait()


def gpu_memory_bytes(pids: set[int]) -> int:
    """GPU memory that these processes hold now, as the driver's own tool says."""
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
    rows = [line.split(",") for line in lines.splitlines() if line.strip()]
    return sum(int(mib) * 2**20 for pid, mib in rows if int(pid) in pids)


@contextmanager
def _leash(token: str) -> Iterator[None]:
    """A process that ends the server if this one is killed and cannot."""
    command = [sys.executable, "-P", "-m", "shared.engine.leash", token]
    path = {"PYTHONPATH": str(ROOT)}
    leash = subprocess.Popen(
        command, env=os.environ | path, stdin=subprocess.PIPE, start_new_session=True
    )
    try:
        yield
    finally:
        assert leash.stdin is not None
        leash.stdin.close()
        leash.wait()


@contextmanager
def _served_model(model: Path) -> Iterator[None]:
    """While this lasts, `MODEL=` names this model."""
    before = os.environ.get("MODEL")
    os.environ["MODEL"] = str(model)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MODEL"]
        else:
            os.environ["MODEL"] = before


def _await_health(
    process: subprocess.Popen[bytes], url: str, limit_s: float, log: Path | None
) -> None:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise EngineError(f"the server ended with {process.returncode}. {_tail(log)}")
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise EngineError(f"the server was not ready after {limit_s:.0f} s. {_tail(log)}")


def _tail(log: Path | None) -> str:
    if log is None or not log.is_file():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "Its log ends: " + " | ".join(lines[-12:])


def _told_memory(pid: int) -> int:
    """What the grader says of an engine that lies outside of the sandbox that this runs in."""
    told = json.loads(os.environ.get("LABS_ENGINE_INFO") or "{}")
    if told.get("pid") != pid or not told.get("memory_bytes"):
        raise EngineError(f"The server with process id {pid} is gone: its memory can't be read.")
    return int(told["memory_bytes"])


def _peak(process: psutil.Process) -> int:
    """Largest resident memory of a process so far; where the system doesn't say, that of now."""
    try:
        with open(f"/proc/{process.pid}/status", encoding="utf-8") as status:
            return int(next(x for x in status if x.startswith("VmHWM")).split()[1]) * 1024
    except (OSError, StopIteration):
        return int(process.memory_info().rss)
