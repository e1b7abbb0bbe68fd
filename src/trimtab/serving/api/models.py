"""Routes: which models are served, and which guides steer them."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request

from trimtab.serving.api.drawing import gateway_of
from trimtab.serving.api.names import Named, find_model, served, served_name
from trimtab.serving.api.schema.fields import MAX_PROMPTS, MAX_STOPS
from trimtab.serving.api.schema.responses import Guides, Model, ModelList
from trimtab.serving.presets import Presets

router = APIRouter(tags=["models"])
_STARTED = int(time.time())


@router.get("/v1/models", response_model=ModelList)
async def list_models(request: Request) -> dict[str, Any]:
    """List the model, plain and by each preset."""
    return {"object": "list", "data": [_model(request, named) for named in served(request.app).values()]}


@router.get("/v1/models/{model:path}", response_model=Model)
async def retrieve_model(request: Request, model: str) -> dict[str, Any]:
    """Say what one model is."""
    return _model(request, find_model(request.app, model))


@router.get("/v1/guides", response_model=Guides)
async def list_guides(request: Request) -> dict[str, Any]:
    """List the guides with their objectives, the presets, and the limits of this server."""
    gateway = gateway_of(request)
    engine, config = gateway.engine, gateway.config
    presets: Presets = request.app.state.presets
    return {
        "base": engine.base.id,
        "model": served_name(gateway),
        "guides": [
            {
                "name": guide.name,
                "kind": guide.manifest.kind,
                "objectives": [
                    {"name": each.name, "description": each.description, "direction": each.direction}
                    for each in guide.manifest.objectives
                ],
                "recommended_weight": guide.recommended_weight,
                "conditioned": guide.conditioned,
            }
            for guide in engine.guides.values()
        ],
        "presets": {
            name: {**what.model_dump(), "description": presets.descriptions.get(name)}
            for name, what in presets.named.items()
        },
        "default": presets.default.model_dump() if presets.default is not None else None,
        "limits": {
            "max_model_len": gateway.max_model_len,
            "max_n": config.max_n,
            "max_logprobs": config.max_logprobs,
            "max_guidance": config.max_guidance,
            "max_prompts": MAX_PROMPTS,
            "max_stops": MAX_STOPS,
            "max_request_bytes": config.max_request_bytes,
            "request_timeout": config.request_timeout,
        },
    }


def _model(request: Request, named: Named) -> dict[str, Any]:
    gateway = gateway_of(request)
    root = served_name(gateway)
    return {
        "id": named.id,
        "object": "model",
        "created": _STARTED,
        "owned_by": "trimtab",
        "root": root,
        "parent": None if named.id == root else root,
        "max_model_len": gateway.max_model_len,
    }
