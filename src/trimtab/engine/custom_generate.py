"""Guidance for users of plain transformers: ``model.generate(…, custom_generate=trimtab.custom_generate(…))``."""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from trimtab.engine.config import EngineConfig, make_engine_config
from trimtab.engine.engine import Engine, load
from trimtab.engine.guidance import GuidanceLike, as_guidance, resolve
from trimtab.engine.guides import Guide, GuideFolders
from trimtab.engine.transformers_loop import Asked, arguments_of_generate, check_arguments, read_prompts, write
from trimtab.errors import ConfigError, GuidanceError, GuideError, ModelError
from trimtab.models import Base

Guidances = GuidanceLike | Sequence[GuidanceLike]
"""One guidance for all prompts, or a list with one for each."""

_KEPT = "_trimtab_engines"
_UNSAID: Any = object()
_numbers = itertools.count()


def custom_generate(
    guides: str | Path | GuideFolders = (),
    *,
    guidance: Guidances = None,
    tokenizer: Any | None = None,
    guide_bases: Mapping[str, str] | None = None,
    config: EngineConfig | Mapping[str, Any] | None = None,
) -> CustomGenerate:
    """Return what transformers' ``generate`` takes as ``custom_generate`` to be guided.

    ::

        steer = trimtab.custom_generate("runs/polite", guidance=1.0)
        model.generate(**tokenizer("Hi", return_tensors="pt"), custom_generate=steer, max_new_tokens=64)

    The guides are loaded when it is first used with a model, and stay on it until :meth:`CustomGenerate.close`.

    Args:
        guides: guide folders, as in :func:`trimtab.load`.
        guidance: as in ``Engine.generate``, for calls that do not say ``generate(guidance=…)``.
        tokenizer: the model's tokenizer. Default: the one that lies where the model was loaded from.
        guide_bases: guide name → model to load for a guide that was trained on another base.
        config: an :class:`EngineConfig` or a mapping with its fields.

    Raises:
        GuidanceError: the guidance is none of the accepted forms.
        ConfigError: an unknown or impossible option of ``config``.
    """
    return CustomGenerate(guides, guidance, tokenizer, dict(guide_bases or {}), _without_drafts(config))


def _without_drafts(config: EngineConfig | Mapping[str, Any] | None) -> EngineConfig:
    """Return a config that drafts nothing: each token goes through transformers' processors before the next is known.

    Raises:
        ConfigError: drafts are asked for by name, or another option is impossible.
    """
    chosen = make_engine_config(config)
    if chosen.draft_model is not None or chosen.speculation not in ("auto", "off"):
        raise ConfigError(
            "custom_generate drafts no tokens: use trimtab.load, or leave speculation and draft_model away."
        )
    return chosen.model_copy(update={"speculation": "off"})


class CustomGenerate:
    """Made by :func:`custom_generate`; give it to ``generate``, of one model or several."""

    def __init__(
        self,
        guides: str | Path | GuideFolders,
        guidance: Guidances,
        tokenizer: Any | None,
        guide_bases: Mapping[str, str],
        config: EngineConfig,
    ) -> None:
        self.guidance = guidance
        self._folders: GuideFolders = [guides] if isinstance(guides, (str, Path)) else guides
        self._tokenizer, self._guide_bases, self._config = tokenizer, guide_bases, config
        self._number = next(_numbers)
        self._lock = threading.Lock()
        self._closers: list[Any] = []

    @property
    def guidance(self) -> Guidances:
        """What calls are guided by that do not say ``generate(guidance=…)``; set it to change it."""
        return self._guidance

    @guidance.setter
    def guidance(self, value: Guidances) -> None:
        for one in value if isinstance(value, (list, tuple)) else [value]:
            as_guidance(cast("GuidanceLike", one))
        self._guidance = value

    def guides(self, model: Any) -> dict[str, Guide]:
        """Return the guides by name, loading them onto a model if need be."""
        with self._lock:
            return self._engine(model).guides

    def close(self) -> None:
        """Take the guides off every model and free their memory; the next use loads them again."""
        with self._lock:
            closers, self._closers = self._closers, []
        for closer in closers:
            closer()

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any = (),
        stopping_criteria: Any = (),
        generation_config: Any = None,
        *,
        guidance: Guidances = _UNSAID,
        stop_strings: str | Sequence[str] | None = None,
        **model_kwargs: Any,
    ) -> Any:
        """Do what transformers asks of a ``custom_generate``; to be called by ``generate`` only.

        Args:
            model: whose ``generate`` it is.
            input_ids: (B, T) prompts, padded on the left, each repeated ``num_return_sequences`` times.
            logits_processor: every processor that applies, the user's and those of the config.
            stopping_criteria: likewise.
            generation_config: with all defaults filled in.
            guidance: ``generate(guidance=…)``: one for all prompts, or a list with one each.
            stop_strings: ``generate(stop_strings=…)``, which transformers leaves to a callable that has it.
            model_kwargs: what transformers would hand to the model's forward, ``attention_mask`` among it.

        Returns:
            (B, T + new) ids, or a ``GenerateDecoderOnlyOutput``, as the config says.

        Raises:
            ConfigError: an option has no meaning under guidance.
            TrimtabError: as :func:`trimtab.load` and ``Engine.generate``.
        """
        from transformers import StopStringCriteria

        given = arguments_of_generate(self)
        if not given:
            raise ConfigError("This is for transformers to call: model.generate(**inputs, custom_generate=…).")
        check_arguments(model, generation_config, logits_processor, given, model_kwargs)
        positions = model_kwargs.get("position_ids")
        prompts = read_prompts(input_ids, model_kwargs.get("attention_mask"), positions)
        with self._lock:
            engine = self._engine(model)
        core, driver = engine.parts
        if stop_strings is not None:
            stops = [stop_strings] if isinstance(stop_strings, str) else list(stop_strings)
            stopping_criteria.append(StopStringCriteria(core.base.tokenizer, stops))
        asked = self._guidance if guidance is _UNSAID else guidance
        spread = _one_each(asked, len(prompts), generation_config.num_return_sequences or 1)
        pulls = [resolve(one, core.guides) for one in spread]
        streamer = given.get("streamer")
        call = Asked(input_ids, prompts, logits_processor, stopping_criteria, generation_config, streamer)
        return write(core, driver, call, pulls)

    def _engine(self, model: Any) -> Engine:
        """Return the engine that this object keeps on a model, made anew if the model's weights have changed."""
        kept = model.__dict__.get(_KEPT, {}).get(self._number)
        if kept is not None and kept[0] == _weights(model):
            return kept[1]
        if kept is not None:
            _close(weakref.ref(model), self._number)
        engine = self._load(model)
        # Loading may move the weights within memory, so they are looked at afterwards.
        model.__dict__.setdefault(_KEPT, _Engines())[self._number] = (_weights(model), engine)
        if kept is None:
            closer = weakref.finalize(self, _close, weakref.ref(model), self._number)
            closer.atexit = False
            self._closers.append(closer)
        return engine

    def _load(self, model: Any) -> Engine:
        _check_model(model)
        name = str(model.name_or_path or type(model).__name__)
        tokenizer = self._tokenizer if self._tokenizer is not None else _load_tokenizer(model)
        base = Base(model, tokenizer, name, None, Path(name))
        engine = load(base, self._folders, guide_bases=self._guide_bases, config=self._config)
        try:
            _check_templates(base, engine.guides)
        except GuideError:
            engine.close()
            raise
        return engine


