"""Where a run is written: a folder of this machine, or any place that fsspec opens.

A local folder is a `pathlib.Path`; a place in a store is a `RemotePath`, which has the few methods of a Path
that a run needs. `renamed` makes a file appear whole in both, so that a file with its final name is finished:

- a local folder: a temporary name beside it, fsync, rename, fsync of the folder;
- an object store (`OBJECT_STORES`): one put; the object is there when the whole upload has been accepted. On
  the Hub a put into a repository is a commit;
- any other store (sftp, hdfs, smb ...): a put under a temporary name, then a move.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from u2s_datasets.errors import MissingExtra, UsageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Their puts are whole: nothing is there before the upload is complete.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "hf", "memory"}
# What a write fails with when the place is at fault, and not the code.
PLACE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST,
}  # fmt: skip


@dataclass(frozen=True)
class RemotePath:
    """A file or folder in a store.

    Attributes:
        fs: the store.
        path: the place there, without the protocol.
    """

    fs: AbstractFileSystem
    path: str

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(self.fs, f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return str(self.fs.unstrip_protocol(self.path))

    @property
    def name(self) -> str:
        """The last part."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The folder of it."""
        return RemotePath(self.fs, self.path.rstrip("/").rpartition("/")[0])

    @property
    def protocol(self) -> str:
        """Such as "s3"."""
        return self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]

    def exists(self) -> bool:
        """Whether there is such a file, or a folder with files."""
        self.fs.invalidate_cache()
        return bool(self.fs.exists(self.path))

    def is_dir(self) -> bool:
        """Whether there are files below it."""
        self.fs.invalidate_cache()
        return bool(self.fs.isdir(self.path))

    def open(self, mode: str = "rb") -> IO[bytes]:
        """The file, for reading."""
        self.fs.invalidate_cache()
        return self.fs.open(self.path, mode)  # type: ignore[no-any-return]

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole file."""
        self.fs.invalidate_cache()
        return bytes(self.fs.cat_file(self.path)).decode(encoding)

    def iterdir(self) -> Iterator[RemotePath]:
        """What lies directly below.

        Raises:
            FileNotFoundError: nothing does.
        """
        self.fs.invalidate_cache()
        for found in self.fs.ls(self.path, detail=False):
            yield RemotePath(self.fs, found)

    def mkdir(self, parents: bool = True, exist_ok: bool = True) -> None:
        """Makes the folder where the store has such a thing."""
        self.fs.makedirs(self.path, exist_ok=exist_ok)

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes the file."""
        try:
            self.fs.rm_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise


Place = Path | RemotePath


def place(out: str | Path | RemotePath) -> Place:
    """The place of a folder or an address such as s3://bucket/run, hf://buckets/name/run or file:///run.

    Raises:
        UsageError: an address that no store answers to.
        MissingExtra: the store's package is not installed.
    """
    if isinstance(out, (Path, RemotePath)):
        return out
    if "://" not in out:
        return Path(out)
    import fsspec

    try:
        fs, path = fsspec.url_to_fs(out)
    except ImportError as error:
        raise MissingExtra(f"the package for {out.partition('://')[0]}://", _install(str(error))) from error
    except ValueError as error:
        raise UsageError(f"--out: {error}") from error
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return Path(path) if "file" in protocols else RemotePath(fs, path)


def _install(message: str) -> str:
    """Fsspec says "Install s3fs to access S3"; ours is a line to copy."""
    words = message.split()
    return f"pip install {words[1]}" if words[:1] == ["Install"] else message


@contextmanager
def renamed(final: Place) -> Iterator[Path]:
    """A temporary local file to write; it becomes `final` on success, whole, and is removed on failure."""
    if isinstance(final, RemotePath):
        # Not beside the others: a store has no hidden files.
        with tempfile.TemporaryDirectory(prefix="u2s-") as folder:
            temporary = Path(folder) / final.name
            yield temporary
            _put(temporary, final)
        return
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(final.parent)


def remove_leftovers(final: Path) -> None:
    """What a killed process left of this very shard. No living one has it: a run's shards are each of one rank."""
    for name in final.parent.glob(f".{final.name}.*.tmp") if final.parent.is_dir() else ():
        name.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Makes a rename outlast a power cut."""
    if os.name == "nt":  # folders can't be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:  # some network file systems know no sync of folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def _put(file: Path, final: RemotePath) -> None:
    if final.protocol == "memory":  # its put_file shows a growing file
        final.fs.pipe_file(final.path, file.read_bytes())
    elif final.protocol in OBJECT_STORES:
        final.fs.put_file(str(file), final.path)
    else:
        temporary = final.parent / f".{final.name}.{os.getpid()}.tmp"
        final.fs.put_file(str(file), temporary.path)
        final.fs.mv(temporary.path, final.path)


def write_text(final: Place, text: str) -> None:
    """Writes a small file whole."""
    with renamed(final) as temporary:
        temporary.write_text(text, "utf-8")


def names(folder: Place) -> set[str]:
    """The names of what lies directly in a folder; none where there is no folder."""
    try:
        return {found.name for found in folder.iterdir()}
    except FileNotFoundError:
        return set()


@contextmanager
def explained() -> Iterator[None]:
    """Turns an error of the place that is written to into one that says what to do.

    Raises:
        UsageError: the disk is full, or the place is read-only or not ours.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in PLACE_ERRORS:
            raise
        reason = os.strerror(error.errno)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "free some space and give the same command again: finished shards are kept"
        else:
            advice = "choose another --out"
        raise UsageError(f"the output can't be written ({reason}); {advice}") from error
