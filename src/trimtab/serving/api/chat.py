"""Routes: chat."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from trimtab.serving.api.body import body_of, described
from trimtab.serving.api.drawing import Order, applied_to, begin, gateway_of, make_order, stream_of, usage_of
from trimtab.serving.api.schema.requests import ChatRequest
from trimtab.serving.api.streams import attended, event
from trimtab.serving.auth import require_key
from trimtab.serving.tickets import Ticket, Update

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions", openapi_extra=described(ChatRequest))
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
    starting = begin(request, order, [body.turns()], owner=owner, prefix="chatcmpl-", source="messages", limit=limit)
    if body.stream:
        ticket = await attended(request, starting)
        return stream_of(ticket, _chunks(ticket, body, order))
    return await attended(request, _whole(starting, body, order))


async def _whole(starting: Any, body: ChatRequest, order: Order) -> Response:
    ticket: Ticket = await starting
    choices = [_Choice() for _ in ticket.answers]
    async with aclosing(ticket.updates()) as updates:
        async for update in updates:
            choices[update.index].add(update)
    made = [choice.object(index) for index, choice in enumerate(choices)]
    return JSONResponse(
        {
            "id": ticket.id,
            "object": "chat.completion",
            "created": int(time.time()),
            "model": order.named.id,
            "choices": made,
            "usage": usage_of(ticket),
            "guidance": applied_to(ticket),
        }
    )


class _Choice:
    """One answer as it grows."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None

    def add(self, update: Update) -> None:
        self.text.append(update.text)
        self.token_ids += update.token_ids
        self.finish_reason = update.finish_reason

    def object(self, index: int) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(self.text), "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": self.finish_reason}


async def _chunks(ticket: Ticket, body: ChatRequest, order: Order) -> AsyncGenerator[bytes]:
    head = {"id": ticket.id, "object": "chat.completion.chunk", "created": int(time.time()), "model": order.named.id}
    usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    rest: dict[str, Any] = {"usage": None} if usage else {}

    def chunk(index: int, delta: dict[str, Any], finish_reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event({**head, "choices": [choice], **rest, **more})

    async with aclosing(ticket.updates()) as updates:
        for index in range(len(ticket.answers)):
            yield chunk(index, {"role": "assistant", "content": ""}, guidance=applied_to(ticket))
        async for update in updates:
            if update.text:
                yield chunk(update.index, {"content": update.text})
            if update.finish_reason is not None:
                yield chunk(update.index, {}, update.finish_reason, guidance=applied_to(ticket))
        if usage:
            yield event({**head, "choices": [], "usage": usage_of(ticket)})
