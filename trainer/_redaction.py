"""Removal of what looks like a secret from text that is shown, and of what a terminal would take for a command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["escaped", "hide", "is_secret", "redacted", "secrets_in"]

_HIDDEN = "***"

_NAMES = (
    r"passw|passphrase|pwd|secret|token(?!s|iz)|credential|auth(?!or)|bearer|cookie|"
    r"(?:api|access|private|ssh|account)[-_ ]?key"
)
_NAME = re.compile(rf"{_NAMES}|^key$", re.IGNORECASE)
"""Names of secrets, also as a part of a name."""

# with limits, so that the time grows only with the length of a text
_IN_TEXT = [
    re.compile(r"(?<=://)[^/\s:@]{0,64}:(\S{1,256})(?=@)"),  # user:password of a URL
    re.compile(r"\b(?:bearer|basic) ([^\s,;'\"]{1,256})", re.IGNORECASE),
    re.compile(rf"(?:{_NAMES})[\w-]{{0,32}}['\"]?\s{{0,4}}[=:]\s{{0,4}}['\"]?([^\s,;&'\"]{{1,256}})", re.IGNORECASE),
]
"""Secrets within a text, as the only group."""

_LEAST, _WITHIN_WORDS = 4, 6
"""Least number of characters of a secret that is hidden in any text: as a word of its own, and as a part of one."""

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move the cursor, change colours or the direction of text, or cannot be printed."""


def escaped(text: str) -> str:
    r"""Return a text without characters that a terminal obeys: an escape becomes ``\x1b``. Lines and tabs are kept."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


def is_secret(key: object) -> bool:
    """Return whether a key is like that of a secret, such as ``api_key`` or ``auth_token``."""
    return _NAME.search(str(key)) is not None


def secrets_in(value: Any, *, within: bool = False) -> Iterator[str]:
    """Yield the texts in plain data that look like secrets: by their key, or by what is before them in a text.

    Very short ones, and short numbers, are left out: they are in many texts by chance.

    Args:
        value: Dictionaries, lists and scalars.
        within: Whether the value is that of a key that looks like a secret's.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from secrets_in(item, within=within or is_secret(key))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from secrets_in(item, within=within)
    elif within and isinstance(value, (int, float)):
        yield from [str(value)] * (len(str(value)) >= _WITHIN_WORDS)
    elif isinstance(value, str):
        found = [value] if within else [one for pattern in _IN_TEXT for one in pattern.findall(value)]
        yield from (one for one in found if len(one) >= _LEAST)


def redacted(value: Any, *, within: bool = False) -> Any:
    """Return a copy of plain data in which ``***`` stands for what looks like a secret.

    Args:
        value: See `secrets_in`.
        within: See `secrets_in`.
    """
    if isinstance(value, Mapping):
        return {key: redacted(item, within=within or is_secret(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(item, within=within) for item in value]
    if within and value is not None and not isinstance(value, bool):
        return _HIDDEN
    if isinstance(value, str):
        for pattern in _IN_TEXT:
            value = pattern.sub(_without_group, value)
    return value


def _without_group(match: re.Match[str]) -> str:
    start, stop = (place - match.start() for place in match.span(1))
    return f"{match[0][:start]}{_HIDDEN}{match[0][stop:]}"


def hide(text: str, secrets: Iterable[str]) -> str:
    """Return a text with ``***`` in place of secrets, also as ``repr`` and JSON write them."""
    forms = {form for one in secrets for form in (one, *(write(one)[1:-1] for write in (repr, ascii, json.dumps)))}
    for form in sorted(forms, key=len, reverse=True):
        if form in text:
            found = re.escape(form)
            text = re.sub(found if len(form) >= _WITHIN_WORDS else rf"(?<!\w){found}(?!\w)", _HIDDEN, text)
    return text
