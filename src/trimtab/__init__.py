"""Steer a frozen language model, token by token, with a small autoregressive reward model (a *guide*)."""

from trimtab._version import __version__

__all__ = ["__version__"]
