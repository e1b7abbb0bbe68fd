"""Routes: completions."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from trimtab.engine.requests import BASE
from trimtab.engine.results import TokenScores, Watch
from trimtab.errors import DataError, PromptTooLongError
from trimtab.models import encode_prompt
from trimtab.serving.api.body import body_of, described
from trimtab.serving.api.drawing import (
    Choice,
    Order,
    applied_to,
    begin,
    collect,
    gateway_of,
    make_order,
    stream_of,
    usage_of,
)
from trimtab.serving.api.names import describe_applied
from trimtab.serving.api.schema.requests import CompletionRequest
from trimtab.serving.api.schema.responses import Completion
from trimtab.serving.api.streams import answers, attended, event
from trimtab.serving.auth import require_key
from trimtab.serving.errors import ApiError
from trimtab.serving.tickets import Ticket

router = APIRouter(tags=["completions"])
ANSWERS = answers(Completion)
_PREFIX = "cmpl-"
_DEFAULT_TOKENS = 16  # as OpenAI


@router.post(
    "/v1/completions", openapi_extra=described(CompletionRequest), response_class=JSONResponse, responses=ANSWERS
)
async def completions(
    request: Request,
    body: Annotated[CompletionRequest, Depends(body_of(CompletionRequest))],
    owner: Annotated[str, Depends(require_key)],
) -> Response:
    """Continue one prompt or several, guided as the model's name and ``guidance`` say."""
    most = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    order = make_order(request, body, max_tokens=max(1, most), top=body.logprobs)
    _check_ids(request, body)
    work = _Work(request, body, order, owner)
    if body.stream and most:
        echoes, ticket = await attended(request, work.start())
        return stream_of(ticket, work.chunks(ticket, echoes))
    return await attended(request, work.whole() if most else work.only_echo())


@dataclass(frozen=True)
class _Echo:
    """A prompt as it is given back.

    Attributes:
        text: its text.
        token_ids: its tokens.
        offsets: where they begin in the text.
        noted: what was noted of all but the first.
    """

    text: str
    token_ids: list[int]
    offsets: list[int]
    noted: list[TokenScores]


