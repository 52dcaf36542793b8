"""Reads what a model answered, so that no answer can make an image safe that does not clearly say so.

Small models forget commas, change quotes and talk around their JSON. Flags are therefore looked up key by key:
every occurrence of a key must say the same, in one of a few words; everything else is doubt. Texts are read
from JSON where it parses and by a tolerant pattern where it does not. What is read is then checked by code.
"""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

YES, NO = {"yes", "true", "1"}, {"no", "false", "0"}
UNSAFE = "unsafe"
_QUOTES = "\"'\u201c\u201d`*"
_QUOTE = f"[{_QUOTES}]"
# Words of apparent gender, age, origin and belief: they have no place in a public text.
IDENTITY = frozenset(
    """man men woman women boy boys girl girls male female lady ladies gentleman guy guys mother father mom dad son
    daughter wife husband grandmother grandfather bride groom elderly old young teenage teenager toddler baby
    black white asian african european caucasian hispanic latino latina arab indian chinese japanese korean american
    muslim christian jewish hindu sikh buddhist hijab turban nun priest rabbi imam""".split()
)
FUNCTION_WORDS = frozenset(
    """a an and are as at be behind beside between by down for from front has have her his if in inside into is it its
    left lower near next no not of off on one onto or out over right same that the their them there they this three to
    top two under up upper was with you your all for he she we me my""".split()
)
# Words that begin a sentence of a description. Any other capital is taken for a name: in doubt the caption goes.
ORDINARY = frozenset(
    """several many some few someone person people group crowd keep each every another other four five six seven
    eight nine ten street road table room kitchen market shop photo picture image scene view close wide landscape
    portrait square indoors outdoors inside outside background foreground behind above below there here it sitting
    standing walking holding wearing looking various rows light dark red blue green yellow orange
    brown grey gray large small long short open empty full wooden metal plain fruit food flowers trees cars
    buildings water sky grass child children individual individuals adult adults figure figures spectators
    sunlight""".split()
)
# Words of identity that describe a mere colour or look where an instruction uses them.
LOOKS = frozenset("black white old young".split())
LAYOUT = frozenset(
    """remove removes removed delete deleted erase erased move moves moved add adds added crop cropped rotate rotated
    resize resized flip flipped zoom zoomed gone""".split()
)
FRAME = frozenset("keep layout becomes".split())  # the words around the changes in a rendered instruction


def flag(text: str, key: str) -> bool | None:
    """What an answer says about a key: True, False, or None where it is missing or doubtful."""
    # A quoted value is what stands in the quotes; an unquoted one goes on to the next comma or line, so that
    # "no idea" is not "no".
    value = rf"{_QUOTE}([^{_QUOTES}\n]*){_QUOTE}|([^,}};{_QUOTES}\n]*)"
    pattern = rf"{_QUOTE}*\b{re.escape(key)}\b{_QUOTE}*\s*[:=]\s*(?:{value})"
    said = {
        (quoted or bare).strip().casefold().rstrip(".!*")
        for quoted, bare in re.findall(pattern, text, re.IGNORECASE)
    }
    if any(re.match(rf"(?:{'|'.join(YES)})\b", value) for value in said):
        return True  # also with more behind it, and where it says no elsewhere
    return False if said and said <= NO else None


def flags(text: str, keys: Iterable[str]) -> dict[str, bool | None]:
    """`flag` for every key. An answer cut before "unsafe" or with "unsafe" alone is not an answer."""
    return {key: flag(text, key) for key in keys}


def is_clear(found: dict[str, bool | None]) -> bool:
    """Whether every flag was answered, and "unsafe" agrees with the others."""
    others = [value for key, value in found.items() if key != UNSAFE]
    return None not in found.values() and found[UNSAFE] == any(others)


def combine(first: dict[str, bool | None], second: dict[str, bool | None] | None) -> dict[str, bool]:
    """The flags after one or two askings: a point is False only if the last answer clearly says so.

    Where a first, doubtful answer said yes to a point, a second one does not take it back.
    """
    last = first if second is None else second
    return {key: not (last[key] is False and first[key] is not True) for key in last}


def read_object(text: str) -> dict[str, Any]:
    """The first JSON object in a text, read tolerantly; {} where there is none."""
    value = _literal(text, "{", "}")
    return value if isinstance(value, dict) else {}


def read_list(text: str) -> list[Any]:
    """The first JSON list in a text, read tolerantly; [] where there is none."""
    value = _literal(text, "[", "]")
    return value if isinstance(value, list) else []


