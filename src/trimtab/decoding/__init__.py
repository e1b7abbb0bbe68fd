"""How a next token is chosen: the rule that combines logits, sampling, stop strings, and the oracle tests trust."""

from trimtab.decoding.rules import combine, ensure_usable
from trimtab.decoding.sampling import Sampling, make_sampling

__all__ = ["Sampling", "combine", "ensure_usable", "make_sampling"]
