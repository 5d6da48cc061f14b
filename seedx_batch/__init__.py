"""seedx-batch: offline batch translation and generation with vLLM, where no row is lost."""

__version__ = "0.1.0"
