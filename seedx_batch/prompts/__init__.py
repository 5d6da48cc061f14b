"""Rows made into prompts, and generated texts made into results, as a preset and a job say.

Must never know the engine, the tokenizer, or the files that rows come from.
"""

from seedx_batch.prompts.presets import preset_names
from seedx_batch.prompts.rendering import Prompts

__all__ = ["Prompts", "preset_names"]
