"""Asking a judge about pairs: what it will cost, every pair in both orders, nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.errors import ConfigError, JudgeError
from trimtab.evaluation.judges.cache import ReplyCache, content_key
from trimtab.evaluation.judges.config import JudgeConfig
from trimtab.evaluation.judges.endpoint import Endpoint, RefusedError, chat_url
from trimtab.evaluation.judges.pairs import AnswerPair
from trimtab.evaluation.judges.prompts import ask
from trimtab.evaluation.judges.report import JudgedPair, JudgeReport
from trimtab.evaluation.judges.verdicts import first_alternatives, read_probabilities, read_verdict

_BYTES_A_TOKEN = 4  # of English; an estimate needs no tokenizer of somebody else's model
_TOKENS_A_MESSAGE = 8


@dataclass(frozen=True)
class Estimate:
    """What asking will take, at most.

    Attributes:
        requests: requests that are not in the cache.
        cached: requests that are.
        input_tokens: tokens that the judge reads, about (a token for four bytes).
        output_tokens: tokens that it writes at most.
        cost: in the unit of the prices; ``None`` where there are none.
    """

    requests: int
    cached: int
    input_tokens: int
    output_tokens: int
    cost: float | None

    def __str__(self) -> str:
        cost = "unknown without the judge's prices" if self.cost is None else f"{self.cost:.4g} at most"
        return (
            f"{self.requests} requests ({self.cached} more are in the cache), about {self.input_tokens:,} tokens read "
            f"and at most {self.output_tokens:,} written; cost: {cost}"
        )


def estimate(pairs: Sequence[AnswerPair], config: JudgeConfig, *, cache: Path | None = None) -> Estimate:
    """Return what judging these pairs will take, without asking anything."""
    known = ReplyCache(cache, writable=False)
    bodies = {
        content_key(chat_url(config.judge_url), body): body
        for pair in pairs
        if pair.a != pair.b
        for body in _bodies(pair, config)
    }
    new = [body for key, body in bodies.items() if key not in known]
    read = sum(_tokens(body) for body in new)
    written = len(new) * (1 if config.verdict == "logprobs" else config.max_reply_tokens)
    cost = None
    if config.input_price is not None and config.output_price is not None:
        cost = (read * config.input_price + written * config.output_price) / 1e6
    return Estimate(len(new), len(bodies) - len(new), read, written, cost)


def judge_pairs(
    pairs: Sequence[AnswerPair],
    config: JudgeConfig,
    *,
    api_key: str | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[JudgeReport, list[JudgedPair]]:
    """Let a judge compare the answers of each pair, in both orders.

    Pairs with the same answer twice are ties that nobody is asked about.

    Args:
        pairs: the pairs.
        config: which judge, and how.
        api_key: bearer token of the endpoint.
        cache: file in which replies are kept by what was asked.
        progress: called with (pairs done, pairs in all).

    Raises:
        JudgeError: the endpoint refuses, or does not answer.
        ConfigError: there are no pairs, or the address is none.
    """
    judged = ask_about(pairs, config, api_key=api_key, cache=cache, progress=progress)
    return JudgeReport.of(config.judge_model, judged), judged


def ask_about(
    pairs: Sequence[AnswerPair],
    config: JudgeConfig,
    *,
    api_key: str | None = None,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[JudgedPair]:
    """Return what a judge says of each pair, as in :func:`judge_pairs`, for pairs that are not one comparison.

    Raises:
        JudgeError: the endpoint refuses, or does not answer.
        ConfigError: there are no pairs, or the address is none.
    """
    if not pairs:
        raise ConfigError("There are no pairs to judge.")
    asked = [pair for pair in pairs if pair.a != pair.b]
    found = iter(asyncio.run(_Asking(config, api_key, ReplyCache(cache), progress).all(asked)))
    return [
        next(found) if pair.a != pair.b
        else JudgedPair(pair.id, (0.5, 0.5), _words(pair), group=pair.group, equal=True)
        for pair in pairs
    ]  # fmt: skip


class _Asking:
    """One run of questions."""

    def __init__(
        self, config: JudgeConfig, key: str | None, cache: ReplyCache, progress: Callable[[int, int], None] | None
    ) -> None:
        self._config, self._cache = config, cache
        self._progress = progress
        self._url = chat_url(config.judge_url)
        self._endpoint = Endpoint(self._url, key=key, timeout=config.timeout, retries=config.retries)
        self._places = asyncio.Semaphore(config.concurrency)
        self._succeeded = False
        self._done = 0
        self._locks: dict[str, asyncio.Lock] = {}

    async def all(self, pairs: Sequence[AnswerPair]) -> list[JudgedPair]:
        async with self._endpoint:
            tasks = [asyncio.create_task(self._one(pair, len(pairs))) for pair in pairs]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, pair: AnswerPair, total: int) -> JudgedPair:
        async with self._places:  # one pair after the other, so that a run that is cut short has whole ones
            judged = await self._both(pair)
        self._done += 1
        if self._progress:
            self._progress(self._done, total)
        return judged

    async def _both(self, pair: AnswerPair) -> JudgedPair:
        preferences: list[float | None] = []
        replies: list[str] = []
        problem = ""
        for swapped, body in enumerate(_bodies(pair, self._config)):
            try:
                reply = await self._reply(body)
            except RefusedError as error:
                # Until one request has succeeded, what is refused is the way of asking and not this pair.
                if not self._succeeded:
                    raise JudgeError(
                        f"The judge refuses the request ({error}): check model, address and options."
                    ) from error
                preferences.append(None)
                replies.append("")
                problem = str(error)
                continue
            found = _preference(reply, self._config.verdict)
            preferences.append(None if found is None else 1 - found if swapped else found)
            replies.append(str(reply["message"].get("content") or ""))
            problem = problem or ("" if found is not None else _why(reply))
        found = (preferences[0], preferences[1])
        return JudgedPair(pair.id, found, _words(pair), (replies[0], replies[1]), problem, pair.group)

    async def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        key = content_key(self._url, body)
        # Two pairs of the same texts, or one and its mirror image, ask the same thing, maybe at the same time.
        async with self._locks.setdefault(key, asyncio.Lock()):
            known = self._cache.get(key)
            if known is None:
                answer = await self._endpoint.ask(body)
                choice = answer["choices"][0]
                known = {
                    "message": {"content": choice["message"].get("content")},
                    "finish_reason": choice.get("finish_reason"),
                    "logprobs": choice.get("logprobs"),
                    "model": answer.get("model"),
                    "usage": answer.get("usage"),
                }
                self._cache.put(key, known)
        self._succeeded = True
        return known


def _bodies(pair: AnswerPair, config: JudgeConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (
        _body(ask(pair, swapped=swapped, rubric=config.rubric, verdict=config.verdict), config)
        for swapped in (False, True)
    )
    return first, second


def _body(messages: Any, config: JudgeConfig) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": config.judge_model,
        "messages": messages,
        "temperature": config.temperature,
        "seed": config.seed,
        "max_tokens": config.max_reply_tokens,
    }
    if config.verdict == "logprobs":
        body |= {"max_tokens": 1, "logprobs": True, "top_logprobs": config.top_logprobs}
    return {name: value for name, value in {**body, **config.extra_body}.items() if value is not None}


def _tokens(body: dict[str, Any]) -> int:
    return sum(len(turn["content"].encode()) // _BYTES_A_TOKEN + _TOKENS_A_MESSAGE for turn in body["messages"])


def _preference(reply: dict[str, Any], verdict: str) -> float | None:
    """Return how much the answer that was shown first is preferred."""
    if verdict == "logprobs":
        found = read_probabilities(first_alternatives(reply))
        if found is not None:
            return found
    word = read_verdict(str(reply["message"].get("content") or ""))
    return None if word is None else {"A": 1.0, "B": 0.0, "tie": 0.5}[word]


def _why(reply: dict[str, Any]) -> str:
    ending = " (cut off: raise max-reply-tokens)" if reply.get("finish_reason") == "length" else ""
    return f"no verdict in the reply{ending}"


def _words(pair: AnswerPair) -> tuple[int, int]:
    return len(pair.a.split()), len(pair.b.split())
