"""The live preference: which α each row of the coming forwards has.

α is an input of the model, but it is needed inside each adapted layer, where transformers' models pass nothing
through. So all adapted layers of a model share one :class:`LivePreference`, and :func:`preference` sets it. It is no
parameter and no buffer: it is never saved, and gradients flow through it to whatever α was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.errors import GuidanceError

Conditions = tuple[Tensor | None, ...]
"""What a layer makes of α. MoSLoRA: (γ, δ), each (..., R). PBLoRA: (M,), (..., R2, R2). The dots: () or (B,)."""

_State = tuple[dict[str, Tensor], dict[str, Mapping[str, Conditions]], dict[str, Tensor]]


class LivePreference:
    """The α of each adapter, shared by all adapted layers of one model.

    Attributes:
        alphas: adapter → α, (K,) for all rows or (B, K) for one a row.
        ready: adapter → layer → conditions that were computed ahead.
        indices: adapter → (B, T) long, the row of α that each token has; absent where row b of α is row b of the batch.
        sizes: adapter → the length of its input: K, or K + 1 where it is told its pull.
        told_strength: adapters that are told their pull.
        encoders: adapter → module that turns α into the conditioning vector; α itself where there is none.
    """

    def __init__(self) -> None:
        self.alphas: dict[str, Tensor] = {}
        self.ready: dict[str, Mapping[str, Conditions]] = {}
        self.indices: dict[str, Tensor] = {}
        self.sizes: dict[str, int] = {}
        self.told_strength: set[str] = set()
        self.encoders: Mapping[str, nn.Module] = {}

    def encode(self, adapter: str, alpha: Tensor) -> Tensor:
        """Return the conditioning vector p(α), (..., D_C)."""
        return self.encoders[adapter](alpha) if adapter in self.encoders else alpha

    def alpha(self, adapter: str) -> Tensor:
        """Return the adapter's α.

        Raises:
            GuidanceError: none is set.
        """
        if adapter not in self.alphas:
            raise GuidanceError(
                f"No preference vector is set for the adapter {adapter!r}, so it has no defined output: run the model "
                "inside 'with preference(model, alpha):'."
            )
        return self.alphas[adapter]

    def single(self, adapter: str) -> Tensor:
        """Return the one α, (K,), that holds for all rows; merging needs one.

        Raises:
            GuidanceError: none is set, or the rows differ.
        """
        alpha = self.alpha(adapter)
        if alpha.ndim == 1:
            return alpha
        if not torch.equal(alpha, alpha[:1].expand_as(alpha)):
            raise GuidanceError("One weight cannot hold several preferences: set a single vector before merging.")
        return alpha[0]

    def conditions(self, layer: Any, adapter: str) -> Conditions:
        """Return what ``layer`` makes of the adapter's α: for all rows, a row, or a token of a row each."""
        if adapter in self.ready:
            found = self.ready[adapter][layer.name]
        else:
            found = layer.conditions(adapter, self.encode(adapter, self.alpha(adapter)))
        return spread(found, self.indices[adapter]) if adapter in self.indices else found

    def state(self) -> _State:
        """Return what :meth:`restore` takes."""
        return dict(self.alphas), dict(self.ready), dict(self.indices)

    def restore(self, state: _State) -> None:
        """Go back to an earlier :meth:`state`."""
        self.alphas, self.ready, self.indices = dict(state[0]), dict(state[1]), dict(state[2])


class _CheckpointingWithPreference:
    """A gradient-checkpointing function whose second forward sees the α of its first.

    The second forward runs in ``backward()``, when another α may be set already, or none.
    """

    def __init__(self, checkpoint: Callable[..., Any], live: LivePreference) -> None:
        self.checkpoint = checkpoint
        self.live = live

    def __call__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state = self.live.state()

        def run(*inputs: Any, **named: Any) -> Any:
            now = self.live.state()
            self.live.restore(state)
            try:
                return function(*inputs, **named)
            finally:
                self.live.restore(now)

        return self.checkpoint(run, *args, **kwargs)


def spread(conditions: Conditions, index: Tensor) -> Conditions:
    """Return the conditions of each token: (P, ...) by row of α and (B, T) → (B, T, ...)."""
    rows = index.flatten()
    return tuple(
        None if c is None else c.index_select(0, rows).unflatten(0, (index.shape[0], index.shape[1]))
        for c in conditions
    )


