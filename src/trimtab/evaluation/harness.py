"""EleutherAI's lm-evaluation-harness with guided models: ``--model trimtab``.

Importing this module lets ``lm_eval`` know the model, without importing torch. ``trimtab lm-eval …`` and
``python -m trimtab.evaluation.harness …`` are ``lm_eval …`` after that import, argument for argument.

lm-eval has no entry points for models: it knows those in its own table and those that something has registered before
it looks. Its own program imports one thing from outside before that, the modules that a task file's ``!function``
names, so a task file does it there: :func:`plugin_file`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from trimtab._version import __version__
from trimtab.errors import ConfigError

MODEL = "trimtab"
TARGET = "trimtab.evaluation.harness_model:TrimtabLM"
VERSION = __version__


def register() -> None:
    """Let lm-eval find the model ``trimtab``, which is imported when it is asked for.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    try:
        importlib.import_module("lm_eval.models")  # fills the registry, which is left alone once it holds anything
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise ConfigError("lm-eval is not installed: pip install 'trimtab[harness]'.") from error
    if MODEL not in model_registry:
        model_registry.register(MODEL, target=TARGET)


def plugin_file() -> Path:
    """Return the task file that, among ``--tasks``, lets lm-eval's own program find the model."""
    return Path(__file__).parent / "lm_eval_plugin" / "trimtab.yaml"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run lm-eval's program; ``--model trimtab --batch_size auto`` where nothing else is said.

    Args:
        arguments: as for ``lm_eval``; default: those of this process.

    Raises:
        ConfigError: lm-eval is not installed.
    """
    register()
    from lm_eval.__main__ import cli_evaluate

    given = list(sys.argv[1:] if arguments is None else arguments)
    before = sys.argv
    sys.argv = ["lm_eval", *with_defaults(given)]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


def with_defaults(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with ``--model trimtab --batch_size auto`` where they run tasks and say nothing of these."""
    given = list(arguments)
    names = {item.split("=", 1)[0] for item in given}
    if len(given) < 2 or given[0] in ("ls", "validate") or names & {"--config", "-C", "-h", "--help"}:
        return given
    model = [] if names & {"--model", "-M"} else ["--model", MODEL]
    batch = [] if names & {"--batch_size", "-b"} or any("batch_size" in item for item in given) else ["auto"]
    return [*given, *model, *(["--batch_size", *batch] if batch and model else [])]


if __name__ == "__main__":
    main()
else:
    register()