def _literal(text: str, opening: str, closing: str) -> Any:
    start, end = text.find(opening), text.rfind(closing)
    if start < 0 or end < start:
        return None
    body = text[start : end + 1]
    commas = re.sub(r"([\"'\]}])\s*\n\s*([\"'{])", r"\1,\n\2", body)  # a forgotten comma at the end of a line
    for candidate in (body, commas, re.sub(r",\s*([}\]])", r"\1", commas)):
        try:
            return json.loads(candidate)
        except ValueError:
            pass
        try:
            return ast.literal_eval(candidate)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            pass
    return None


def read_text(text: str, key: str, following: str | None = None) -> str:
    """The text of a key, from JSON or, where that does not parse, up to the next key; "" where missing."""
    value = read_object(text).get(key)
    if isinstance(value, str):
        return " ".join(value.split())
    end = rf"""["']?\s*,?\s*["']?{re.escape(following)}\b""" if following else r"""["']?\s*\}"""
    found = re.search(
        rf"""["']?\b{re.escape(key)}\b["']?\s*[:=]\s*["']?(.*?){end}""", text, re.DOTALL | re.IGNORECASE
    )
    return " ".join(found[1].strip().strip("\"',").split()) if found else ""


def read_items(text: str) -> list[str]:
    """The reviewed items of a caption answer."""
    review = read_object(text).get("review")
    if isinstance(review, list):
        rows = [row.get("item") if isinstance(row, dict) else row for row in review]
        return [row for row in rows if isinstance(row, str)]
    return re.findall(r"""["']?\bitem\b["']?\s*:\s*["']([^"'\n]*)""", text, re.IGNORECASE)


def public_problems(public: str, private: str, read: Iterable[str], items: Iterable[str]) -> list[str]:
    """Why a public caption may not be used, as reasons that carry no content; [] where it may.

    Args:
        public: the public caption.
        private: the private one.
        read: texts that detectors read in the image.
        items: what the model itself listed as identifying.
    """
    said = content_words(public)
    secret = set().union(*(content_words(text) for text in read)) if read else set()
    reviewed = [content_words(item) for item in items]
    problems = {
        "it is empty": not public.strip(),
        "it has more than 50 words": len(public.split()) > 50,
        "it has a number": bool(re.search(r"\d", public)),
        "it names someone or something": bool(names(public) or (names(private) & said)),
        "it repeats words read in the picture": bool(said & secret),
        "it repeats a reviewed item": any(item and item <= said for item in reviewed),
        "it tells gender, age, origin or belief": bool(said & IDENTITY),
        "it quotes": bool(re.search(r"[\"\u201c\u201d\u00ab]|(?<!\w)'|https?:|www\.|@", public)),
    }  # fmt: skip
    return [reason for reason, is_so in problems.items() if is_so]


def instruction_problems(instruction: str, public: str, max_words: int, looks: str = "") -> list[str]:
    """Why an instruction may not be used, as reasons that carry no content; [] where it may.

    It is written from the public caption, so names and numbers that are not there were made up; words of
    identity are refused; "remove", "move" and the like would change the layout; the words of the caption
    alone would change nothing. `looks` are what the model was told to use.
    """
    said = content_words(instruction)
    problems = {
        "it is empty": not instruction.strip(),
        f"it has more than {max_words} words": len(instruction.split()) > max_words,
        "it tells gender, origin or belief": bool(said & (IDENTITY - LOOKS)),
        "it changes the layout": bool(said & LAYOUT),
        "it names someone or something": bool(names(instruction) - content_words(f"{public} {looks}")),
        "it changes nothing": said - FRAME <= content_words(public),
    }
    return [reason for reason, is_so in problems.items() if is_so]


def content_words(text: str) -> set[str]:
    """The words of a text that carry meaning: case-folded, two letters or more, no function words."""
    return {word for word in re.findall(r"[^\W_]{2,}", text.casefold()) if word not in FUNCTION_WORDS}


def names(text: str) -> set[str]:
    """Words that look like names, case-folded: capitalised, and no ordinary word at the start of a sentence.

    Scripts other than Latin count as names: a description in the prompt's language has no need of them.
    """
    found = set()
    for match in re.finditer(r"[^\W\d_][\w'-]*", text):
        word = match[0].casefold()
        if (
            not word.isascii()
            and not all("LATIN" in unicodedata.name(char, "") for char in word if char.isalpha())
        ) or (match[0][0].isupper() and word not in FUNCTION_WORDS | ORDINARY):
            found.add(word)
    return found
