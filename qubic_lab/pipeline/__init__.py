"""A language model over 1..N ranks: micro-batches pass from stage to stage, and tokens return to rank 0."""

from qubic_lab.pipeline.async_client import AsyncPipeline
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig

__all__ = ["AsyncPipeline", "Pipeline", "PipelineConfig"]
