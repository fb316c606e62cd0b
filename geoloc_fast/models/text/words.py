"""Check descriptions, and turn them into tokens."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from geoloc_fast.errors import WordError

__all__ = ["LONGEST", "Tokens", "Words", "checked_text"]

LONGEST = 10_000
"""Characters. The longest description of a data set has about 1,500."""
_ROOM = ("\n", "\r", "\t")
_ENDS = (".", "!", "?", ";")  # of a sentence


class Tokens(NamedTuple):
    """A batch of token numbers."""

    id: Tensor
    """int64 [B, T], padded with 0."""
    length: Tensor
    """int64 [B], how many of them are the text's, marks at both ends included."""
    cut: Tensor
    """bool [B]: whether the text was longer than the encoder reads."""
    sentence: Tensor
    """int64 [B, T], to which sentence a token belongs, from 0 on; -1 for the marks at the ends and what pads."""


def checked_text(text: object, *, name: str = "text") -> str:
    """The description in one line, composed (NFC), spaces single; WordError for what is none.

    Words are all that a description is: coordinates, addresses and orders in it are words too, and nothing obeys them.
    """
    if not isinstance(text, str):
        raise WordError(f"{name}: expected a string, got {type(text).__name__}")
    if len(text) > LONGEST:
        raise WordError(f"{name}: expected at most {LONGEST} characters, got {len(text)}: describe one place")
    for at, letter in enumerate(text):
        # Format characters join letters of some scripts; all others of this kind are not part of any word.
        if unicodedata.category(letter) in ("Cc", "Cs", "Cn", "Co") and letter not in _ROOM:
            raise WordError(
                f"{name}: expected words, got the control character U+{ord(letter):04X} at {at}: "
                "save the text as plain UTF-8 without it"
            )
    line = " ".join(unicodedata.normalize("NFC", text).split())
    if not any(letter.isalpha() for letter in line):
        raise WordError(f"{name}: expected a description in words, got {line[:40]!r}")
    return line


class Words:
    """A tokenizer as its file (`tokenizer.json`) defines it.

    Args:
        content: the bytes of the file.
        longest: tokens that are read of a text, marks included; what comes after them is cut, and counted.
        latin: whether only Latin letters are known. An encoder that learned English reads others letter by letter,
            as noise, which must be an error and not an answer.
    """

    def __init__(self, content: bytes, *, longest: int, latin: bool) -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise ImportError(
                "text: expected the package tokenizers, which is not installed: pip install 'geoloc_fast[text]'"
            ) from error
        try:
            self._tokenizer: Any = Tokenizer.from_buffer(content)
        except Exception as error:  # its own type is a bare Exception
            raise WordError(f"tokenizer: expected a tokenizer.json, got {error}") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.content = content
        self.longest = longest
        self.latin = latin
        mark = self._tokenizer.encode("a")
        if len(mark.ids) < 2:
            raise WordError("tokenizer: expected one that marks the ends of a text, got one without marks")
        self._last = mark.ids[-1]
        ends = [self._tokenizer.token_to_id(mark + end) for mark in _ENDS for end in ("", "</w>")]
        self._ends = {number for number in ends if number is not None}
        unknown = [self._tokenizer.token_to_id(token) for token in ("[UNK]", "<unk>")]
        self._unknown = {number for number in unknown if number is not None}

    @property
    def size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Tokens of descriptions, each checked."""
        if isinstance(texts, str):
            raise WordError("texts: expected a list of descriptions, got one string")
        lines = [checked_text(text, name=f"texts[{at}]") for at, text in enumerate(texts)]
        for at, line in enumerate(lines):
            self._check_script(line, f"texts[{at}]")
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(lines)]
        for at, row in enumerate(rows):
            if sum(number in self._unknown for number in row) > (len(row) - 2) / 2:
                raise WordError(f"texts[{at}]: expected words of the encoder's language, got {lines[at][:40]!r}")
        cut = torch.tensor([len(row) > self.longest for row in rows], dtype=torch.bool)
        rows = [row if len(row) <= self.longest else [*row[: self.longest - 1], self._last] for row in rows]
        length = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        number = torch.zeros(len(rows), max((len(row) for row in rows), default=0), dtype=torch.int64)
        sentence = torch.full_like(number, -1)
        for at, row in enumerate(rows):
            number[at, : len(row)] = torch.tensor(row)
            ends = torch.tensor([token in self._ends for token in row[1:-1]], dtype=torch.int64)
            sentence[at, 1 : len(row) - 1] = ends.cumsum(0) - ends
        return Tokens(number, length, cut, sentence)

    def _check_script(self, line: str, name: str) -> None:
        letters = [letter for letter in line if letter.isalpha()]
        strange = [letter for letter in letters if not unicodedata.name(letter, "").startswith("LATIN ")]
        if self.latin and 2 * len(strange) > len(letters):
            raise WordError(
                f"{name}: expected Latin letters, which are all that this encoder learned, got {strange[0]!r} and "
                f"{len(strange) - 1} others: translate it, or train with an encoder that knows the script"
            )
