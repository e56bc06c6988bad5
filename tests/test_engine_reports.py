"""What is read from engines' logs and Prometheus pages."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from shared.engine.logs import telling_lines
from shared.engine.metrics import (
    EngineCounters,
    KVCacheReport,
    busy,
    counters_of,
    kv_of_llama_log,
    kv_of_vllm,
)

VLLM_PAGE = """
# HELP vllm:num_requests_running Number of requests in model execution batches.
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 0.0
vllm:prompt_tokens_total{engine="0",model_name="m"} 31.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 11.0
vllm:prompt_tokens_created{engine="0",model_name="m"} 1.79e+09
vllm:generation_tokens_total{engine="0",model_name="m"} 1.0e+01
vllm:cache_config_info{block_size="128",\
kv_cache_memory_bytes="1073741824",kv_cache_size_tokens="46592",num_gpu_blocks="364"} 1.0
"""
LLAMA_PAGE = """
llamacpp:prompt_tokens_total 31
llamacpp:prompt_tokens_cached_total 5
llamacpp:tokens_predicted_total 10
llamacpp:requests_processing 0
llamacpp:requests_deferred 1
"""
LLAMA_LOG = """
0.0.1 I llama_kv_cache: size =    0.00 MiB (  2048 cells,  30 layers, 16/16 seqs), K (f16): 0
0.0.2 I llama_kv_cache:        CPU KV buffer size =   720.00 MiB
0.0.3 I llama_kv_cache: size =  720.00 MiB (  2048 cells,  30 layers, 16/16 seqs), K (f16): 360
"""
VLLM_LOG = """
(APIServer pid=7) WARNING 11-23 16:10:59 [system_utils.py:255] Found ulimit of 20000: `OSError: x`
(Worker pid=9) ERROR 11-23 16:48:17 [multiproc_executor.py:953] Traceback (most recent call last):
(Worker pid=9) ERROR 11-23 16:48:17 [multiproc_executor.py:953]   File "weight_utils.py", line 1208
(Worker pid=9) ERROR 11-23 16:48:17 [multiproc_executor.py:953]     with safe_open(st_file) as f:
(Worker pid=9) ERROR 11-23 16:48:17 [multiproc_executor.py:953]          ^^^^^^^^^^^^^^^^
(Worker pid=9) ERROR 11-23 16:48:17 [multiproc_executor.py:953] SafetensorError: not fully covered
(EngineCore pid=8) INFO 11-23 16:48:20 [multiproc_executor.py:486] all workers exited gracefully
(EngineCore pid=8) ERROR 11-23 16:48:20 [core.py:1510] EngineCore failed to start.
(APIServer pid=7) RuntimeError: Engine core initialization failed. See root cause above.
"""


def test_counters_sum_over_engines_and_leave_other_series_out() -> None:
    assert counters_of(VLLM_PAGE, "vllm") == EngineCounters(42, 10, 2)
    assert counters_of(LLAMA_PAGE, "portable") == EngineCounters(36, 10, 0)


def test_a_waiting_request_is_use() -> None:
    assert busy(LLAMA_PAGE, "portable")
    assert not busy(LLAMA_PAGE.replace("deferred 1", "deferred 0"), "portable")


def test_the_kv_cache_of_llama_cpp_is_the_one_that_was_allocated_last() -> None:
    assert kv_of_llama_log(LLAMA_LOG) == KVCacheReport(2048 * 16, 1, 720 * 2**20)
    unified = "llama_kv_cache: size = 720.00 MiB ( 32768 cells, 30 layers, 16/1 seqs), K (f16)"
    assert kv_of_llama_log(unified) == KVCacheReport(32768, 1, 720 * 2**20)
    assert kv_of_llama_log("nothing of it") is None


def test_the_kv_cache_of_vllm_is_what_its_metrics_say() -> None:
    assert kv_of_vllm(VLLM_PAGE, "") == KVCacheReport(46592, 128, 2**30)
    measured = VLLM_PAGE.replace('memory_bytes="1073741824"', 'memory_bytes="None"')
    log = "INFO Available KV cache memory: 2.50 GiB"
    assert kv_of_vllm(measured, log) == KVCacheReport(46592, 128, 5 * 2**29)
    counted = measured.replace('size_tokens="46592"', 'size_tokens="None"')
    assert kv_of_vllm(counted, log) == KVCacheReport(364 * 128, 128, 5 * 2**29)
    assert kv_of_vllm("", log) is None


def test_the_telling_lines_name_the_root_cause_without_frames_or_warnings(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(VLLM_LOG)
    assert telling_lines(log) == [
        "SafetensorError: not fully covered",
        "EngineCore failed to start.",
        "RuntimeError: Engine core initialization failed. See root cause above.",
    ]


def test_a_log_without_errors_gives_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "short.log"
    log.write_text(
        dedent("""
        loading
        still loading
    """)
    )
    assert telling_lines(log) == ["loading", "still loading"]
    assert telling_lines(tmp_path / "none.log") == []
