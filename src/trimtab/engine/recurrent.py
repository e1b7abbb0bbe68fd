"""Causal LMs whose state is more than keys and values (Mamba, RWKV, hybrids): each sequence on its own.

The pages hold the sequences' tokens, and beside them lies the state that transformers made of some of them. A
sequence whose state is not there, because it begins, shares a prefix or was taken back, is read again from its
tokens. That is slow, but it is right whatever becomes of the pages.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.engine.adapters import RowAdapters, RowSlice
from trimtab.engine.conditioned import RowConditions
from trimtab.engine.kv_cache import KVCache, KVShape
from trimtab.engine.spans import Span

LAYERS = [KVShape(1, 1, 0)]
"""What is stored of a token: its id."""

DTYPE = torch.int32

_STATES = ("past_key_values", "cache_params", "state")  # names that models have for what they remember
_ONE_BY_ONE = 16  # so many new tokens are read one at a time; of more, the whole sequence is read again
_IDLE_CALLS = 64

_Key = tuple[int | None, int, tuple[int, ...]]


class RecurrentForward:
    """Runs spans one by one through transformers' own forward, with the state that it makes itself."""

    def __init__(self, model: Any, cache: KVCache, adapters: RowAdapters, *, keeps_state: bool = True) -> None:
        """Take a model; with ``keeps_state=False`` each sequence is read from its start in each call."""
        self.model, self.adapters = model, adapters
        self._tokens = cache.keys[0].flatten(1)  # (pages, PAGE)
        known = inspect.signature(model.forward).parameters
        self._state_name = next((name for name in _STATES if name in known), None) if keeps_state else None
        self._takes_positions = "position_ids" in known
        # States by what they have read; two sequences alike have one each. The conditions are held for their ids.
        self._states: dict[_Key, list[tuple[int, Any, Any]]] = {}
        self._calls = 0

    def __call__(self, spans: Sequence[Span]) -> Tensor:
        """Return (Σ keep, V) float32 logits."""
        self._calls += 1
        logits = torch.cat([self._run(span) for span in spans])
        self._forget()
        return logits

    def _run(self, span: Span) -> Tensor:
        table = torch.from_numpy(span.pages).long().to(self._tokens.device)
        stored = self._tokens[table].flatten()
        past: list[int] = stored[: span.start].tolist()
        new = list(span.tokens)
        stored[span.start : span.start + len(new)] = torch.tensor(new, dtype=DTYPE, device=stored.device)
        first = span.start // self._tokens.shape[1]
        changed = table[first : -(-(span.start + len(new)) // self._tokens.shape[1])]
        self._tokens[changed] = stored.view(-1, self._tokens.shape[1])[first : first + len(changed)]
        state = self._take(span, past) if past and len(new) <= _ONE_BY_ONE else None
        self.adapters.use(() if span.slot is None else [self._slice(span)])
        try:
            if state is None:
                logits, state = self._read(past + new, 0, None)
            else:
                parts: list[Tensor] = []
                for i, token in enumerate(new):
                    part, state = self._read([token], span.start + i, state)
                    parts.append(part)
                logits = torch.cat(parts)
        finally:
            self.adapters.use(())
        self._put(span, past + new, state)
        return logits[len(logits) - span.keep :].float()

    def _read(self, ids: Sequence[int], start: int, state: Any) -> tuple[Tensor, Any]:
        """Return (T, V) logits of the next tokens of a sequence, and its state behind them."""
        options: dict[str, Any] = {"input_ids": torch.tensor([list(ids)], device=self.model.device)}
        options["use_cache"] = self._state_name is not None
        if self._state_name in ("past_key_values", "cache_params") and state is None:
            from transformers import DynamicCache

            state = DynamicCache(config=self.model.config)
        if self._state_name is not None and state is not None:
            options[self._state_name] = state
        if self._takes_positions:
            options["position_ids"] = torch.arange(start, start + len(ids), device=self.model.device)[None]
        out = self.model(**options)
        if self._state_name is not None:
            state = getattr(out, self._state_name)
        return out.logits[0], state

    def _slice(self, span: Span) -> RowSlice:
        return RowSlice(span.slot or 0, 0, 1, RowConditions.of([span.conditions]))

    def _key(self, span: Span, tokens: Sequence[int]) -> _Key:
        return span.slot, id(span.conditions), tuple(tokens)

    def _take(self, span: Span, past: Sequence[int]) -> Any:
        key = self._key(span, past)
        states = self._states.get(key)
        if not states:
            return None
        _, _, state = states.pop()
        if not states:
            del self._states[key]
        return state

    def _put(self, span: Span, tokens: Sequence[int], state: Any) -> None:
        if state is not None:
            key = self._key(span, tokens)
            self._states.setdefault(key, []).append((self._calls, span.conditions, state))

    def _forget(self) -> None:
        """Drop the states that nobody has asked for in a while: their sequences are over, or can be read again."""
        if self._calls % _IDLE_CALLS:
            return
        for key, states in list(self._states.items()):
            kept = [entry for entry in states if entry[0] > self._calls - _IDLE_CALLS]
            if kept:
                self._states[key] = kept
            else:
                del self._states[key]
