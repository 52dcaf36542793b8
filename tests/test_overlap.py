"""Reading ahead and writing behind: the same items, bounded, and errors where they belong."""

import threading
import time
from contextlib import closing

import pytest
from PIL import Image

from u2s_datasets.errors import UnreadableImage
from u2s_datasets.image_io import Photo
from u2s_datasets.run.overlap import Behind, ahead, portions


def test_ahead_gives_all_items_in_order_and_is_one_item_ahead():
    made = []

    def items():
        for index in range(5):
            made.append(index)
            yield index

    seen = []
    for item in ahead(items()):
        time.sleep(0.05)
        assert len(made) <= item + 2
        seen.append(item)
    assert seen == list(range(5))


def test_an_error_while_reading_comes_after_the_items_before_it():
    def items():
        yield 1
        raise OSError("gone")

    source = ahead(items())
    assert next(source) == 1
    with pytest.raises(OSError, match="gone"):
        next(source)


def test_behind_keeps_the_order_and_at_most_one_call_waits():
    done, running, gate = [], [], threading.Event()

    def call(index):
        running.append(index)
        gate.wait(5)
        done.append(index)

    with Behind() as later:
        later(call, 0)
        assert not done
        gate.set()
        for index in range(1, 4):
            later(call, index)
            assert len(done) >= index
    assert done == running == [0, 1, 2, 3]


def test_an_error_while_writing_is_raised_by_the_next_call_or_at_the_end():
    def fail():
        raise OSError("no space")

    def calls(*functions):
        with Behind() as later:
            for function in functions:
                later(function)

    with pytest.raises(OSError, match="no space"):
        calls(fail, print)
    with pytest.raises(OSError, match="no space"):
        calls(fail)


def test_portions_bound_pixels_and_bytes_and_lose_no_row(encode):
    small, large = (Photo(encode(Image.new("RGB", size))) for size in ((300, 100), (900, 100)))
    unknown, long = UnreadableImage("unknown"), Photo(small.data + bytes(50_000))
    photos = [small, unknown, small, large]
    assert list(portions(photos, 60_000)) == [[small, unknown, small], [large]]
    assert list(portions(photos, 1)) == [[small], [unknown, small], [large]]
    assert list(portions(photos)) == [photos]
    assert list(portions([small, long, small, small, large], 60_000)) == [
        [small, long],
        [small, small],
        [large],
    ]
    assert list(portions([long, long, long], 60_000)) == [[long], [long], [long]]


def test_a_portion_is_used_before_the_next_photographs_are_opened(encode):
    photo, opened = Photo(encode(Image.new("RGB", (300, 100)))), []

    def photos():
        for index in range(6):
            opened.append(index)
            yield photo

    for number, part in enumerate(portions(photos(), 60_000), 1):
        assert len(part) == 2
        assert len(opened) <= 2 * number + 1


def test_an_error_beside_the_reading_is_the_one_that_is_seen():
    def items():
        for index in range(3):
            time.sleep(0.2)
            yield index

    def use():
        with closing(ahead(items())) as source:
            for _ in source:
                raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        use()
