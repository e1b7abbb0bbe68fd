"""Routes: answers that are being written."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request

from trimtab.serving.api.body import body_of, described
from trimtab.serving.api.drawing import applied_to, gateway_of
from trimtab.serving.api.names import chosen_guidance
from trimtab.serving.api.schema.requests import GuidanceChange
from trimtab.serving.api.schema.responses import Changed, Ended
from trimtab.serving.auth import require_key
from trimtab.serving.errors import ApiError
from trimtab.serving.tickets import Ticket

router = APIRouter(tags=["generations"])
Id = Annotated[str, Path(max_length=128, description="The id that the answer came with.")]


@router.post("/v1/generations/{id}/guidance", openapi_extra=described(GuidanceChange), response_model=Changed)
async def change_guidance(
    request: Request,
    id: Id,
    body: Annotated[GuidanceChange, Depends(body_of(GuidanceChange))],
    owner: Annotated[str, Depends(require_key)],
) -> dict[str, Any]:
    """Change what a running answer is steered towards, from its next token on."""
    gateway, ticket = gateway_of(request), _running(request, id, owner)
    guidance = chosen_guidance(gateway, ticket.guidance, body, at="")
    written = await gateway.change(ticket, guidance)
    return {"id": id, "guidance": applied_to(ticket), "from_token": written}


@router.delete("/v1/generations/{id}", response_model=Ended)
async def stop_generation(
    request: Request,
    id: Id,
    owner: Annotated[str, Depends(require_key)],
) -> dict[str, Any]:
    """End a running answer as it is; its stream ends with the reason ``abort``."""
    ticket = _running(request, id, owner)
    gateway_of(request).abort(ticket)
    return {"id": id, "object": "generation.deleted", "deleted": True}


def _running(request: Request, name: str, owner: str) -> Ticket:
    ticket = gateway_of(request).tickets.get(name)
    # An answer of another key is not said to exist.
    if ticket is None or ticket.owner != owner or not ticket.open:
        raise ApiError(
            404, "No answer with this id is being written: it has ended.", param="id", code="generation_not_found"
        )
    return ticket
