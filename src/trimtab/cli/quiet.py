"""Third-party progress bars and remarks that say nothing to someone who runs a verb."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager

_TALKATIVE = ("transformers", "accelerate", "peft", "datasets")
# transformers imports torchao where it is installed; these remarks are of GPU kernels that do not load on this machine.
_TALKATIVE_WHEN_IMPORTED = ("torchao", "torch.utils._pytree")


def quiet_imports() -> None:
    """Hide what torchao says when it is imported, whenever that will be; with ``--debug`` it stays visible."""
    if not os.environ.get("TRIMTAB_DEBUG"):
        for name in _TALKATIVE_WHEN_IMPORTED:
            logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def quiet_libraries() -> Generator[None]:
    """Hide the libraries' loading bars, remarks and deprecation warnings; with ``--debug`` everything stays visible."""
    if os.environ.get("TRIMTAB_DEBUG"):
        yield
        return
    from transformers.utils import logging as transformers_logging

    levels = {name: logging.getLogger(name).level for name in _TALKATIVE}
    had_bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if had_bars:
            transformers_logging.enable_progress_bar()
