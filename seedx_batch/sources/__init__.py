"""The input: finding its files, one streaming pass that counts and describes them, and reading one slice at a time.

Must never know prompts or output.
"""

from seedx_batch.sources.changes import Changes, compare
from seedx_batch.sources.columns import CarriedColumn, carry, schema
from seedx_batch.sources.files import InputFile, changed, find
from seedx_batch.sources.reader import Reader
from seedx_batch.sources.scan import Scan, scan

__all__ = [
    "CarriedColumn",
    "Changes",
    "InputFile",
    "Reader",
    "Scan",
    "carry",
    "changed",
    "compare",
    "find",
    "scan",
    "schema",
]