@contextmanager
def preference(
    model: nn.Module,
    alpha: Tensor | None,
    *,
    adapter: str | None = None,
    precompute: bool = False,
    index: Tensor | None = None,
) -> Generator[None]:
    """Give the rows of the forwards inside their preference vectors; what held before holds again afterwards.

    Args:
        model: a model with MoSLoRA or PBLoRA layers.
        alpha: (K,) for all rows, or (B, K) for one a row, in the order of the guide's objectives; ``None`` unsets it.
            For a guide that is told its pull, what :func:`trimtab.rewards.conditioned.condition_input` makes of both,
            with K + 1 columns.
        adapter: the adapter meant; all active ones by default.
        precompute: compute what the layers make of α now and without gradients. For decoding, where many forwards
            have one α; weights that change inside are then not seen.
        index: (B, T) long, which row of α each token has; then α may have any number of rows. For training, where
            several sequences are packed into one row of a batch.

    Raises:
        GuidanceError: the model has no such layers, or α has another length than the guide has objectives.
    """
    live = _layers(model)[0].live
    before = live.state()
    set_preference(model, alpha, adapter=adapter, precompute=precompute, index=index)
    try:
        yield
    finally:
        live.restore(before)


def set_preference(
    model: nn.Module,
    alpha: Tensor | None,
    *,
    adapter: str | None = None,
    precompute: bool = False,
    index: Tensor | None = None,
) -> None:
    """Set the preference vectors until they are set again (see :func:`preference`).

    Gradient checkpointing that is switched on later is not covered: set the preference after it, as a training loop
    that sets α in each step does by itself.

    Raises:
        GuidanceError: the model has no such layers, or α has another length than the guide has objectives.
    """
    layers = _layers(model)
    live: LivePreference = layers[0].live
    for name in [adapter] if adapter is not None else list(layers[0].active_adapters):
        live.ready.pop(name, None)
        live.indices.pop(name, None)
        if alpha is None:
            live.alphas.pop(name, None)
            continue
        live.alphas[name] = checked = _check(alpha, name, live).to(layers[0].weight.device)
        if index is not None:
            live.indices[name] = _check_index(index, checked)
        if precompute:
            with torch.no_grad():
                live.ready[name] = conditions_of(layers, name, live.encode(name, checked))
    for module in model.modules():
        checkpoint = module.__dict__.get("_gradient_checkpointing_func")
        if checkpoint is not None and not isinstance(checkpoint, _CheckpointingWithPreference):
            module.__dict__["_gradient_checkpointing_func"] = _CheckpointingWithPreference(checkpoint, live)


def conditioning(model: nn.Module, alpha: Tensor, *, adapter: str | None = None) -> dict[str, Conditions]:
    """Return what each adapted layer makes of α, by the layer's name: all of α that a forward needs.

    Its size, and so the cost of a forward, does not depend on the number of objectives.

    Args:
        model: a model with MoSLoRA or PBLoRA layers.
        alpha: (K,) or (B, K).
        adapter: the adapter meant; the first active one by default.

    Raises:
        GuidanceError: the model has no such layers, or α has another length than the guide has objectives.
    """
    layers = _layers(model)
    live: LivePreference = layers[0].live
    name = adapter if adapter is not None else layers[0].active_adapters[0]
    return conditions_of(layers, name, live.encode(name, _check(alpha, name, live).to(layers[0].weight.device)))


def conditions_of(layers: list[Any], adapter: str, vector: Tensor) -> dict[str, Conditions]:
    """Return layer name → conditions for the conditioning vector p."""
    return {layer.name: layer.conditions(adapter, vector) for layer in layers if layer.has(adapter)}


def _layers(model: nn.Module) -> list[Any]:
    from trimtab.rewards.conditioned.tuner import ConditionedLayer

    layers = [module for module in model.modules() if isinstance(module, ConditionedLayer)]
    if not layers:
        raise GuidanceError(
            "This model has no layers that take a preference vector: load a guide of kind 'moslora' or 'pblora'."
        )
    return layers


def _check(alpha: Tensor, adapter: str, live: LivePreference) -> Tensor:
    size = live.sizes.get(adapter)
    if size is None:
        raise GuidanceError(f"There is no adapter {adapter!r} that takes a preference; there are {sorted(live.sizes)}.")
    if alpha.ndim not in (1, 2) or alpha.shape[-1] != size:
        shape = f"A preference of shape {list(alpha.shape)} does not fit a guide with"
        if adapter in live.told_strength:
            raise GuidanceError(
                f"{shape} {size - 1} objectives that is told its pull: pass condition_input(config, alpha, weight), "
                f"({size},) for all rows, or (rows, {size})."
            )
        raise GuidanceError(f"{shape} {size} objectives: pass ({size},) for all rows, or (rows, {size}).")
    return alpha


def _check_index(index: Tensor, alpha: Tensor) -> Tensor:
    if index.ndim != 2 or alpha.ndim != 2:
        raise GuidanceError(
            f"An index of shape {list(index.shape)} into preferences of shape {list(alpha.shape)} does not say which "
            "token has which: the index is (rows, tokens), the preferences (number, objectives)."
        )
    return index.to(alpha.device)