_Weights = tuple[tuple[int, int], ...]


class _Engines(dict[int, tuple[_Weights, Engine]]):
    """The engines that a model carries, by the number of the object that uses them, so that they live as long as it.

    They hold the model, so anything but the model itself would keep it alive. A copy of the model has none.
    """

    def __deepcopy__(self, memo: Any) -> _Engines:
        return _Engines()

    def __reduce__(self) -> Any:
        return _Engines, ()


def _close(model: weakref.ref[Any], number: int) -> None:
    """Take an engine off a model, if both are still there."""
    alive = model()
    engines: _Engines | None = None if alive is None else alive.__dict__.get(_KEPT)
    kept = engines.pop(number, None) if engines else None
    if kept is not None:
        kept[1].close()
    if alive is not None and engines is not None and not engines:
        del alive.__dict__[_KEPT]


def _weights(model: Any) -> _Weights:
    """Return what changes when a weight is replaced or written to: what was read with it cannot be used any more."""
    return tuple((p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters())


def _check_model(model: Any) -> None:
    if model.training:
        raise ConfigError("The model is in training mode, where dropout may act: call model.eval() first.")
    if any(type(module).__module__.startswith("peft.") for module in model.modules()):
        raise ConfigError(
            "The model carries a PEFT adapter, and guides need the base as it is: merge the adapter with "
            "merge_and_unload(), or take it off."
        )
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) > 1:
        raise ConfigError(f"The model lies on {', '.join(sorted(devices))}, but trimtab needs it on one device.")


def _load_tokenizer(model: Any) -> Any:
    from transformers import AutoTokenizer

    name = str(model.name_or_path or "")
    try:
        if not name:
            raise ModelError("the model does not say where it was loaded from.")
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # transformers raises many classes here; each means that there is none to be had
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"The tokenizer of the model cannot be found ({reason}): say custom_generate(…, tokenizer=tokenizer)."
        ) from error


def _check_templates(base: Base, guides: Mapping[str, Guide]) -> None:
    """Refuse guides that would read a chat in another form than the one in which it arrives, as ids of the base."""
    ours = getattr(base.tokenizer, "chat_template", None)
    for name, guide in guides.items():
        theirs = guide.manifest.chat_template or getattr(guide.tokenizer, "chat_template", None)
        if theirs != ours:
            raise GuideError(
                f"The guide {name!r} was trained with another chat template than that of {base.id!r}, but generate "
                "gives it the base's token ids: use trimtab.load, which renders the prompt for each model, or set "
                "tokenizer.chat_template to the guide's and give that tokenizer=."
            )


def _one_each(value: Guidances, rows: int, repeats: int) -> list[GuidanceLike]:
    """Return the guidance of each row; ``value`` is one for all, or one for each prompt, which has ``repeats`` rows."""
    if not isinstance(value, (list, tuple)):
        return [cast("GuidanceLike", value)] * rows
    prompts = rows // repeats
    if len(value) != prompts:
        raise GuidanceError(f"There are {prompts} prompts but {len(value)} entries in guidance: give one, or one each.")
    return [one for one in value for _ in range(repeats)]
