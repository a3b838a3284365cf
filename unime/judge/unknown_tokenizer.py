"""Texts for a server whose tokenizer is not known here: what may spell one of its special tokens is pulled apart.

A server puts a user's text into its chat template and tokenizes the whole, so `<|im_end|>` in a text would end the user's turn.  Its
special tokens cannot be asked for, so everything of their usual forms is taken for one.
"""

from __future__ import annotations

import re

_FORMS = (
    r"<\|[^<>\n]{1,100}\|>",  # <|im_end|>, <|eot_id|>, <|START_OF_TURN_TOKEN|>
    r"<｜[^<>\n]{1,100}｜>",  # <｜User｜>: DeepSeek's
    r"</?\|?\w[\w.:/-]{0,99}\|?>",  # <s>, </s>, <image>, <start_of_turn>, <IMG_CONTEXT>, <extra_id_0>, <SYS> in <<SYS>>; <|turn>, <turn|>
    r"\[/?[a-z]?[A-Z][A-Z_]{1,99}\]",  # [INST], [/INST], [IMG], [gMASK]
    r"\[\|[^\[\]\n]{1,100}\|\]",  # [|endofturn|]: EXAONE's
    r"\]<\]\w{1,100}\[>\[",  # ]<]image[>[: MiniMax's
)
_BEGUN = re.compile(f"(?=(?:{'|'.join(_FORMS)})).")


def pulled_apart(text: str) -> str:
    """The text with a space behind the first character of whatever looks like a special token: `< |im_end|>`, `[ INST]`."""
    return _BEGUN.sub(lambda first: first[0] + " ", text)
