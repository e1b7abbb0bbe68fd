"""What people prefer: records, readers and writers for every common format, checks."""

from trimtab.preferences.formats import FORMATS
from trimtab.preferences.reading import ReadResult, objectives_of, read_comparisons
from trimtab.preferences.records import Comparison, Label, Message, Text, response_text
from trimtab.preferences.rows import BadRow
from trimtab.preferences.sources import data_sha256
from trimtab.preferences.writing import WriteResult, write_comparisons

__all__ = [
    "FORMATS",
    "BadRow",
    "Comparison",
    "Label",
    "Message",
    "ReadResult",
    "Text",
    "WriteResult",
    "data_sha256",
    "objectives_of",
    "read_comparisons",
    "response_text",
    "write_comparisons",
]
