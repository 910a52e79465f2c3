"""The scripts that a user runs; recipes/data and recipes/trainers are what they share."""

import os

# A repository with pickled weights alone makes transformers ask the Hub, in a thread, for a bot that converts them.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
