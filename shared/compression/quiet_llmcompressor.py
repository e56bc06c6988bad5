"""llm-compressor, imported so that its log does not fill what a learner reads.

Import this before anything of `llmcompressor`: its log begins while it is imported.
"""

import os

# Switched off as a whole, the log lacks a level that GPTQ writes to, and GPTQ fails.
os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")
os.environ.setdefault("COMPRESSED_TENSORS_LOG_LEVEL", "ERROR")

import llmcompressor  # noqa: F401
