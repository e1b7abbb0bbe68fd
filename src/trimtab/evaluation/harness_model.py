"""The model ``trimtab`` of lm-eval: guided log-likelihoods and guided answers, many at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from trimtab._version import __version__
from trimtab.decoding.config import Sampling, make_sampling
from trimtab.engine import Engine, load
from trimtab.engine.answers import applied
from trimtab.engine.config import EngineConfig, make_engine_config
from trimtab.engine.guidance import Guidance, as_guidance, resolve
from trimtab.engine.results import Watch
from trimtab.errors import ConfigError
from trimtab.evaluation.attribution import read_each
from trimtab.evaluation.harness_arguments import as_list, as_number, as_weights
from trimtab.models.chat import render_prompt
from trimtab.validation import refuse_unknown

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from trimtab.engine.readings import Reading

_log = logging.getLogger(__name__)
_Pair = tuple[Any, list[int], list[int]]
_DEFAULT_BATCH = 16
_MAX_GEN_TOKS = 256
# What a task may ask of sampling beside stop strings and length; what is not in here is refused, not passed over.
_SAMPLING = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"}
_NEUTRAL: Mapping[str, Any] = {"num_beams": 1, "early_stopping": False, "use_cache": True, "num_return_sequences": 1}


class TrimtabLM(TemplateLM):
    """A base with guides, as lm-eval asks models.

    ``--model_args`` (``a;b`` may also be written as a list, ``x=1;y=2`` as a mapping, where they are given as JSON):

    - ``base`` (or ``pretrained``): what is steered; ``guide``: folders, ``a;b``;
    - ``weights``: ``helpful=0.7;harmless=0.3``; ``strength``: a number, 0 is the base, exactly;
    - ``dtype``, ``device``, ``quantization``, ``guide_quantization``, ``revision``, ``guide_base``: as in :func:`load`;
    - ``batch_size``: most texts at a time; ``max_length``: most tokens of a text; ``max_gen_toks``; ``seed``;
    - ``add_bos_token``: whether texts begin with the BOS token; default: as the tokenizer does it;
    - every option of the engine, such as ``max_num_seqs`` and ``kv_cache_memory_gib``.

    What is read is tokenised as lm-eval's ``hf`` model does it, so that strength 0 gives that model's numbers; guides
    read the same tokens.
    """

    def __init__(
        self,
        base: str | Engine | None = None,
        *,
        pretrained: str | None = None,
        guide: Any = None,
        weights: Any = None,
        strength: Any = 1.0,
        guide_base: Any = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        quantization: str | None = None,
        guide_quantization: str | None = "auto",
        batch_size: Any = None,
        max_batch_size: Any = None,
        max_length: int | None = None,
        max_gen_toks: int = _MAX_GEN_TOKS,
        seed: int = 0,
        add_bos_token: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(options, [*EngineConfig.model_fields, *_arguments()], what="model argument")
        chosen = base if base is not None else pretrained
        if chosen is None:
            raise ConfigError("--model_args names no base: base=smollm2, a folder or a hub id.")
        if isinstance(chosen, Engine):
            self.engine = chosen
        else:
            self.engine = load(
                chosen,
                as_list(guide, "guide"),
                revision=revision,
                guide_bases={
                    name: str(value) for name, value in as_weights(guide_base, "guide_base", text=True).items()
                },
                dtype=dtype,
                device=device or "auto",
                quantization=quantization,
                guide_quantization=guide_quantization,
                config=make_engine_config(options),
            )
        self.guidance: Guidance = as_guidance(
            Guidance(weights=as_weights(weights, "weights"), strength=as_number(strength, "strength"))
        )
        self._pulls = resolve(self.guidance, list(self.engine.guides.values()))
        self.tokenizer = self.engine.base.tokenizer
        self._specials = {
            str(text): int(self.tokenizer.convert_tokens_to_ids(text)) for text in self.tokenizer.all_special_tokens
        }
        self._batch = _batch_size(batch_size, max_batch_size)
        self._bos, self._seed, self.max_gen_toks = add_bos_token, int(seed), int(max_gen_toks)
        # A window of lm-eval's is max_length tokens and the one that they foretell, which the engine counts too.
        most = min(backbone.context_length for backbone in self.engine.parts[0].backbones) - 1
        if max_length is not None and not 1 <= int(max_length) <= most:
            raise ConfigError(f"max_length is {max_length}: base and guides read 1 to {most} tokens.")
        self.max_length = most if max_length is None else int(max_length)
        self._room = most + 1 if max_length is None else self.max_length  # of a context and its answer
        self._device = self.engine.base.device

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's EOS."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context: BOS, or EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def batch_size(self) -> int:
        """Most texts read or written at a time."""
        return self._batch

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval's cache of requests tells chat templates apart by."""
        return str(self.engine.base.id).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return a text's ids; no second BOS for one that begins with its text, as rendered chats do."""
        del kwargs
        if add_special_tokens is None:
            add_special_tokens = self._bos
            prefix = self.tokenizer.decode([self.prefix_token_id])
            if prefix and string.startswith(prefix):
                add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return cast("list[int]", self.tokenizer(string, **options)["input_ids"])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return chat turns as the base's template renders them; without a generation prompt, the last one goes on."""
        if add_generation_prompt or self.tokenizer.chat_template is None:
            return render_prompt(self.tokenizer, cast("Any", chat_history))
        return str(
            self.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=False, continue_final_message=True
            )
        )

    def _loglikelihood_tokens(
        self, requests: list[_Pair], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        del kwargs
        results: dict[int, tuple[float, bool]] = {}
        places: dict[int, int] = {}

        def readings() -> Iterator[Reading]:
            for place, (_, context, continuation) in enumerate(requests):
                if not continuation:  # nothing to foretell is certain
                    results[place] = (0.0, True)
                    bar.update()
                    continue
                reading = self._reading(context, continuation)
                places[reading.number] = place
                yield reading

        with tqdm(total=len(requests), desc="Running loglikelihood requests", disable=disable_tqdm) as bar:
            for reading in read_each(self.engine, readings(), max_batch_size=self._batch):
                greedy = all(score.top[0][0] == score.token_id for score in reading.noted)
                result = (sum(reading.combined), greedy)
                place = places.pop(reading.number)
                results[place] = result
                if requests[place][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[place][0], result)
                bar.update()
        return [results[place] for place in range(len(requests))]

    def _reading(self, context: Sequence[int], continuation: Sequence[int]) -> Reading:
        """Return what reads the end of context and continuation that fits."""
        whole = [*context, *continuation][-(self.max_length + 1) :]
        if len(continuation) > self.max_length:
            raise ConfigError(
                f"A continuation has {len(continuation)} tokens, more than max_length {self.max_length}: lm-eval asks "
                "for it whole, so it cannot be cut."
            )
        cut = len(whole) - len(continuation)
        return self.engine.reading(whole[:cut], whole[cut:], guidance=self.guidance, watch=Watch(top=1))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts, in windows of ``max_length`` that overlap in one token."""
        texts = [str(request.args[0]) for request in requests]
        windows: list[_Pair] = []
        owners: list[int] = []
        for i, text in enumerate(texts):
            tokens = self.tok_encode(text)
            found = get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1)
            pairs = [make_disjoint_window(window) for window in found]
            windows += [(None, context, continuation) for context, continuation in pairs]
            owners += [i] * len(pairs)
        totals = [0.0] * len(texts)
        for i, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm), strict=True):
            totals[i] += value
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return guided answers, each up to its stop strings."""
        asked = [cast("tuple[str, dict[str, Any]]", request.args) for request in requests]
        samplings = [self._sampling(options) for _, options in asked]
        prompts = [self._prompt(text, chosen.max_tokens) for (text, _), chosen in zip(asked, samplings, strict=True)]
        with tqdm(total=len(asked), desc="Running generate_until requests", disable=disable_tqdm) as bar:
            answers = self.engine.generate(
                prompts,
                guidance=self.guidance,
                sampling=samplings,
                max_batch_size=self._batch,
                progress=lambda done, _: _advance(bar, done),
            )
        texts = [answer.text for answer in answers]
        for (text, options), answer in zip(asked, texts, strict=True):
            self.cache_hook.add_partial("generate_until", (text, options), answer)
        return texts

    def _prompt(self, text: str, max_tokens: int) -> list[int]:
        """Return the end of a context that leaves room for the answer."""
        room = self._room - max_tokens
        if room < 1:
            raise ConfigError(
                f"max_gen_toks is {max_tokens}, but base and guides read {self._room} tokens, answer included."
            )
        ids = self.tok_encode(text) if text else [self.prefix_token_id]
        if len(ids) > room:
            _log.warning("A context of %d tokens is cut to its last %d, to leave room for the answer.", len(ids), room)
        return ids[-room:]

    def _sampling(self, options: Mapping[str, Any]) -> Sampling:
        """Return how a request is drawn. The engine adds its number to the seed, so that repeats of a prompt differ."""
        given: dict[str, Any] = dict(normalize_gen_kwargs(dict(options), self.max_gen_toks))
        stops, most, sample = given.pop("until"), given.pop("max_gen_toks"), given.pop("do_sample", False)
        given = {name: value for name, value in given.items() if _NEUTRAL.get(name, _NEUTRAL) != value}
        refuse_unknown(given, _SAMPLING, what="generation argument", source="the task")
        if not sample:
            given = {name: value for name, value in given.items() if name == "repetition_penalty"}
        texts = [str(stop) for stop in stops if stop]
        # An answer's text shows no special tokens, so what stops at one is its id.
        special = [self._specials[text] for text in texts if text in self._specials]
        changes = {
            "seed": self._seed,
            **given,
            "max_tokens": int(most),
            "stop": [text for text in texts if text not in self._specials],
            "stop_token_ids": special,
        }
        return make_sampling({"temperature": 1.0 if sample else 0.0, **changes})

    def get_model_info(self) -> dict[str, Any]:
        """Return what lm-eval writes into its results to tell runs apart."""
        guides = list(self.engine.guides.values())
        return {
            "model_dtype": str(self.engine.base.model.dtype),
            "trimtab_version": __version__,
            "trimtab_base": str(self.engine.base.id),
            "trimtab_strength": self.guidance.strength,
            **{f"trimtab_{name}": value for name, value in applied(guides, self._pulls).items()},
        }


def _advance(bar: Any, done: int) -> None:
    bar.update(done - bar.n)


def _arguments() -> list[str]:
    code = TrimtabLM.__init__.__code__
    return [name for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount] if name != "self"]


def _batch_size(value: Any, most: Any) -> int:
    """Return how many texts go at a time. ``auto`` is the default: a step takes what fits, whatever waits."""
    text = str(value if value is not None else _DEFAULT_BATCH).partition(":")[0]
    if text == "auto":
        return int(most) if most else 4 * _DEFAULT_BATCH
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"batch_size is {value!r}: give a number from 1, or auto.")
    return int(text)
