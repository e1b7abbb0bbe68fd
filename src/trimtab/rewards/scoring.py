"""Summed log-probabilities of both answers of every pair: one pass of the model's body, then only the rows needed.

What is exact for a model is found out, not assumed: on first use a few tokens go through the model the plain way
(whole sequences, ``model(...).logits``) and through the shortcuts, and a shortcut that does not agree is not used.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from trimtab.rewards.encoding import EncodedPair
from trimtab.rewards.layout import PairBatch, branch_mask, layout_pairs
from trimtab.rewards.logprobs import token_logprobs

log = logging.getLogger("trimtab")

_GENERIC_CHUNK = 128
_MASKED_ATTENTION = ("sdpa", "eager")
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
        self, model: Any, *, max_length: int, share_prompt: bool = True, head_dtype: torch.dtype | None = None
    ) -> None:
        """Look at ``model`` and probe it.

        Args:
            model: a transformers causal LM or a PEFT model around one, on its device.
            max_length: the longest sequence that will be scored, tokens.
            share_prompt: ``False`` encodes every answer in a row of its own.
            head_dtype: dtype of the output layer's matrix product; default: the wider of state's and weight's.
        """
        self._causal = causal_model(model)
        self._head_dtype = head_dtype
        parameters = inspect.signature(self._causal.forward).parameters
        self._keeps_logits = "logits_to_keep" in parameters
        self.plain_head = self._keeps_logits and self._head_is_a_matrix()
        self.why_not = "" if share_prompt else "switched off"
        self.why_not = self.why_not or _cannot_branch(self._causal, set(parameters), max_length)
        self.branched = not self.why_not
        self._probe(model)
        if self.why_not and share_prompt:
            log.info("Prompts are encoded once an answer, not once a pair: %s", self.why_not)

    def layout(self, pairs: Sequence[EncodedPair], *, share_root: bool = True) -> PairBatch:
        """Return the batch of ``pairs`` in the layout that is exact for this model.

        ``share_root=False`` is for pairs that are read under a preference each.
        """
        return layout_pairs(pairs, branched=self.branched, share_root=share_root)

    def __call__(self, model: Any, batch: PairBatch, *, common_gradient: bool = True) -> tuple[Tensor, Tensor]:
        """Return the summed log-probabilities of both answers, EOS included.

        Args:
            model: the model this scorer was made for, or a wrapper (DDP) around it.
            batch: from :meth:`layout`, on the model's device.
            common_gradient: ``False`` leaves the answers' common beginning out of the gradient. It adds the same to
                both sums, so the gradient of any function of their difference is unchanged, and cheaper.

        Returns:
            Two (P,) float32 tensors, nats.
        """
        pairs = batch["pair_index"].shape[0]
        states = self._states(model, batch)
        own = self._logprobs(states, batch["source"], batch["target"])
        sums = own.new_zeros(2 * pairs).index_add(0, batch["owner"], own)
        if batch["common_source"].numel():
            with torch.set_grad_enabled(common_gradient and torch.is_grad_enabled()):
                both = self._logprobs(states, batch["common_source"], batch["common_target"])
                common = both.new_zeros(pairs).index_add(0, batch["common_owner"], both)
            sums = sums + common.repeat_interleave(2)
        return sums[0::2], sums[1::2]

    def _states(self, model: Any, batch: PairBatch) -> Tensor:
        """Return what predicts each token: final hidden states (R·L, D), or logits (R·L, V) without a plain head."""
        arguments: dict[str, Any] = {"input_ids": batch["input_ids"], "use_cache": False}
        if batch["branched"]:
            arguments["position_ids"] = batch["position_ids"]
            arguments["attention_mask"] = self._mask(batch)
        else:
            arguments["attention_mask"] = (batch["node"] > 0).long()
        if not self.plain_head:
            return cast("Tensor", model(**arguments).logits.flatten(0, 1))
        # The whole model is called, and not its body alone, so that wrappers (DDP, autocast) do their part;
        # of its own logits only one position a row is asked for.
        with _outputs_of(self._causal.get_decoder()) as outputs:
            model(**arguments, logits_to_keep=1)
        return outputs[-1].flatten(0, 1)

    def _mask(self, batch: PairBatch) -> Tensor:
        mask = branch_mask(batch["node"], batch["above"])
        if _attention(self._causal) == "sdpa":
            return mask
        dtype = self._causal.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)

    def _logprobs(self, states: Tensor, source: Tensor, target: Tensor) -> Tensor:
        picked = states[source]
        if not self.plain_head:
            return _generic_logprobs(picked, target)
        head = self._causal.get_output_embeddings()
        scale, softcap = _logit_shape(self._causal.config)
        return token_logprobs(
            picked, head.weight, target, bias=head.bias, scale=scale, softcap=softcap, dtype=self._head_dtype
        )

    def _head_is_a_matrix(self) -> bool:
        # Exactly nn.Linear: an adapted, quantised or otherwise wrapped output layer computes something else.
        return type(self._causal.get_output_embeddings()) is torch.nn.Linear

    def _probe(self, model: Any) -> None:
        """Switch off each shortcut that does not reproduce the plain way on a few tokens."""
        pairs = _probe_pairs(int(self._causal.config.get_text_config().vocab_size))
        plain = layout_pairs(pairs, branched=False)
        with _evaluating(model):
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
    model: Any, pairs: Sequence[EncodedPair], *, scorer: PairScorer | None = None, batch_size: int = 16
) -> tuple[Tensor, Tensor]:
    """Return log π(a|x) and log π(b|x) of each pair, without gradients, pairs of like length batched together.

    Returns:
        Two (P,) float32 tensors on the CPU, nats, in the order of ``pairs``.
    """
    longest = max(len(p.prompt_ids) + max(len(p.a_ids), len(p.b_ids)) for p in pairs)
    scorer = scorer or PairScorer(model, max_length=longest)
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i].prompt_ids) + len(pairs[i].a_ids))
    result = torch.empty(2, len(pairs))
    device = causal_model(model).get_output_embeddings().weight.device
    with _evaluating(model):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = on_device(scorer.layout([pairs[i] for i in chosen]), device)
            result[:, chosen] = torch.stack(scorer(model, batch)).float().cpu()
    return result[0], result[1]


def on_device(batch: PairBatch, device: torch.device) -> PairBatch:
    """Return the batch with its tensors on ``device``."""
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    return cast("PairBatch", moved)


def causal_model(model: Any) -> Any:
    """Return the transformers causal LM inside ``model``, which may be a PEFT model or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def _evaluating(model: Any) -> Generator[None]:
    """Dropout and gradients off; training mode as it was afterwards."""
    was_training = bool(model.training)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


