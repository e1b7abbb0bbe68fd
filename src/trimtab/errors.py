"""Everything trimtab raises on purpose, one tree.

::

    TrimtabError
    ├── ConfigError          (ValueError)    an option, key or value that cannot work
    ├── DataError            (ValueError)    preference data that cannot be read, or not enough of it
    ├── ModelError           (ValueError)    a base model or tokenizer that cannot be used
    │   └── VocabularyMismatchError          base and guide do not write with the same tokens
    ├── GuideError           (ValueError)    a guide folder that is damaged, unsafe or for another base
    ├── GuidanceError        (ValueError)    weights or strength that cannot be applied
    ├── PromptTooLongError   (ValueError)    a prompt that leaves no room in the context
    ├── NumericalError       (ArithmeticError)  NaN or infinity where a number must be
    ├── EngineFailure        (RuntimeError)  a fault in a step that was not the request's own
    ├── BusyError            (RuntimeError)  as much waits as may wait
    ├── ClosingError         (RuntimeError)  what is to end takes nothing new
    ├── DeadlineError        (TimeoutError)  an answer that was not finished in its time
    ├── JudgeError           (RuntimeError)  a judge's endpoint that cannot be asked, or does not answer
    └── OutputError          (OSError)       a result that could not be written

Each class is also the stdlib error a caller would expect. A message says what is wrong, why, and what to do;
it is one line, because the command line prints it as one line.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TrimtabError(Exception):
    """The root: catching it catches everything trimtab raises on purpose."""


class ConfigError(TrimtabError, ValueError):
    """An option, a configuration key or a value that cannot work."""


class DataError(TrimtabError, ValueError):
    """Preference data that cannot be read, or not enough of it left to use."""


class ModelError(TrimtabError, ValueError):
    """A base model or tokenizer that is missing, unsafe or unusable."""


class VocabularyMismatchError(ModelError):
    """Base and guide do not write with the same tokens, so their scores cannot be added."""


class GuideError(TrimtabError, ValueError):
    """A guide folder that is damaged, unsafe, or made for another base."""


class GuidanceError(TrimtabError, ValueError):
    """Weights or a strength that cannot be applied (NaN, unknown guide or objective)."""


class PromptTooLongError(TrimtabError, ValueError):
    """A prompt that leaves no room for an answer in the model's context."""


class NumericalError(TrimtabError, ArithmeticError):
    """NaN or infinity in logits or in a loss; never passed on as a token or a number."""


class EngineFailure(TrimtabError, RuntimeError):  # noqa: N818 - it is what failed, not what the caller did wrong
    """A fault in a step of the engine that was not the request's own; the next request can succeed."""


class BusyError(TrimtabError, RuntimeError):
    """As many requests wait as may wait: come again later.

    Attributes:
        retry_after: seconds after which it is worth it.
    """

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ClosingError(TrimtabError, RuntimeError):
    """A server that is about to end, or not ready yet, takes no new requests."""


class DeadlineError(TrimtabError, TimeoutError):
    """An answer that was not finished within its time."""


class JudgeError(TrimtabError, RuntimeError):
    """A judge's endpoint refuses, or does not answer however often it is asked."""


class OutputError(TrimtabError, OSError):
    """A result that could not be written; nothing half-written is left behind."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or the list of known names if none is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""
