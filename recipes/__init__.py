"""The scripts that a user runs; recipes/data and recipes/trainers are what they share."""

import logging
import os

# A repository with pickled weights alone makes transformers ask the Hub, in a thread, for a bot that converts them.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

# bitsandbytes, which peft imports, warns on a CPU of a kernel for 4-bit weights that no recipe has.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda record: "gemm_4bit_forward" not in record.msg)
