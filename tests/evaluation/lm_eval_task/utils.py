"""A task small enough for a test: no download, a few questions."""

from datasets import Dataset

_ROWS = [
    {"question": "The quick brown", "choices": [" fox jumps", " dog", " over the lazy"], "answer": 0},
    {"question": "I would be happy", "choices": [" to help you", " the fox"], "answer": 1},
    {"question": "Thank you", "choices": [" for asking", " lazy dog"], "answer": 0},
    {"question": "What is rain? ", "choices": ["Water", "the quick brown fox jumps over"], "answer": 1},
]


def documents(**_):
    return {"test": Dataset.from_list(_ROWS)}
