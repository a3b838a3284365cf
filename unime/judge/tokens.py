"""Tokens of prompts that consist of a few texts in ever new combinations."""

from __future__ import annotations

import re

import numpy as np

from unime.backbones import Backbone


class Tokens:
    """The backbone's tokenizer, each distinct piece of text tokenized once.

    A tokenizer cuts a text at its special tokens before anything else, so the pieces between them are tokenized one by one.  Where a
    special token would also take the blanks around it, texts are tokenized whole.
    """

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        added = backbone.tokenizer.added_tokens_decoder.values()
        clean = [token.content for token in added if not (token.lstrip or token.rstrip or token.single_word or token.normalized)]
        self._cut = re.compile("(" + "|".join(re.escape(word) for word in sorted(clean, key=len, reverse=True)) + ")")
        self._whole = len(clean) < len(added)
        self._known: dict[str, np.ndarray] = {}

    def ids(self, text: str) -> np.ndarray:
        """(L,) int64: what the tokenizer makes of the text, no token added."""
        pieces = [text] if self._whole else [piece for piece in self._cut.split(text) if piece]
        return np.concatenate([self._ids(piece) for piece in pieces])

    def _ids(self, piece: str) -> np.ndarray:
        found = self._known.get(piece)
        if found is None:
            if len(self._known) > 1 << 16:
                self._known.clear()
            found = self._known[piece] = self.backbone.texts.ids(piece)
        return found