class _Work:
    """One request for completions."""

    def __init__(self, request: Request, body: CompletionRequest, order: Order, owner: str) -> None:
        self._request, self._body, self._order, self._owner = request, body, order, owner
        self._gateway = gateway_of(request)
        self._head = {"created": int(time.time()), "model": order.named.id, "object": "text_completion"}

    async def start(self) -> tuple[list[_Echo], Ticket]:
        """Read the prompts if they are to be scored, and begin the answers."""
        body = self._body
        echoes = await self._echoes() if body.echo else []
        ticket = await begin(
            self._request,
            self._order,
            body.prompt,
            owner=self._owner,
            prefix=_PREFIX,
            source="prompt",
            limit=None if body.max_tokens is None else "max_tokens",
        )
        return echoes, ticket

    async def whole(self) -> Response:
        """Return the finished answers."""
        echoes, ticket = await self.start()
        n = self._order.sampling.n
        choices = [
            self._choice(index, choice, echoes[index // n] if echoes else None, ticket)
            for index, choice in enumerate(await collect(ticket))
        ]
        return JSONResponse(
            {
                "id": ticket.id,
                **self._head,
                "choices": choices,
                "usage": usage_of(ticket),
                "guidance": applied_to(ticket),
            }
        )

    async def only_echo(self) -> Response:
        """Return the prompts with their scores, and nothing behind them."""
        n = self._order.sampling.n
        echoes = await self._echoes()
        done = Choice()
        done.finish_reason = "length"
        choices = [self._choice(i * n + k, done, echo, None) for i, echo in enumerate(echoes) for k in range(n)]
        count = sum(len(echo.token_ids) for echo in echoes)
        usage = {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}
        said = describe_applied(self._gateway, self._order.guidance, self._order.preset)
        answer = {"id": _PREFIX + secrets.token_hex(16), **self._head, "choices": choices}
        answer |= {"usage": {**usage, "prompt_tokens_details": {"cached_tokens": 0}}, "guidance": said}
        if not self._body.stream:
            return JSONResponse(answer)
        body = event(answer) + b"data: [DONE]\n\n"
        return Response(body, media_type="text/event-stream", headers={"cache-control": "no-store"})

    async def chunks(self, ticket: Ticket, echoes: Sequence[_Echo]) -> AsyncGenerator[bytes]:
        """Yield the answers in pieces."""
        body, order, scores = self._body, self._order, self._order.scores
        head = {"id": ticket.id, **self._head}
        usage = body.stream_options is not None and bool(body.stream_options.include_usage)
        rest: dict[str, Any] = {"usage": None} if usage else {}
        ids, n = bool(body.return_token_ids), order.sampling.n
        offsets = [
            scores.texts.offsets(len(echoes[index // n].text) if echoes else 0, special=False)
            for index in range(len(ticket.answers))
        ]

        def chunk(index: int, text: str, more: dict[str, Any], top: Any = None) -> bytes:
            choice = {"index": index, "text": text, "logprobs": None, "finish_reason": None, **more}
            return event({**head, "choices": [choice], **rest, **(top or {})})

        async with aclosing(ticket.updates()) as updates:
            for index, answer in enumerate(ticket.answers):
                more: dict[str, Any] = {"prompt_token_ids": answer.prompts[BASE], "token_ids": []} if ids else {}
                echo = echoes[index // n] if echoes else None
                if echo is not None and scores.top is not None:
                    more["logprobs"] = self._echo_logprobs(echo)
                yield chunk(index, echo.text if echo else "", more, {"guidance": applied_to(ticket)})
            async for update in updates:
                if update.text or (update.token_ids and (scores.wanted or ids)):
                    more = {"logprobs": scores.completion(update.noted, offsets[update.index])}
                    more |= {**scores.ours(update.noted), **({"token_ids": update.token_ids} if ids else {})}
                    yield chunk(update.index, update.text, more)
                if update.finish_reason is not None:
                    yield chunk(
                        update.index, "", {"finish_reason": update.finish_reason}, {"guidance": applied_to(ticket)}
                    )
            if usage:
                yield event({**head, "choices": [], "usage": usage_of(ticket)})

    def _choice(self, index: int, choice: Choice, echo: _Echo | None, ticket: Ticket | None) -> dict[str, Any]:
        scores = self._order.scores
        start = len(echo.text) if echo is not None else 0
        logprobs = scores.completion(choice.noted, scores.texts.offsets(start, special=False))
        if echo is not None and logprobs is not None:
            logprobs = {name: values + logprobs[name] for name, values in self._echo_logprobs(echo).items()}
        made: dict[str, Any] = {
            "index": index,
            "text": (echo.text if echo is not None else "") + choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
            **scores.ours(choice.noted),
        }
        if self._body.return_token_ids:
            prompt = ticket.answers[index].prompts[BASE] if ticket is not None else echo.token_ids if echo else []
            made |= {"prompt_token_ids": prompt, "token_ids": choice.token_ids}
        return made

    def _echo_logprobs(self, echo: _Echo) -> dict[str, list[Any]]:
        """Return ``logprobs`` of a prompt; nothing comes before its first token, which has none."""
        scores = self._order.scores
        found = scores.completion(echo.noted, scores.texts.offsets()) or {}
        first = {"tokens": scores.texts.text(echo.token_ids[0]), "token_logprobs": None, "top_logprobs": None}
        return {name: [first[name], *found[name]] for name in first} | {"text_offset": echo.offsets}

    async def _echoes(self) -> list[_Echo]:
        """Return the prompts, scored if log-probabilities are asked for."""
        body, gateway = self._body, self._gateway
        try:
            plain = await gateway.aside(lambda: [self._encode(prompt) for prompt in body.prompt])
            longest = max(len(ids) for _, ids, _ in plain)
            if longest + (body.max_tokens != 0) > gateway.max_model_len:
                raise PromptTooLongError(
                    f"The prompt has {longest} tokens, and the model reads {gateway.max_model_len} at most, the answer "
                    "included: shorten it."
                )
            pairs = [(ids[:1], ids[1:]) for _, ids, _ in plain if len(ids) > 1]
            read: list[list[TokenScores]] = []
            if self._order.scores.top is not None and pairs:
                watch = Watch(top=self._order.scores.top)
                read = await gateway.read(*pairs, guidance=self._order.guidance, watch=watch, owner=self._owner)
        except PromptTooLongError as error:
            raise ApiError(400, str(error), param="prompt", code="context_length_exceeded") from None
        except DataError as error:
            raise ApiError(400, str(error), param="prompt") from None
        noted = iter(read)
        return [_Echo(text, ids, offsets, next(noted, []) if len(ids) > 1 else []) for text, ids, offsets in plain]

    def _encode(self, prompt: str | list[int]) -> tuple[str, list[int], list[int]]:
        """Return a prompt's text, its tokens, and where they begin in the text."""
        tokenizer, texts = self._gateway.engine.base.tokenizer, self._order.scores.texts
        if not isinstance(prompt, str):
            text = tokenizer.decode(prompt, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            return text, prompt, texts.offsets().next(prompt)
        ids = encode_prompt(tokenizer, prompt)
        if tokenizer.is_fast:
            places = tokenizer(prompt, return_offsets_mapping=True)
            if list(places["input_ids"]) == ids:
                return prompt, ids, [int(start) for start, _ in places["offset_mapping"]]
        return prompt, ids, texts.offsets().next(ids)


def _check_ids(request: Request, body: CompletionRequest) -> None:
    vocabulary = gateway_of(request).engine.base.vocabulary_size
    for index, prompt in enumerate(body.prompt):
        if not isinstance(prompt, str) and max(prompt) >= vocabulary:
            place = next(k for k, token in enumerate(prompt) if token >= vocabulary)
            param = f"prompt.{place}" if len(body.prompt) == 1 else f"prompt.{index}.{place}"
            message = f"'{param}' is {prompt[place]}, which is not a token of the model, which has {vocabulary}."
            raise ApiError(400, message, param=param)
