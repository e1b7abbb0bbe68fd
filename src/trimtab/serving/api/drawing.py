"""From a request to answers that are being written; common to chat and completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from trimtab.decoding.config import Sampling
from trimtab.engine.guidance import Guidance
from trimtab.engine.results import TokenScores, Watch
from trimtab.errors import ConfigError, DataError, PromptTooLongError
from trimtab.models import Prompt
from trimtab.serving.api.names import Named, chosen_guidance, describe_applied, find_model
from trimtab.serving.api.schema.requests import Drawing
from trimtab.serving.api.scores import Scores
from trimtab.serving.api.streams import EventStream
from trimtab.serving.errors import ApiError
from trimtab.serving.gateway import Gateway
from trimtab.serving.room import AnswerTooLongError
from trimtab.serving.tickets import Ticket, Update

_GRACE = 10.0  # seconds beyond the deadline in which a stream may still tell that it was missed


@dataclass(frozen=True)
class Order:
    """A request that has been checked against what this server is and has.

    Attributes:
        named: what its model's name stands for.
        guidance: what to apply.
        preset: name of the preset that this is; ``None`` where the request says otherwise.
        sampling: how to draw.
        watch: what to note of each token; ``None``: nothing.
        scores: writes what was noted.
    """

    named: Named
    guidance: Guidance
    preset: str | None
    sampling: Sampling
    watch: Watch | None
    scores: Scores


def gateway_of(request: Request) -> Gateway:
    """Return the gateway of the application that a request came to."""
    gateway: Gateway = request.app.state.gateway
    return gateway


def make_order(request: Request, body: Drawing, *, max_tokens: int, top: int | None) -> Order:
    """Return a body as an order.

    Args:
        request: the request.
        body: its body.
        max_tokens: most tokens of an answer.
        top: how many of the likeliest tokens are asked for beside the guidance's; ``None``: no log-probabilities.

    Raises:
        ApiError: 404 or 400.
    """
    gateway = gateway_of(request)
    named = find_model(request.app, body.model)
    guidance = chosen_guidance(gateway, named.guidance, body.guidance)
    _check_limits(gateway, body, top)
    asked = body.guidance
    rewards, ours = (bool(asked.rewards), asked.top or 0) if asked is not None else (False, 0)
    watch = None
    if rewards or ours or top is not None:
        watch = Watch(top=max(ours, top or 0), base=rewards or bool(ours), objectives=rewards)
    return Order(
        named=named,
        guidance=guidance,
        preset=named.preset if guidance == named.guidance else None,
        sampling=_sampling(gateway, body, max_tokens),
        watch=watch,
        scores=Scores(request.app.state.texts, top=top, noted_top=ours if rewards or ours else None),
    )


async def begin(
    request: Request,
    order: Order,
    prompts: Sequence[Prompt],
    *,
    owner: str,
    prefix: str,
    source: str,
    limit: str | None,
) -> Ticket:
    """Begin the answers.

    Args:
        request: the request.
        order: what it orders.
        prompts: its prompts.
        owner: digest of the key it was asked with.
        prefix: what the ticket's id begins with.
        source: field of the prompts, for messages.
        limit: field that says how many tokens an answer may have; ``None``: none did.

    Raises:
        ApiError: the prompts cannot be served as they are.
        TrimtabError: the server cannot take them now.
    """
    gateway = gateway_of(request)
    try:
        return await gateway.write(
            *prompts,
            guidance=order.guidance,
            sampling=order.sampling,
            owner=owner,
            prefix=prefix,
            preset=order.preset,
            watch=order.watch,
            limited=limit is not None,
        )
    except AnswerTooLongError as error:
        raise ApiError(400, str(error), param=limit, code="context_length_exceeded") from None
    except PromptTooLongError as error:
        raise ApiError(400, str(error), param=source, code="context_length_exceeded") from None
    except DataError as error:
        raise ApiError(400, str(error), param=source) from None
    except ConfigError as error:
        raise ApiError(400, str(error), param="n") from None


class Choice:
    """One answer as it grows."""

    def __init__(self) -> None:
        self.text = ""
        self.token_ids: list[int] = []
        self.noted: list[TokenScores] = []
        self.finish_reason: str | None = None

    def add(self, update: Update) -> None:
        """Add what is new."""
        self.text += update.text
        self.token_ids += update.token_ids
        self.noted += update.noted
        self.finish_reason = update.finish_reason


async def collect(ticket: Ticket) -> list[Choice]:
    """Wait for a ticket's answers."""
    choices = [Choice() for _ in ticket.answers]
    async with aclosing(ticket.updates()) as updates:
        async for update in updates:
            choices[update.index].add(update)
    return choices


def applied_to(ticket: Ticket) -> dict[str, Any]:
    """Return what is said of the guidance that a ticket's answers follow."""
    return describe_applied(ticket.gateway, ticket.guidance, ticket.preset)


def stream_of(ticket: Ticket, events: AsyncGenerator[bytes]) -> EventStream:
    """Return the answer to a request that streams a ticket's answers."""
    gateway = ticket.gateway
    seconds = gateway.config.request_timeout + _GRACE
    return EventStream(events, seconds=seconds, end=lambda: gateway.end(ticket))


def usage_of(ticket: Ticket) -> dict[str, Any]:
    """Return the usage object of a ticket."""
    prompt, completion = ticket.prompt_tokens, ticket.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": ticket.cached_tokens},
    }


def _sampling(gateway: Gateway, body: Drawing, max_tokens: int) -> Sampling:
    vocabulary = gateway.engine.base.vocabulary_size
    for token in body.logit_bias or {}:
        if int(token) >= vocabulary:
            raise _no_token(f"logit_bias.{token}", vocabulary)
    for index, token in enumerate(body.stop_token_ids or []):
        if token >= vocabulary:
            raise _no_token(f"stop_token_ids.{index}", vocabulary)
    if (body.min_tokens or 0) > max_tokens:
        raise ApiError(
            400, f"'min_tokens' is {body.min_tokens}, and 'max_tokens' only {max_tokens}.", param="min_tokens"
        )
    return body.sampling(max_tokens)


def _no_token(param: str, vocabulary: int) -> ApiError:
    return ApiError(400, f"'{param}' is not a token of the model, which has {vocabulary}.", param=param)


def _check_limits(gateway: Gateway, body: Drawing, top: int | None) -> None:
    config = gateway.config
    if (body.n or 1) > config.max_n:
        raise ApiError(400, f"'n' is {body.n}, but it must be at most {config.max_n}.", param="n")
    ours = body.guidance.top or 0 if body.guidance is not None else 0
    field = "top_logprobs" if hasattr(body, "top_logprobs") else "logprobs"
    for name, value in ((field, top or 0), ("guidance.top", ours)):
        if value > config.max_logprobs:
            raise ApiError(400, f"'{name}' is {value}, but it must be at most {config.max_logprobs}.", param=name)
