"""The packaged sentence encoder (see :mod:`trimtab.models.minilm`) as a function from texts to vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from trimtab.models.minilm import materialise

MAX_TOKENS = 256
DIMENSIONS = 384


class MiniLM:
    """The encoder: texts to unit vectors (mean over tokens, then divided by the length)."""

    def __init__(self) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = materialise()
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()

    def __call__(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float64]:
        """Return (N, 384); texts lose what goes beyond 256 tokens."""
        out = np.zeros((len(texts), DIMENSIONS))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # like lengths together, so little is padded
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            out[rows] = self._encode([texts[i] for i in rows])
        return out

    @torch.inference_mode()
    def _encode(self, texts: Sequence[str]) -> NDArray[np.float64]:
        inputs = self._tokenizer(list(texts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        states = self._model(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(states.dtype)
        mean = (states * mask).sum(1) / mask.sum(1).clamp(min=1)
        return cast("NDArray[np.float64]", torch.nn.functional.normalize(mean, dim=1).double().numpy())