@contextmanager
def _outputs_of(module: Any) -> Generator[list[Tensor]]:
    """Collect the first output of each call of ``module``."""
    outputs: list[Tensor] = []

    def keep(_module: Any, _arguments: Any, output: Any) -> None:
        outputs.append(output[0])

    handle = module.register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()


def _generic_logprobs(logits: Tensor, target: Tensor) -> Tensor:
    """Log-probabilities from ready logits (N, V) → (N,), widened to float32 one chunk at a time."""

    def part(rows: Tensor, ids: Tensor) -> Tensor:
        wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return torch.log_softmax(wide, -1).gather(1, ids[:, None]).squeeze(1)

    chunks = zip(logits.split(_GENERIC_CHUNK), target.split(_GENERIC_CHUNK), strict=True)
    return torch.cat([cast("Tensor", checkpoint(part, rows, ids, use_reentrant=False)) for rows, ids in chunks])


def _logit_shape(config: Any) -> tuple[float, float | None]:
    """Return (scale, softcap) of the logits, by the names that architectures give them."""
    text = config.get_text_config()
    scale = float(getattr(text, "logit_scale", None) or 1.0)
    divisor = float(getattr(text, "logits_scaling", None) or 1.0)
    softcap = getattr(text, "final_logit_softcapping", None)
    return scale / divisor, None if softcap is None else float(softcap)


def _attention(causal: Any) -> str:
    return str(getattr(causal.config, "_attn_implementation", ""))


def _cannot_branch(causal: Any, parameters: set[str], max_length: int) -> str:
    """Return why a shared prompt cannot be exact for this model, or ``""`` where only the probe can tell."""
    config = causal.config.get_text_config()
    if "position_ids" not in parameters:
        return "the model takes no position ids"
    if _attention(causal) not in _MASKED_ATTENTION:
        return f"attention {_attention(causal)!r} takes no mask for every pair of tokens"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and window < max_length:
        return f"its attention window ({window}) is shorter than the sequences ({max_length})"
    chunk = getattr(config, "attention_chunk_size", None)
    return f"it attends within chunks of {chunk} tokens" if chunk and chunk < max_length else ""


def _probe_pairs(vocabulary: int) -> list[EncodedPair]:
    """Three pairs of unequal lengths with every kind of sharing; ``b`` repeats parts of ``a``, so a leak would show."""
    ids = [int(i) for i in torch.randint(vocabulary // 2, (24,), generator=torch.Generator().manual_seed(0))]
    first = EncodedPair(ids[:6], ids[6:15], [ids[15], *ids[7:12]])
    second = EncodedPair([*ids[:3], ids[16]], ids[17:21], [ids[17], ids[18], ids[22]])
    return [first, second, EncodedPair([*ids[:3], ids[17], ids[23]], ids[8:12], ids[9:12])]
