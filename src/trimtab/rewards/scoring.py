"""Summed log-probabilities of both answers of every pair: one pass of the model's body, then only the rows needed.

For decode-aware training the same sums are taken of the reward that decoding acts on, which needs the base's
distribution beside the guide's: a second pass, in the same layout, with the adapters off and without gradients.

What is exact for a model is found out, not assumed: on first use a few tokens go through the model the plain way
(whole sequences, ``model(...).logits``) and through the shortcuts, and a shortcut that does not agree is not used.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trimtab.errors import ConfigError, GuidanceError
from trimtab.rewards.architecture import (
    as_in_decoding,
    attention_mask,
    cannot_branch,
    causal_model,
    logit_shape,
    outputs_of,
    same_kind,
)
from trimtab.rewards.encoding import EncodedPair
from trimtab.rewards.guided_logprobs import decoded_reward, guided_token_logprobs
from trimtab.rewards.layout import PairBatch, layout_pairs
from trimtab.rewards.logprobs import token_logprobs

log = logging.getLogger("trimtab")

_GENERIC_CHUNK = 128
_TOLERANCE = 1e-3
_TOLERANCE_HALF = 2e-2


class PairScorer:
    """Computes log π(a|x) and log π(b|x) of pairs under one causal language model.

    Attributes:
        branched: whether a pair's shared beginning is encoded once (see :mod:`trimtab.rewards.layout`).
        plain_head: whether the output layer is a plain matrix, so that logits are made chunk by chunk.
        why_not: why the prompt is not shared, or ``""``.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_length: int,
        share_prompt: bool = True,
        head_dtype: torch.dtype | None = None,
        base: Any = None,
    ) -> None:
        """Look at ``model`` and probe it.

        Args:
            model: a transformers causal LM or a PEFT model around one, on its device.
            max_length: the longest sequence that will be scored, tokens.
            share_prompt: ``False`` encodes every answer in a row of its own.
            head_dtype: dtype of the output layer's matrix product; default: the wider of state's and weight's.
            base: what decoding will guide, where that is not ``model`` with its adapters off: a frozen copy of the
                start, if the whole model is trained. ``guided_by`` and ``against_base`` need it.

        Raises:
            ConfigError: ``base`` is of another architecture or vocabulary than ``model``.
        """
        self._causal = causal_model(model)
        self._adapted: Any = model if hasattr(model, "disable_adapter") else None
        self._base = base
        self._head_dtype = head_dtype
        parameters = inspect.signature(self._causal.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self.plain_head = self._keeps_logits and self._head_is_a_matrix()
        self.why_not = "" if share_prompt else "switched off"
        for causal in [self._causal] if base is None else [self._causal, same_kind(base, self._causal)]:
            self.why_not = self.why_not or cannot_branch(causal, set(parameters), max_length)
        self.branched = not self.why_not
        self._probe(model)
        if self.why_not and share_prompt:
            log.info("Prompts are encoded once an answer, not once a pair: %s", self.why_not)

    def layout(self, pairs: Sequence[EncodedPair], *, share_root: bool = True) -> PairBatch:
        """Return the batch of ``pairs`` in the layout that is exact for this model.

        ``share_root=False`` is for pairs that are read under a preference each.
        """
        return layout_pairs(pairs, branched=self.branched, share_root=share_root)

    def __call__(
        self,
        model: Any,
        batch: PairBatch,
        *,
        common_gradient: bool = True,
        guided_by: Tensor | None = None,
        against_base: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Return the summed log-probabilities of both answers, EOS included.

        Args:
            model: the model this scorer was made for, or a wrapper (DDP) around it.
            batch: from :meth:`layout`, on the model's device.
            common_gradient: ``False`` leaves the answers' common beginning out of the gradient. It adds the same to
                both sums, so the gradient of any function of their difference is unchanged, and cheaper.
            guided_by: (P,) the pull w with which each pair's answers shall be decoded. Then the sums are of
                :func:`trimtab.rewards.guided_logprobs.decoded_reward`'s h in place of the log-probabilities.
            against_base: return log π − log π_ref, π_ref the base, which gets no gradient: what DPO
                (arXiv 2305.18290, eq. 7) compares. Not together with ``guided_by``.

        Returns:
            Two (P,) float32 tensors, nats.

        Raises:
            GuidanceError: ``guided_by`` has another shape, or holds what is not a number above 0.
            ConfigError: the base is needed, but it is not known.
        """
        pairs = batch["pair_index"].shape[0]
        w = base = None
        if guided_by is not None or against_base:
            base = self._base_states(model, batch)
        if guided_by is not None:
            w = _checked_pull(guided_by, pairs).to(batch["owner"].device)
        states = self._states(model, self._causal, batch)
        beside = None if w is None else base
        own = self._sums_of(states, beside, batch, w, common_gradient, self._causal)
        if against_base and base is not None:
            causal = self._causal if self._base is None else causal_model(self._base)
            with torch.no_grad():
                reference = self._sums_of(base, None, batch, None, False, causal)
            own = own - reference
        return own[0::2], own[1::2]

    def _sums_of(
        self,
        states: Tensor,
        base: Tensor | None,
        batch: PairBatch,
        w: Tensor | None,
        common_gradient: bool,
        causal: Any,
    ) -> Tensor:
        """Return the sums over the answers of P pairs, (2·P,): of each pair the first answer's, then the second's."""
        pairs = batch["pair_index"].shape[0]
        pull = None if w is None else w[batch["owner"] // 2]
        own = self._logprobs(causal, states, base, batch["source"], batch["target"], pull)
        sums = own.new_zeros(2 * pairs).index_add(0, batch["owner"], own)
        if batch["common_source"].numel():
            with torch.set_grad_enabled(common_gradient and torch.is_grad_enabled()):
                w = None if w is None else w[batch["common_owner"]]
                both = self._logprobs(causal, states, base, batch["common_source"], batch["common_target"], w)
                common = both.new_zeros(pairs).index_add(0, batch["common_owner"], both)
            sums = sums + common.repeat_interleave(2)
        return sums

    def _states(self, model: Any, causal: Any, batch: PairBatch) -> Tensor:
        """Return what predicts each token: final hidden states (R·L, D), or logits (R·L, V) without a plain head."""
        arguments: dict[str, Any] = {"input_ids": batch["input_ids"], "use_cache": False}
        if batch["branched"]:
            arguments["position_ids"] = batch["position_ids"]
            arguments["attention_mask"] = attention_mask(causal, batch)
        else:
            arguments["attention_mask"] = (batch["node"] > 0).long()
        if not self.plain_head:
            return cast("Tensor", model(**arguments).logits.flatten(0, 1))
        # The whole model is called, and not its body alone, so that wrappers (DDP, autocast) do their part;
        # of its own logits only one position a row is asked for.
        with outputs_of(causal.get_decoder()) as outputs:
            model(**arguments, logits_to_keep=1)
        return outputs[-1].flatten(0, 1)

    def _base_states(self, model: Any, batch: PairBatch) -> Tensor:
        """Return the same of the base: neither its dropout nor its gradients are part of what decoding will see."""
        if self._base is not None:
            with as_in_decoding(self._base):
                return self._states(self._base, causal_model(self._base), batch)
        if self._adapted is None:
            raise ConfigError(
                "These scores need the base beside the guide, and this model has no adapters to switch off: "
                "pass PairScorer(..., base=copy), a frozen copy of the model before its training."
            )
        with as_in_decoding(self._adapted), self._adapted.disable_adapter():
            return self._states(model, self._causal, batch)

    def _logprobs(
        self, causal: Any, states: Tensor, base: Tensor | None, source: Tensor, target: Tensor, w: Tensor | None
    ) -> Tensor:
        picked = states[source]
        beside = None if base is None else base[source]
        if not self.plain_head:
            return _generic_logprobs(picked, target, beside, w)
        head = causal.get_output_embeddings()
        scale, softcap = logit_shape(causal.config)
        shape: dict[str, Any] = {"bias": head.bias, "scale": scale, "softcap": softcap, "dtype": self._head_dtype}
        if beside is None or w is None:
            return token_logprobs(picked, head.weight, target, **shape)
        if self._base is not None:
            own = causal_model(self._base).get_output_embeddings()
            shape |= {"base_weight": own.weight, "base_bias": own.bias}
        return guided_token_logprobs(picked, beside, head.weight, target, w, **shape)

    def _head_is_a_matrix(self) -> bool:
        # Exactly nn.Linear: an adapted, quantised or otherwise wrapped output layer computes something else.
        return type(self._causal.get_output_embeddings()) is torch.nn.Linear

    def _probe(self, model: Any) -> None:
        """Switch off each shortcut that does not reproduce the plain way on a few tokens."""
        pairs = _probe_pairs(int(self._causal.config.get_text_config().vocab_size))
        plain = layout_pairs(pairs, branched=False)
        with as_in_decoding(model):
            wanted = (self.plain_head, self.branched)
            self.plain_head = False
            expected = self._sums(model, plain)
            self.plain_head = wanted[0]
            if wanted[0]:
                self.plain_head = self._agrees(model, plain, expected)
            if wanted[1] and not self._agrees(model, layout_pairs(pairs, branched=True), expected):
                self.branched, self.why_not = False, "this architecture gives other numbers for a shared prompt"

    def _sums(self, model: Any, batch: PairBatch) -> Tensor:
        device = self._causal.get_output_embeddings().weight.device
        return torch.cat(self(model, on_device(batch, device)))

    def _agrees(self, model: Any, batch: PairBatch, expected: Tensor) -> bool:
        try:
            got = self._sums(model, batch)
        except Exception as error:  # an architecture that refuses the shortcut simply does not get it
            log.debug("Shortcut refused: %s", error)
            return False
        half = self._causal.dtype in (torch.bfloat16, torch.float16)
        tolerance = _TOLERANCE_HALF if half else _TOLERANCE
        return bool(torch.allclose(got, expected, rtol=tolerance, atol=tolerance))


def sequence_logprobs(
    model: Any,
    pairs: Sequence[EncodedPair],
    *,
    scorer: PairScorer | None = None,
    batch_size: int = 16,
    guided_by: float | None = None,
    against_base: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return log π(a|x) and log π(b|x) of each pair, without gradients, pairs of like length batched together.

    Args:
        model: as for :class:`PairScorer`.
        pairs: at least one.
        scorer: made for ``model``; a new one by default.
        batch_size: pairs a forward.
        guided_by: w, for the reward that decoding with this pull acts on, in place of the log-probability.
        against_base: return log π − log π_ref, π_ref the base.

    Returns:
        Two (P,) float32 tensors on the CPU, nats, in the order of ``pairs``.
    """
    longest = max(len(p.prompt_ids) + max(len(p.a_ids), len(p.b_ids)) for p in pairs)
    scorer = scorer or PairScorer(model, max_length=longest)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].prompt_ids) + len(pairs[i].a_ids))
    result = torch.empty(2, len(pairs))
    device = causal_model(model).get_output_embeddings().weight.device
    with as_in_decoding(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = on_device(scorer.layout([pairs[i] for i in chosen]), device)
            w = None if guided_by is None else torch.full((len(chosen),), guided_by)
            found = scorer(model, batch, guided_by=w, against_base=against_base)
            result[:, chosen] = torch.stack(found).float().cpu()
    return result[0], result[1]


def on_device(batch: PairBatch, device: torch.device) -> PairBatch:
    """Return the batch with its tensors on ``device``."""
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    return cast("PairBatch", moved)


def _generic_logprobs(logits: Tensor, target: Tensor, base: Tensor | None = None, w: Tensor | None = None) -> Tensor:
    """Log-probabilities, or h beside the base's logits, from (N, V) → (N,), widened to float32 chunk by chunk."""

    def part(rows: Tensor, ids: Tensor, beside: Tensor | None, pull: Tensor | None) -> Tensor:
        wide = torch.promote_types(rows.dtype, torch.float32)
        if beside is not None and pull is not None:
            return decoded_reward(beside.to(wide), rows.to(wide), ids, pull.to(wide)).reward
        return torch.log_softmax(rows.to(wide), -1).gather(1, ids[:, None]).squeeze(1)

    def chunks(tensor: Tensor | None) -> Iterable[Tensor | None]:
        return repeat(None) if tensor is None else tensor.split(_GENERIC_CHUNK)

    columns = zip(chunks(logits), chunks(target), chunks(base), chunks(w), strict=False)
    return torch.cat([cast("Tensor", checkpoint(part, *column, use_reentrant=False)) for column in columns])


def _checked_pull(guided_by: Tensor, pairs: int) -> Tensor:
    if guided_by.shape != (pairs,) or not bool(((guided_by > 0) & torch.isfinite(guided_by)).all()):
        raise GuidanceError(
            f"guided_by must hold one pull w for each of {pairs} pairs, all numbers above 0 (at 0 a guide is not "
            f"decoded at all); got {guided_by.tolist()!r:.200}."
        )
    return guided_by.detach()


def _probe_pairs(vocabulary: int) -> list[EncodedPair]:
    """Three pairs of unequal lengths with every kind of sharing; ``b`` repeats parts of ``a``, so a leak would show."""
    ids = [int(i) for i in torch.randint(vocabulary // 2, (24,), generator=torch.Generator().manual_seed(0))]
    first = EncodedPair(ids[:6], ids[6:15], [ids[15], *ids[7:12]])
    second = EncodedPair([*ids[:3], ids[16]], ids[17:21], [ids[17], ids[18], ids[22]])
    return [first, second, EncodedPair([*ids[:3], ids[17], ids[23]], ids[8:12], ids[9:12])]
