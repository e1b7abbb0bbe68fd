"""Whether a language model may judge a guide, as far as names tell: not if it labelled the pairs, or is judged."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from trimtab.evaluation.scorers.independence import GuideFacts

_DATE = re.compile(r"[-@:](?:\d{4}-\d{2}-\d{2}|\d{8}|\d{6}|latest)$")


def judge_dependence(judge: str, guides: Sequence[GuideFacts | str | Path], bases: Iterable[str] = ()) -> str | None:
    """Return why a judge is not independent of the guides, or ``None`` if nothing speaks against it.

    An endpoint tells no more of a model than its name, so names are compared, without organisation, letter case and
    date of the release (``org/Judge-2025-01-31`` is ``judge``). ``None`` is no proof: a model of another name may have
    seen the same data.

    Args:
        judge: the model's name at its endpoint.
        guides: the guides that are judged, or their folders.
        bases: names and folders of the base that is steered.

    Raises:
        GuideError: a folder is not a guide's.
    """
    name = _plain(judge)
    for guide in guides:
        facts = guide if isinstance(guide, GuideFacts) else GuideFacts.of(guide)
        labeller = facts.data.labelled_by if facts.data else None
        if labeller is not None and _plain(labeller) == name:
            return (
                f"The judge {judge!r} labelled the pairs that the guide {facts.name!r} was trained on: it finds itself."
            )
        if _plain(facts.name) == name:
            return f"The judge {judge!r} is the guide {facts.name!r}: it judges itself."
    if any(_plain(base) == name for base in bases):
        return f"The judge {judge!r} is the base that is steered: it judges itself."
    return None


def _plain(name: str) -> str:
    return _DATE.sub("", name.strip().rstrip("/").rsplit("/", 1)[-1].casefold())
