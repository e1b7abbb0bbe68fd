"""What is counted and timed, as Prometheus reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trimtab.engine.worker import News
    from trimtab.serving.gateway import Ticket


class Metrics:
    """Counters and times of one server."""

    def arrived(self, ticket: Ticket) -> None:
        """A request was admitted."""

    def wrote(self, ticket: Ticket, news: News) -> None:
        """Tokens of a request were written."""

    def ended(self, ticket: Ticket, *, aborted: bool) -> None:
        """A request has ended; ``aborted`` if answers of it were given up."""

    def rejected(self, reason: str) -> None:
        """A request was refused (``queue_full``)."""

    def expose(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return b""
