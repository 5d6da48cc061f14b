"""Whether two engines compute the same: what each makes of the same prompts, kept in files and compared in numbers.

Must never know vLLM, torch or transformers: engines run in processes of their own, and records are compared without.
"""
