"""Reading, models and writing side by side: one batch is read ahead, one is written behind, and so is a shard's end.

A model then never waits for a JPEG or for the disk. At most four batches are in memory, and a batch ends early
where its pictures together have more than `AT_ONCE` pixels or bytes, so memory follows neither rows nor sizes,
but for a batch of encoded files that comes from a table.
How rows fall into batches changes no output.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar, cast

from u2s_datasets.errors import UnreadableImage
from u2s_datasets.image_io import Photo

logger = logging.getLogger(__name__)

AT_ONCE = 128_000_000  # as pixels about 0.8 GB decoded, twice as Pillow and numpy hold it
END = object()
T = TypeVar("T")


def ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The same items, the next one made in a thread while the last one is used."""
    with ThreadPoolExecutor(1) as pool:
        # An interrupt while the thread starts would leave it running unseen, at an item that nobody may close.
        pool.submit(int).result()
        coming = pool.submit(next, items, END)
        while (item := coming.result()) is not END:
            coming = pool.submit(next, items, END)
            yield cast(T, item)


class Behind:
    """Calls functions in a thread, one call after the other, at most one waiting.

    What a call raises comes with the next one, or at the end.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        # As in `ahead`: an interrupt while the thread starts would leave a call at work that nobody waits for.
        self._pool.submit(int).result()
        self._last: Future[Any] | None = None

    def __call__(self, function: Callable[..., Any], *args: Any) -> None:
        """Has `function(*args)` called after what came before."""
        self._wait()
        self._last = self._pool.submit(function, *args)

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> Behind:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._pool:
            if error is None:
                self._wait()
        failed = self._last.exception() if self._last else None
        if failed:
            logger.warning("what was written beside failed as well: %s", type(failed).__name__)


def portions(
    photos: Iterable[Photo | UnreadableImage], most: int = AT_ONCE
) -> Iterator[list[Photo | UnreadableImage]]:
    """Cuts a batch into parts of at most `most` pixels and bytes each, one photo at least, as they are opened."""
    part: list[Photo | UnreadableImage] = []
    sizes = (0, 0)
    for photo in photos:
        own = (photo.size[0] * photo.size[1], len(photo.data)) if isinstance(photo, Photo) else (0, 0)
        together = (sizes[0] + own[0], sizes[1] + own[1])
        if max(together) > most and any(sizes):
            yield part
            part, together = [], own
        part.append(photo)
        sizes = together
    yield part
