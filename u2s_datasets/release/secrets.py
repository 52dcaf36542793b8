"""The private words of a run, and where they turn up again.

Signs and captions are full of ordinary words, so one word in common proves nothing. It counts where it has a
digit or is written like a name; several words in a row count where one of them does, and four in a row always.
Addresses of e-mail and telephone numbers count wherever they come from. The toolkit's own words never do.
"""

from __future__ import annotations

import functools
import getpass
import re
import socket
import unicodedata
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from u2s_datasets.release.template import card_template
from u2s_datasets.transforms import answers, instruct

CAPTION, READ, NAME, CLASS, MACHINE = (
    "private caption",
    "word read",
    "source name",
    "class name",
    "user or host",
)
STAYS = "a value of a column that stays"
DATA, CARD, FOOTER = "data", "card", "footer"  # where a text stands
EMAIL, PHONE = "e-mail address", "telephone number"
TOGETHER = 4  # words in a row that count whatever they are
START = 6  # letters by which literals are looked up
LARGE = 1_000_000  # from which on a number is too rare to be a coincidence
SHORTEST = 4  # letters of a single word; shorter ones are too easily alike
# Accounts and hosts that name nobody.
GENERIC = frozenset(
    """root user users home admin administrator ubuntu debian centos ec2 runner docker jovyan vscode codespace
    nobody app localhost localdomain local host container buildkit""".split()
)
NEUTRAL = re.compile(r"class_\d+")  # what stands for a class name that does not leave
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w")
_PHONE = re.compile(r"(?<![\w.])\+?\(?\d[\d ()/-]{6,}\d(?![\w.])")


@functools.cache
def own_words() -> frozenset[str]:
    """The words that the toolkit itself writes: of its lists, prompts and card."""
    texts = [
        file.read_text("utf-8")
        for file in (resources.files("u2s_datasets") / "prompts").iterdir()
        if file.name.endswith(".md")
    ]
    lists = (
        instruct.AGE,
        instruct.SKIN,
        instruct.HAIR,
        instruct.EXPRESSION,
        instruct.CLOTHING,
        instruct.WORDING,
    )
    texts += [text for some in lists for text in some]
    texts.append(card_template())
    said = {word for text in texts for word in tokens(text)}
    return frozenset(said | answers.FUNCTION_WORDS | answers.ORDINARY | answers.IDENTITY)


def tokens(text: str) -> list[str]:
    """The words of a text in order, case-folded; an underscore parts words too."""
    return re.findall(r"[^\W_]+", text.casefold())


def contacts(text: str) -> set[str]:
    """Which of `EMAIL` and `PHONE` stand in a text."""
    phone = any(8 <= sum(c.isdigit() for c in found) <= 15 for found in _PHONE.findall(text))
    return ({EMAIL} if _EMAIL.search(text) else set()) | ({PHONE} if phone else set())


