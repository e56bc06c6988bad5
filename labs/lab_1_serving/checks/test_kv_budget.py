"""Task 1.1: bytes a token, and what fits into a memory budget."""

from __future__ import annotations

from typing import Any

from support.published_configs import (
    EXPLICIT_HEAD_DIM,
    FALCON_7B,
    GEMMA_2B,
    GROUPED_QUERY,
    LLAMA_1_7B,
    LLAMA_2_7B,
    LLAMA_3_8B,
    QWEN2_5_7B,
    SMOLLM2_135M,
)

from shared.grading.expect import expect_equal, expect_raises, number

GIB = 2**30


def test_a_multi_head_model_stores_keys_and_values_in_bytes(learner):
    want = LLAMA_2_7B.bytes_per_token
    got = number(
        learner.kv_bytes_per_token(LLAMA_2_7B.config), what=f"bytes a token of {LLAMA_2_7B.name}"
    )
    hints = {want // 2: "keys-and-values", want * 8: "bytes-not-bits", want // 32: "every-layer"}
    whys = {
        want // 2: "A plan that forgets half of the cache runs out of memory at half the load.",
        want * 8: "A plan eight times too large buys eight times the GPUs.",
        want // 32: "Each layer keeps a cache of its own; one layer's worth is a small part of it.",
    }
    expect_equal(
        got,
        want,
        what=f"bytes a token of {LLAMA_2_7B.name}",
        why=whys.get(got, "Every number in a capacity plan is a multiple of this one."),
        hint=hints.get(got, "one-token"),
    )


def test_grouped_query_models_count_key_value_heads_not_query_heads(learner):
    for model in GROUPED_QUERY:
        expect_equal(
            learner.kv_bytes_per_token(model.config, dtype_bytes=2),
            model.bytes_per_token,
            what=f"bytes a token of {model.name}",
            why="Counting query heads makes this model's cache look "
            f"{_group_size(model.config)} times as large, and you buy GPUs for a load that "
            "one of them could carry.",
            hint="query-heads",
        )


def test_the_number_of_key_value_heads_is_found_where_the_field_is_absent(learner):
    cases = [
        (LLAMA_1_7B.name, LLAMA_1_7B.config, LLAMA_1_7B.bytes_per_token),
        (
            f"{LLAMA_1_7B.name} with num_key_value_heads null",
            LLAMA_1_7B.config | {"num_key_value_heads": None},
            LLAMA_1_7B.bytes_per_token,
        ),
        (f"{FALCON_7B.name} (multi_query)", FALCON_7B.config, FALCON_7B.bytes_per_token),
        (GEMMA_2B.name, GEMMA_2B.config, GEMMA_2B.bytes_per_token),
    ]
    for name, config, want in cases:
        expect_equal(
            learner.kv_bytes_per_token(config),
            want,
            what=f"bytes a token of {name}",
            why="Older models store one pair for each head, multi-query models one in all. "
            "Mixing them up is an error of a factor of 30 to 70.",
            hint="kv-heads-absent",
        )


def test_an_explicit_head_dim_is_used_instead_of_a_derived_one(learner):
    for model in EXPLICIT_HEAD_DIM:
        expect_equal(
            learner.kv_bytes_per_token(model.config),
            model.bytes_per_token,
            what=f"bytes a token of {model.name}",
            why="This model's heads are not hidden_size / num_attention_heads wide. A derived "
            "width is wrong by a quarter for two of these models, by half for the third.",
            hint="head-dim",
        )
    expect_equal(
        learner.kv_bytes_per_token(LLAMA_3_8B.config | {"head_dim": None}),
        LLAMA_3_8B.bytes_per_token,
        what=f"bytes a token of {LLAMA_3_8B.name} with head_dim null",
        why="Published files write null where a value is to be derived.",
        hint="head-dim",
    )


def test_the_cache_dtype_comes_from_the_argument_not_from_the_weights(learner):
    for weights in ("float32", "bfloat16", "float16"):
        for dtype_bytes, cache in ((1, "fp8"), (2, "bfloat16"), (4, "float32")):
            expect_equal(
                learner.kv_bytes_per_token(
                    QWEN2_5_7B.config | {"torch_dtype": weights}, dtype_bytes=dtype_bytes
                ),
                QWEN2_5_7B.bytes_per_token * dtype_bytes // 2,
                what=f"bytes a token of {QWEN2_5_7B.name}, weights {weights}, cache {cache}",
                why="Servers cast weights at load and can keep the cache in fp8; the file's "
                "torch_dtype says nothing about the cache.",
                hint="cache-dtype",
            )


def test_any_architecture_is_counted_right(learner, rng):
    for _ in range(50):
        config, want = _random_architecture(rng)
        dtype_bytes = int(rng.choice([1, 2, 4]))
        expect_equal(
            learner.kv_bytes_per_token(config, dtype_bytes=dtype_bytes),
            want * dtype_bytes,
            what=f"bytes a token with dtype_bytes={dtype_bytes} of {config}",
            why="Next month's model has other numbers; the formula must hold for them too.",
            hint="one-token",
        )


def test_a_missing_or_impossible_field_is_an_error_that_names_it(learner):
    good = SMOLLM2_135M.config
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("num_hidden_layers", _without(good, "num_hidden_layers"), "no num_hidden_layers"),
        ("num_attention_heads", _without(good, "num_attention_heads"), "no num_attention_heads"),
        ("hidden_size", _without(good, "hidden_size"), "neither hidden_size nor head_dim"),
        ("num_hidden_layers", good | {"num_hidden_layers": None}, "num_hidden_layers null"),
        ("num_hidden_layers", good | {"num_hidden_layers": 0}, "num_hidden_layers 0"),
        ("num_key_value_heads", good | {"num_key_value_heads": 0}, "num_key_value_heads 0"),
        ("num_key_value_heads", good | {"num_key_value_heads": 4}, "4 key-value heads for 9 heads"),
        ("head_dim", good | {"head_dim": "64"}, "head_dim as text"),
        ("hidden_size", good | {"hidden_size": 577}, "hidden_size 577 for 9 heads and no head_dim"),
    ]
    for field, config, doing in cases:
        expect_raises(
            ValueError,
            lambda config=config: learner.kv_bytes_per_token(config),
            doing=f"a config with {doing}",
            mentions=field,
            why="A guessed default gives a plausible number for the wrong model. An error that "
            "names the field is mended in a minute.",
            hint="name-the-field",
        )
    expect_raises(
        ValueError,
        lambda: learner.kv_bytes_per_token(good, dtype_bytes=0),
        doing="dtype_bytes=0",
        mentions="dtype_bytes",
        why="A cache of zero bytes would fit without limit.",
        hint="name-the-field",
    )


