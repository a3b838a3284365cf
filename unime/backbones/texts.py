"""A user's text that spells special tokens (`<|im_end|>`, `<image>`) is text: only the prompt's own special tokens are special.

1. A prompt is one string, because byte-pair merges reach over the border between the prompt's words and a user's text.
2. `literal` marks the special tokens that a text spells before the text goes into the prompt: BREAK stands behind the first character of
   each, so no tokenizer, chat template or count of image tokens takes it for one.  A BREAK of the user's own is doubled.
3. `ids` cuts a marked prompt at the special tokens that are left, which are the prompt's own, as the tokenizer does; the pieces between
   them lose their marks and are tokenized with `split_special_tokens`.  A prompt without marks goes to the tokenizer as it is.

What was refused: special tokens changed to similar text (the model would read another text), and the user's text tokenized apart from the
words around it (all ids at its borders would differ from the published prompts').
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

BREAK = "\ufdd0"
"""A noncharacter of Unicode, reserved for use inside a program."""

_MARKED = re.compile(f"{BREAK}({BREAK}?)")


def restored(text: str) -> str:
    """The text of a prompt without the marks of `literal`, as a reader would write it."""
    return _MARKED.sub(r"\1", text)


def _any(words: Sequence[str]) -> str:
    """A pattern of any of these words; of two that begin alike the one that stands first."""
    return "|".join(re.escape(word) for word in words)


class Texts:
    """A tokenizer for prompts in which users' texts stand; `more` are special tokens besides those that the tokenizer calls special."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, more: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        self._added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
        special = {word for word, token in self._added.items() if token.special}
        self.words = sorted({*special, *tokenizer.all_special_tokens, *more}, key=lambda word: (-len(word), word))
        self._own = re.compile(f"({_any(self.words)})")
        begun = []  # a first character, in front of the rest of a word: a search for one character is fast
        for first in sorted({word[0] for word in self.words}):
            rests = [word[1:] for word in self.words if word[0] == first]
            begun.append(f"{re.escape(first)}(?={_any(rests)})")
        self._begun = re.compile("|".join(begun))

    def literal(self, text: str) -> str:
        """A user's text as it stands in a prompt: itself, unless it spells a special token."""
        doubled = text.replace(BREAK, BREAK * 2)
        return self._begun.sub(lambda first: first[0] + BREAK, doubled)

    def literals(self, pieces: Sequence[Any]) -> list[Any]:
        """The pieces of an item or a turn, each text as `literal` has it and each image as it is."""
        return [self.literal(piece) if isinstance(piece, str) else piece for piece in pieces]

    def ids(self, text: str) -> np.ndarray:
        """(L,) int64: the tokens of a prompt or of a part of one, none added."""
        if BREAK not in text:
            return np.asarray(self.tokenizer.encode(text, add_special_tokens=False), dtype=np.int64)
        found: list[int] = []
        pieces = self._own.split(text)  # special tokens at the odd places
        for place, piece in enumerate(pieces):
            if place % 2:
                found.append(self.tokenizer.convert_tokens_to_ids(piece))
                continue
            before = self._added.get(pieces[place - 1]) if place else None
            after = self._added.get(pieces[place + 1]) if place + 1 < len(pieces) else None
            if before is not None and before.rstrip:
                piece = piece.lstrip()
            if after is not None and after.lstrip:
                piece = piece.rstrip()
            found += self._plain.encode(restored(piece), add_special_tokens=False).ids
        return np.asarray(found, dtype=np.int64)

    def batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`ids` of each text, those of texts without marks in one call."""
        plain = [text for text in texts if BREAK not in text]
        found = self.tokenizer(plain, add_special_tokens=False, return_attention_mask=False)["input_ids"] if plain else []
        told = iter(found)
        return [self.ids(text) if BREAK in text else np.asarray(next(told), dtype=np.int64) for text in texts]

    @functools.cached_property
    def _plain(self) -> Tokenizer:
        """A copy of the tokenizer's inner one that reads special tokens as text; threads use the other one meanwhile."""
        plain = copy.deepcopy(self.tokenizer.backend_tokenizer)
        plain.add_special_tokens(self.words)  # a word of `more` may be one that the folder does not call special
        plain.encode_special_tokens = True
        plain.no_truncation()
        plain.no_padding()
        return plain
