"""The frozen model and its tokenizer: finding it, loading it safely, prompts, vocabularies."""

from trimtab.models.chat import Message, Text, encode_prompt, encode_response, end_of_response_id
from trimtab.models.loading import Base, load_base, load_tokenizer, resolve_folder
from trimtab.models.vocabulary import VocabularyMap, reconcile, tokenizer_hash

__all__ = [
    "Base",
    "Message",
    "Text",
    "VocabularyMap",
    "encode_prompt",
    "encode_response",
    "end_of_response_id",
    "load_base",
    "load_tokenizer",
    "reconcile",
    "resolve_folder",
    "tokenizer_hash",
]
