"""The accuracy of visual question answering (Antol et al. 2015): agreement with ten people's answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

ENOUGH = 3  # people who must agree for a full point
ARTICLES = {"a", "an", "the"}
NUMBERS = "none zero one two three four five six seven eight nine ten".split()
DIGITS = {word: str(max(0, index - 1)) for index, word in enumerate(NUMBERS)}


def accuracy(answer: str, people: Sequence[str]) -> float:
    """The official rule: each person is left out once; min(1, matches among the others / 3), averaged.

    Args:
        answer: of the model.
        people: the answers of people, ten as a rule, two at least.

    Raises:
        ValueError: fewer than two answers of people.

    >>> accuracy("two dogs", ["2 dogs"] * 3 + ["cat"] * 7)
    0.9
    """
    if len(people) < 2:
        raise ValueError(f"the rule needs the answers of at least two people; given: {len(people)}")
    said, others = normalise(answer), [normalise(person) for person in people]
    matches = sum(said == other for other in others)
    points = [min(1.0, (matches - (said == other)) / ENOUGH) for other in others]
    return sum(points) / len(points)


def normalise(answer: str) -> str:
    """Lower case; no articles, apostrophes or punctuation; number words as digits.

    The official script repairs contractions from a list ("dont" to "don't"); without apostrophes both are one.

    >>> normalise("The dog's bowl, isn't it? 1,000.5")
    'dogs bowl isnt it 1000.5'
    """
    text = answer.casefold().replace("'", "").replace("\u2019", "")
    text = re.sub(r"(?<=\d),(?=\d)", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)
    text = re.sub(r"[^\w\s.:$%]|_", " ", text)
    words = [DIGITS.get(word, word) for word in text.split() if word not in ARTICLES]
    return " ".join(words)
