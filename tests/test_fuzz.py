"""The reader on mutated files: five seconds in the suite, ten minutes in `make soak`."""

import time

import fuzz
import pytest


def test_mutated_files_are_read_or_refused():
    cases, failed = fuzz.run(5, first=0)
    assert failed == []
    assert cases > 0


@pytest.mark.parametrize("number", [17958191870461, 1700180392])
def test_what_a_soak_once_found(number):
    """A TIFF whose tag is a text in its type and a fraction in its value (Pillow's AttributeError); a damaged scan that
    libjpeg decodes otherwise without the bytes behind it."""
    fuzz.exercise(fuzz.case(number), number)


@pytest.mark.soak
def test_mutated_files_for_ten_minutes():
    """Other cases every time; a failure names the number that makes its case again."""
    first = int(time.time()) * 10_000
    cases, failed = fuzz.run(600, first)
    assert failed == []
    assert cases > 1000


def test_a_case_depends_on_its_number_alone():
    assert [fuzz.case(number) for number in range(20)] == [fuzz.case(number) for number in range(20)]
    assert len({fuzz.case(number) for number in range(200)}) > 150
