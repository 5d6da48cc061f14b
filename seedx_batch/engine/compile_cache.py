"""Makes vLLM find the code again that an earlier start compiled for the CPU, in this process.

Knows torch's loader of compiled functions and one fault of vLLM's, told in docs/compile_cache.md; nothing else.
"""

from typing import Any

import torch


def mend() -> None:
    """Gives functions that torch loads the method that vLLM calls on them.

    On a CPU vLLM compiles by plain inductor. What torch loads of that is a function, without the `finalize_loading` of
    vLLM's own backend, so that vLLM (0.18 to 0.32) takes every load for a failure and compiles again.
    """
    load = getattr(torch.compiler, "load_compiled_function", None)
    if load is None or getattr(load, "mended", False):
        return

    def load_mended(*arguments: Any, **options: Any) -> Any:
        loaded = load(*arguments, **options)
        compiled = getattr(getattr(loaded, "_artifacts", None), "compiled_fn", None)
        if compiled is not None and not hasattr(compiled, "finalize_loading"):
            compiled.finalize_loading = _nothing_to_finalize
        return loaded

    load_mended.mended = True  # type: ignore[attr-defined]
    torch.compiler.load_compiled_function = load_mended


def _nothing_to_finalize(vllm_config: Any) -> None:
    """All of it has been loaded."""