class Secrets:
    """What may stand nowhere in a release.

    Attributes:
        public: words that are known to be public: the toolkit's, and class names that were asked for.
        literals: strings that count anywhere in a text, also inside others, with their kinds.
    """

    def __init__(self, public: Iterable[str] = ()):
        self.public = own_words() | {word for text in public for word in tokens(text)}
        self.literals: dict[str, str] = {}
        # start of a literal -> those that begin so: a text is read once however many there are
        self._starts: dict[str, list[str]] = {}
        self._folders: set[str] = set()
        self._classes: set[tuple[str, ...]] = set()
        self._words: dict[str, str] = {}
        self._runs: dict[tuple[str, ...], str] = {}
        self._said: set[tuple[str, ...]] = set()
        self._values: set[tuple[str, ...]] = set()
        self._numbers: set[int] = set()
        self._machine: list[str] = []

    def add_caption(self, private: str, public: str | None) -> None:
        """A private caption. What the public one says too is no secret."""
        self._said |= set(_runs_of(tokens(public or "")))
        self._add_runs(CAPTION, private)
        words = answers.names(private) | {word for word in tokens(private) if _has_digit(word)}
        for word in words - set(tokens(public or "")):
            self._add_word(CAPTION, word)

    def add_read(self, text: str) -> None:
        """A line of text, or the content of a code."""
        self._add_runs(READ, text)
        for word in tokens(text):
            self._add_word(READ, word)
        if len(text) >= 8 and not text.isalpha():
            self._add_literal(READ, text)

    def add_path(self, path: Path) -> None:
        """The path of a source: each of its parts, as a word and as a part of a path."""
        for part in (part for part in path.parts if part not in ("/", "..", ".")):
            stem = Path(part).stem
            self._add_runs(NAME, stem)
            for word in tokens(stem):
                self._add_word(NAME, word)
            if len(part) > SHORTEST and "." in part:
                self._add_literal(NAME, part)
            elif len(part) > SHORTEST:
                self._folders.add(part.casefold())
                self._add_literal(NAME, f"/{part}/")
                self._add_literal(NAME, f"\\{part}\\")

    def add_value(self, value: str | int) -> None:
        """A value of a column that stays: it may not stand alone, nor its longer numbers and codes anywhere.

        No more than that, since a user's own captions may well say what the public ones say.
        """
        if isinstance(value, int):
            self._numbers |= {value} if abs(value) >= LARGE else set()
            value = str(value)
        words = tokens(value)
        if not set(words) <= self.public:
            self._values.add(tuple(words))
        for word in words:
            if _has_digit(word) and len(word) > 5:
                self._add_word(STAYS, word)

    def add_class(self, name: str) -> None:
        """A class name that was not asked for: it may stand in no text of the data, however ordinary."""
        if words := tuple(tokens(name)):
            self._classes.add(words)
            self._add_runs(CLASS, name)
            for word in words:
                self._add_word(CLASS, word)

    def add_machine(self) -> None:
        """The names of the user, of the home folder and of this machine, unless they are generic or public."""
        found = {Path.home().name, socket.gethostname(), socket.gethostname().split(".")[0]}
        try:
            found.add(getpass.getuser())
        except (KeyError, OSError):  # a user id without a name
            pass
        self._machine += [
            name for name in sorted(found) if len(name) > 2 and not set(tokens(name)) <= GENERIC | self.public
        ]

    def find(self, text: str, place: str = DATA) -> set[str]:
        """The kinds of secrets in a text.

        Args:
            text: anything that is to be published.
            place: `DATA` for a value of a row; `CARD`, which may hold numbers; `FOOTER` for names of columns and
                the like, which the owner chose.
        """
        folded, said = text.casefold(), tokens(text)
        found = self._literals_in(folded)
        loud = {word for word in answers.names(text) for word in tokens(word)} - self.public
        loud |= {
            word
            for word in said
            if _has_digit(word) and (place == DATA or not word.isdigit() or len(word) > 5)
        }
        found |= {self._words[word] for word in set(said) & loud if word in self._words}
        for run in _runs_of(said):
            if run in self._runs and run not in self._said and (len(run) == TOGETHER or loud & set(run)):
                found.add(self._runs[run])
        if any(_stands_in(name, text) for name in self._machine):
            found.add(MACHINE)
        if place == DATA:
            found |= contacts(text) | ({STAYS} if tuple(said) in self._values else set())
        if place != FOOTER and self._says_class(NEUTRAL.sub(" ", text), place):
            found.add(CLASS)
        return found

    def _says_class(self, text: str, place: str) -> bool:
        """Whether a class name stands in a text; in the card, one that is no word of its own."""
        said = tokens(text)
        longest = max((len(name) for name in self._classes), default=0)
        runs = {tuple(said[i : i + n]) for n in range(1, longest + 1) for i in range(len(said) - n + 1)}
        return any(place == DATA or not set(name) <= self.public for name in runs & self._classes)

    def knows(self, number: int) -> bool:
        """Whether a number is one of a column that stays."""
        return number in self._numbers

    def find_bytes(self, data: bytes) -> set[str]:
        """The kinds of secrets in a file's bytes as they are: names of folders, of the user and of the host."""
        folded = data.lower()
        folders = {f"/{name}/".encode() for name in self._folders}
        found = {NAME} if any(name in folded for name in folders) else set()
        # A short name is an accident among compressed bytes.
        names = {name.casefold().encode() for name in self._machine if len(name) > 5}
        return found | ({MACHINE} if any(name in folded for name in names) else set())

    def _add_literal(self, kind: str, text: str) -> None:
        literal = text.casefold()
        if literal not in self.literals:
            self.literals[literal] = kind
            self._starts.setdefault(literal[:START], []).append(literal)

    def _literals_in(self, folded: str) -> set[str]:
        return {
            self.literals[literal]
            for size in range(2, START + 1)
            for at in range(len(folded) - size + 1)
            for literal in self._starts.get(folded[at : at + size], ())
            if folded.startswith(literal, at)
        }

    def _add_word(self, kind: str, word: str) -> None:
        if not word.isascii() and len(word) > 1 and not _is_latin(word):
            self._add_literal(kind, word)
        elif (len(word) >= SHORTEST or (kind == CAPTION and len(word) > 2)) and word not in self.public:
            self._words.setdefault(word, kind)

    def _add_runs(self, kind: str, text: str) -> None:
        words = tokens(text)
        size = min(TOGETHER, len(words))
        for run in _runs_of(words):
            if len(run) == size > 1 and not set(run) <= self.public:
                self._runs.setdefault(run, kind)


def _runs_of(words: list[str]) -> Iterable[tuple[str, ...]]:
    """All runs of two to `TOGETHER` words."""
    for size in range(2, TOGETHER + 1):
        for start in range(len(words) - size + 1):
            yield tuple(words[start : start + size])


def _has_digit(word: str) -> bool:
    return len(word) >= SHORTEST and any(char.isdigit() for char in word)


def _is_latin(word: str) -> bool:
    return all("LATIN" in unicodedata.name(char, "") for char in word if char.isalpha())


def _stands_in(name: str, text: str) -> bool:
    return bool(re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", text, re.IGNORECASE))
