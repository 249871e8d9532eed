"""Training data without a tokenizer: finding it, reading it line by line, and checking its structure.

`locate` says what a path means, `check` reads all of it once and names what is wrong, `read_examples` yields what is
to be tokenised.
"""

from fm.data.check import check, digest, read_examples, verify
from fm.data.rules import Chat, Example, Instruction, Text
from fm.data.source import Row, Source, locate

__all__ = [
    "Chat",
    "Example",
    "Instruction",
    "Row",
    "Source",
    "Text",
    "check",
    "digest",
    "locate",
    "read_examples",
    "verify",
]