def test_a_config_needs_no_hidden_size_where_head_dim_is_given(learner):
    config = _without(EXPLICIT_HEAD_DIM[0].config, "hidden_size")
    expect_equal(
        learner.kv_bytes_per_token(config),
        EXPLICIT_HEAD_DIM[0].bytes_per_token,
        what=f"bytes a token of {EXPLICIT_HEAD_DIM[0].name} without hidden_size",
        why="Asking for a field that is not needed refuses configs that are complete.",
        hint="head-dim",
    )


def test_memory_is_counted_in_the_bytes_given(learner):
    block_bytes = LLAMA_3_8B.bytes_per_token * 16
    for blocks, name in ((8192, "16 GiB"), (7629, "just under 16 GB")):
        got = learner.kv_budget(
            LLAMA_3_8B.config,
            memory_bytes=blocks * block_bytes,
            block_tokens=16,
            sequence_tokens=2048,
        )
        _expect_budget(
            got,
            {
                "bytes_per_token": LLAMA_3_8B.bytes_per_token,
                "blocks": blocks,
                "tokens": blocks * 16,
                "sequences": blocks // 128,
            },
            f"Llama-3-8B, {blocks * block_bytes} bytes ({name})",
            why="A GB is 7 % less than a GiB. Vendors sell one, servers count the other; bytes "
            "leave no doubt.",
            hint="bytes-given",
        )


