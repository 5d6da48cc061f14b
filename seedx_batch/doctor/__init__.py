"""`doctor`: everything that a machine, and a job on it, needs, looked at before an engine is started.

Must never import torch, transformers or vLLM: devices are asked in processes of their own.
"""

from seedx_batch.doctor.examination import examine
from seedx_batch.doctor.findings import Finding, Report
from seedx_batch.doctor.machine import Answer, Machine

__all__ = ["Answer", "Finding", "Machine", "Report", "examine"]
