"""The frozen model and its tokenizer: finding it, loading it safely, prompts, vocabularies.

The names are fetched on first use: reading preference data needs the chat helpers, but not the second that torch
takes to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trimtab.models.chat import (
        Message,
        Prompt,
        Text,
        check_ids,
        encode_prompt,
        encode_response,
        end_of_response_id,
        is_ids,
    )
    from trimtab.models.loading import Base, load_base, load_tokenizer, resolve_folder
    from trimtab.models.vocabulary import VocabularyMap, reconcile, tokenizer_hash

__all__ = [
    "Base",
    "Message",
    "Prompt",
    "Text",
    "VocabularyMap",
    "check_ids",
    "encode_prompt",
    "encode_response",
    "end_of_response_id",
    "is_ids",
    "load_base",
    "load_tokenizer",
    "reconcile",
    "resolve_folder",
    "tokenizer_hash",
]

_CHAT = ("Message", "Prompt", "Text", "check_ids", "encode_prompt", "encode_response", "end_of_response_id", "is_ids")
_VOCABULARY = ("VocabularyMap", "reconcile", "tokenizer_hash")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "chat" if name in _CHAT else "vocabulary" if name in _VOCABULARY else "loading"
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