def test_tokens_fit_in_whole_blocks(learner, rng):
    got = learner.kv_budget(
        SMOLLM2_135M.config, memory_bytes=GIB, block_tokens=128, sequence_tokens=128
    )
    _expect_budget(
        got,
        {"bytes_per_token": 23_040, "blocks": 364, "tokens": 46_592, "sequences": 364},
        "SmolLM2-135M, 1 GiB, blocks of 128",
        why="The last, broken block is never handed out: vLLM reports 46,592 tokens for this "
        "budget, not 46,603.",
        hint="whole-blocks",
    )
    for _ in range(50):
        config, values_per_token = _random_architecture(rng)
        block_tokens = int(rng.choice([8, 16, 32, 64, 128]))
        block_bytes = 2 * values_per_token * block_tokens
        blocks = int(rng.integers(1, 5000))
        left_over = int(rng.integers(block_bytes // 2, block_bytes))
        got = learner.kv_budget(
            config,
            memory_bytes=blocks * block_bytes + left_over,
            block_tokens=block_tokens,
            sequence_tokens=block_tokens,
        )
        _expect_budget(
            got,
            {
                "bytes_per_token": 2 * values_per_token,
                "blocks": blocks,
                "tokens": blocks * block_tokens,
                "sequences": blocks,
            },
            f"memory for {blocks} blocks of {block_tokens} tokens, and {left_over} bytes more",
            why="Tokens that you plan with and the server cannot hold become preemptions at peak.",
            hint="whole-blocks",
        )


def test_each_sequence_takes_whole_blocks_of_its_own(learner, rng):
    got = learner.kv_budget(
        SMOLLM2_135M.config, memory_bytes=GIB, block_tokens=128, sequence_tokens=129
    )
    _expect_budget(
        got,
        {"bytes_per_token": 23_040, "blocks": 364, "tokens": 46_592, "sequences": 182},
        "SmolLM2-135M, 1 GiB, blocks of 128, sequences of 129 tokens",
        why="The 129th token opens a second block that no other sequence may use. Dividing "
        "tokens by tokens promises 361 users; the server holds 182.",
        hint="sequence-blocks",
    )
    for _ in range(50):
        config, values_per_token = _random_architecture(rng)
        block_tokens = int(rng.choice([8, 16, 32, 64, 128]))
        blocks_each = int(rng.integers(1, 20))
        sequence_tokens = block_tokens * (blocks_each - 1) + int(rng.integers(1, block_tokens + 1))
        blocks = int(rng.integers(0, 5000))
        got = learner.kv_budget(
            config,
            memory_bytes=blocks * 2 * values_per_token * block_tokens,
            block_tokens=block_tokens,
            sequence_tokens=sequence_tokens,
        )
        _expect_budget(
            got,
            {
                "bytes_per_token": 2 * values_per_token,
                "blocks": blocks,
                "tokens": blocks * block_tokens,
                "sequences": blocks // blocks_each,
            },
            f"memory for exactly {blocks} blocks of {block_tokens} tokens, sequences of "
            f"{sequence_tokens}",
            why="Blocks are not shared between sequences, so each one rounds up by itself.",
            hint="sequence-blocks",
        )


def test_the_cache_dtype_counts_in_the_budget_too(learner):
    half = learner.kv_budget(
        LLAMA_3_8B.config,
        memory_bytes=4 * GIB,
        block_tokens=16,
        sequence_tokens=1024,
        dtype_bytes=1,
    )
    _expect_budget(
        half,
        {"bytes_per_token": 65_536, "blocks": 4096, "tokens": 65_536, "sequences": 64},
        "Llama-3-8B, 4 GiB, fp8 cache (dtype_bytes=1)",
        why="An fp8 cache is bought for holding twice the users; the plan must show it.",
        hint="cache-dtype",
    )


def test_memory_too_small_for_one_block_is_a_budget_of_zero(learner):
    for memory_bytes in (0, 1, LLAMA_3_8B.bytes_per_token * 16 - 1):
        got = learner.kv_budget(
            LLAMA_3_8B.config, memory_bytes=memory_bytes, block_tokens=16, sequence_tokens=1
        )
        _expect_budget(
            got,
            {
                "bytes_per_token": LLAMA_3_8B.bytes_per_token,
                "blocks": 0,
                "tokens": 0,
                "sequences": 0,
            },
            f"Llama-3-8B in {memory_bytes} bytes",
            why="A planner compares many machines; one that is too small must show as zero, not "
            "stop the comparison.",
            hint="whole-blocks",
        )


def test_an_impossible_budget_is_an_error_that_names_the_argument(learner):
    good = {"memory_bytes": GIB, "block_tokens": 16, "sequence_tokens": 100}
    for name, value in (("memory_bytes", -1), ("block_tokens", 0), ("sequence_tokens", 0)):
        expect_raises(
            ValueError,
            lambda name=name, value=value: learner.kv_budget(
                SMOLLM2_135M.config, **(good | {name: value})
            ),
            doing=f"{name}={value}",
            mentions=name,
            why="A wrong unit or a lost digit upstream must stop here, not become a plan.",
            hint="name-the-field",
        )


def test_the_running_engine_reports_the_same_budget(learner, engine, figure):
    cache = engine.kv_cache()
    got = learner.kv_budget(
        engine.model_config,
        memory_bytes=cache.bytes,
        block_tokens=cache.block_tokens,
        sequence_tokens=engine.max_model_len,
    )
    tokens = number(got.tokens, what="tokens")
    figure("KV-cache tokens", tokens, reference=cache.tokens, unit="tokens")
    expect_equal(
        tokens,
        cache.tokens,
        what=f"tokens in {cache.bytes} bytes in blocks of {cache.block_tokens}, for the model "
        f"that the engine ({engine.kind}) serves",
        why="A plan that the server itself contradicts is a wrong plan.",
        hint="one-token",
    )


def _expect_budget(got: Any, want: dict[str, int], what: str, *, why: str, hint: str) -> None:
    fields = {name: getattr(got, name, None) for name in want}
    expect_equal(fields, want, what=f"budget of {what}", why=why, hint=hint)


def _random_architecture(rng: Any) -> tuple[dict[str, Any], int]:
    """A config, and how many numbers its cache keeps for one token."""
    layers = int(rng.integers(1, 129))
    kv_heads = int(rng.choice([1, 2, 3, 4, 8, 16]))
    heads = kv_heads * int(rng.choice([1, 2, 3, 4, 7, 8]))
    head_dim = int(rng.choice([32, 64, 80, 96, 128, 192, 256]))
    config: dict[str, Any] = {
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "hidden_size": heads * head_dim,
        "vocab_size": int(rng.integers(1000, 200_000)),
    }
    if kv_heads != heads or rng.random() < 0.5:
        config["num_key_value_heads"] = kv_heads
    if rng.random() < 0.5:
        config |= {"head_dim": head_dim, "hidden_size": 64 * int(rng.integers(1, 200))}
    return config, 2 * layers * kv_heads * head_dim


def _group_size(config: dict[str, Any]) -> int:
    return int(config["num_attention_heads"] // config["num_key_value_heads"])


def _without(config: dict[str, Any], field: str) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != field}
