"""Routes: chat."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from trimtab.engine.requests import BASE
from trimtab.serving.api.body import body_of, described
from trimtab.serving.api.drawing import Order, applied_to, begin, collect, gateway_of, make_order, stream_of, usage_of
from trimtab.serving.api.schema.requests import ChatRequest
from trimtab.serving.api.schema.responses import ChatCompletion
from trimtab.serving.api.streams import answers, attended, event
from trimtab.serving.auth import require_key
from trimtab.serving.tickets import Ticket

router = APIRouter(tags=["chat"])
ANSWERS = answers(ChatCompletion)


@router.post(
    "/v1/chat/completions", openapi_extra=described(ChatRequest), response_class=JSONResponse, responses=ANSWERS
)
async def chat_completions(
    request: Request,
    body: Annotated[ChatRequest, Depends(body_of(ChatRequest))],
    owner: Annotated[str, Depends(require_key)],
) -> Response:
    """Answer a conversation, guided as the model's name and ``guidance`` say."""
    gateway = gateway_of(request)
    limit = "max_completion_tokens" if body.max_completion_tokens else "max_tokens" if body.max_tokens else None
    most = body.max_completion_tokens or body.max_tokens or gateway.max_model_len
    order = make_order(request, body, max_tokens=most, top=(body.top_logprobs or 0) if body.logprobs else None)

    def start() -> Awaitable[Ticket]:
        turns = [body.turns()]
        return begin(request, order, turns, owner=owner, prefix="chatcmpl-", source="messages", limit=limit)

    if body.stream:
        ticket = await attended(request, start())
        return stream_of(ticket, _chunks(ticket, body, order))
    return await attended(request, _whole(start, body, order))


async def _whole(start: Callable[[], Awaitable[Ticket]], body: ChatRequest, order: Order) -> Response:
    ticket = await start()
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": order.scores.chat(choice.noted),
            "finish_reason": choice.finish_reason,
            **order.scores.ours(choice.noted),
            **({"token_ids": choice.token_ids} if body.return_token_ids else {}),
        }
        for index, choice in enumerate(await collect(ticket))
    ]
    return JSONResponse(
        {
            "id": ticket.id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": order.named.id,
            "choices": choices,
            "usage": usage_of(ticket),
            "guidance": applied_to(ticket),
            **_prompt_ids(ticket, body),
        }
    )


def _prompt_ids(ticket: Ticket, body: ChatRequest) -> dict[str, Any]:
    return {"prompt_token_ids": ticket.answers[0].prompts[BASE]} if body.return_token_ids else {}


async def _chunks(ticket: Ticket, body: ChatRequest, order: Order) -> AsyncGenerator[bytes]:
    head = {"id": ticket.id, "object": "chat.completion.chunk", "created": int(time.time()), "model": order.named.id}
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    rest: dict[str, Any] = {"usage": None} if usage else {}
    scores, ids = order.scores, bool(body.return_token_ids)

    def chunk(index: int, delta: dict[str, Any], more: dict[str, Any], top: Any = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
        return event({**head, "choices": [choice], **rest, **(top or {})})

    async with aclosing(ticket.updates()) as updates:
        for index in range(len(ticket.answers)):
            first = {"guidance": applied_to(ticket), **_prompt_ids(ticket, body)}
            yield chunk(index, {"role": "assistant", "content": ""}, {}, first)
        async for update in updates:
            # Tokens whose text is held back are told of all the same, in a chunk with empty content.
            if update.text or (update.token_ids and (scores.wanted or ids)):
                more = {"logprobs": scores.chat(update.noted), **scores.ours(update.noted)}
                more |= {"token_ids": update.token_ids} if ids else {}
                yield chunk(update.index, {"content": update.text}, more)
            if update.finish_reason is not None:
                yield chunk(update.index, {}, {"finish_reason": update.finish_reason}, {"guidance": applied_to(ticket)})
        if usage:
            yield event({**head, "choices": [], "usage": usage_of(ticket)})
