"""What the server logs: one line a request, as text or JSON, and never what was asked or answered unless told to."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
import traceback
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TextIO

if TYPE_CHECKING:
    from trimtab.engine.answers import Answer
    from trimtab.serving.gateway import Ticket

log = logging.getLogger("trimtab.serving")

# C0, DEL and C1 move cursors and end lines; the others end lines for some readers, or turn the text around.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LOGGED = 10_000  # characters of a prompt or an answer


@dataclass(slots=True)
class Exchange:
    """One request and its answer, as far as the log is concerned.

    Attributes:
        id: the request's id.
        tickets: what was written for it.
    """

    id: str
    tickets: list[Ticket] = field(default_factory=list["Ticket"])


_exchange: ContextVar[Exchange | None] = ContextVar("trimtab_exchange", default=None)


def begin(request_id: str) -> Exchange:
    """Return the record of a request, which everything that happens in its task and those it starts belongs to."""
    exchange = Exchange(request_id)
    _exchange.set(exchange)
    return exchange


def current() -> Exchange | None:
    """Return the record of the request that this task works for; ``None`` outside of one."""
    return _exchange.get()


def printable(text: str) -> str:
    """Return a text in which nothing ends the line, moves the cursor or hides: such characters are escaped."""
    return _CONTROL.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def wrote(exchange: Exchange, *, content: bool) -> dict[str, Any]:
    """Return what the log says of the answers to a request.

    Args:
        exchange: the request.
        content: whether prompts and answers are logged too.
    """
    if not exchange.tickets:
        return {}
    answers = [(ticket, answer) for ticket in exchange.tickets for answer in ticket.answers]
    found: dict[str, Any] = {
        "prompt_tokens": sum(ticket.prompt_tokens for ticket in exchange.tickets),
        "completion_tokens": sum(ticket.completion_tokens for ticket in exchange.tickets),
        "finish_reasons": sorted({finish_reason(ticket, answer) for ticket, answer in answers}),
        "strengths": sorted({ticket.guidance.strength for ticket in exchange.tickets}),
    }
    if content:
        found["prompts"] = [str(ticket.answers[0].prompt)[:_LOGGED] for ticket in exchange.tickets]
        found["answers"] = [answer.text.text[:_LOGGED] for _, answer in answers]
    return found


def finish_reason(ticket: Ticket, answer: Answer) -> str:
    """Return how an answer ended: ``stop``, ``length``, ``abort`` (nobody wanted it any more) or ``error``."""
    if answer.error is not None or (ticket.error is not None and answer.finish_reason is None):
        return "error"
    return answer.finish_reason or "abort"


class _Formatter(logging.Formatter):
    def fields(self, record: logging.LogRecord) -> dict[str, Any]:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        found: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        exchange = _exchange.get()
        if exchange is not None:
            found["request_id"] = exchange.id
        return found | getattr(record, "fields", {})


class JsonFormatter(_Formatter):
    """One JSON object a line, ASCII only, so that nothing in it can end the line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line."""
        found = self.fields(record)
        if record.exc_info:
            found["exception"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(found, default=str)


class TextFormatter(_Formatter):
    """One line a record; a trace follows indented, so that no text in it looks like a record."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as a line, or as one and an indented trace."""
        found = self.fields(record)
        head = f"{found.pop('time')} {found.pop('level').upper():<7} {found.pop('message')}"
        shown = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in found.items()]
        line = printable(" ".join([head, *shown]))
        if record.exc_info:
            trace = "".join(traceback.format_exception(*record.exc_info)).splitlines()
            line = "\n".join([line, *("    " + printable(part) for part in trace)])
        return line


def set_up(form: Literal["text", "json"], stream: TextIO | None = None) -> logging.Handler:
    """Send everything that is logged to a stream (default: stderr) in one form; return what does."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("trimtab").setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):  # the server tells itself what it begins and ends
        quiet = logging.getLogger(name)
        quiet.handlers.clear()
        quiet.setLevel(logging.WARNING)
        quiet.propagate = True
    return handler
