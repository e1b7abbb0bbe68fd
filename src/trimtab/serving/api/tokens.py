"""Routes: from text to tokens and back, and what the tokenizer is."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from trimtab.models import Text, encode_prompt
from trimtab.models.chat import render_prompt
from trimtab.models.token_text import TokenTexts
from trimtab.serving.api.body import body_of, described
from trimtab.serving.api.drawing import gateway_of
from trimtab.serving.api.names import find_model
from trimtab.serving.api.schema.requests import DetokenizeRequest, TokenizeRequest, turns_of
from trimtab.serving.api.schema.responses import Detokenized, Tokenized, TokenizerInfo
from trimtab.serving.errors import ApiError

router = APIRouter(tags=["tokens"])


@router.post("/tokenize", openapi_extra=described(TokenizeRequest), response_model=Tokenized)
async def tokenize(
    request: Request, body: Annotated[TokenizeRequest, Depends(body_of(TokenizeRequest))]
) -> dict[str, Any]:
    """Return the tokens of a text, or of a conversation as the chat template writes it."""
    gateway = gateway_of(request)
    find_model(request.app, body.model)
    tokens = await gateway.aside(lambda: _encode(gateway.engine.base.tokenizer, body))
    texts: TokenTexts = request.app.state.texts
    named = [texts.text(token) for token in tokens] if body.return_token_strs else None
    return {"count": len(tokens), "max_model_len": gateway.max_model_len, "tokens": tokens, "token_strs": named}


@router.post("/detokenize", openapi_extra=described(DetokenizeRequest), response_model=Detokenized)
async def detokenize(
    request: Request, body: Annotated[DetokenizeRequest, Depends(body_of(DetokenizeRequest))]
) -> dict[str, Any]:
    """Return the text of tokens, special tokens included."""
    gateway = gateway_of(request)
    find_model(request.app, body.model)
    vocabulary = gateway.engine.base.vocabulary_size
    for index, token in enumerate(body.tokens):
        if token >= vocabulary:
            message = f"'tokens.{index}' is {token}, which is not a token of the model, which has {vocabulary}."
            raise ApiError(400, message, param=f"tokens.{index}")
    tokenizer = gateway.engine.base.tokenizer
    text = await gateway.aside(
        lambda: tokenizer.decode(body.tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )
    return {"prompt": text}


@router.get("/tokenizer_info", response_model=TokenizerInfo)
async def tokenizer_info(request: Request) -> dict[str, Any]:
    """Say what the tokenizer is: its special tokens and its chat template."""
    gateway = gateway_of(request)
    tokenizer = gateway.engine.base.tokenizer
    names = ("bos_token", "eos_token", "pad_token", "unk_token", "chat_template")
    info = {name: getattr(tokenizer, name, None) for name in names}
    return {"tokenizer_class": type(tokenizer).__name__, "model_max_length": gateway.max_model_len, **info}


def _encode(tokenizer: Any, body: TokenizeRequest) -> list[int]:
    special = body.add_special_tokens
    if body.messages is not None:
        turns: Text = turns_of(body.messages)
        if not special:  # as chat reads it; the template writes special tokens of its own
            return encode_prompt(tokenizer, turns)
        return list(tokenizer(render_prompt(tokenizer, turns), add_special_tokens=True)["input_ids"])
    return list(tokenizer(body.prompt, add_special_tokens=special is not False)["input_ids"])
