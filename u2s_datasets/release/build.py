"""Makes the folder that is published: view, gate, card, and the scan of what came out, in that order.

A dry run and a push make it with this one function, so they hold the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from u2s_datasets.errors import UsageError
from u2s_datasets.evaluation.runs import open_run
from u2s_datasets.release.card import Told, card_of, check_license
from u2s_datasets.release.finished import audits_of, open_finished
from u2s_datasets.release.gate import (
    Check,
    Refused,
    audit_checks,
    demand,
    private_texts,
    read_limits,
    score_run,
)
from u2s_datasets.release.learn import learn
from u2s_datasets.release.scan import CARD, Leak, scan
from u2s_datasets.release.view import View, view_of, write_view
from u2s_datasets.run.source import Source
from u2s_datasets.run.storage import PLACE_ERRORS, renamed
from u2s_datasets.transforms.score import Score

RECORD = "releases.yaml"


@dataclass(frozen=True)
class Request:
    """What to publish, and how.

    Attributes:
        run: the folder that `u2s anonymize` wrote.
        repo: "namespace/name" on the Hub.
        license: of the published images, an identifier that the Hub knows.
        originals: the opened source of the run; with it images are scored and compared.
        keep: columns to publish besides those that may leave anyway.
        accept: limits to change, as "name=value".
        shuffle_seed: of the order of the rows; None keeps it.
        score: what is measured against the originals.
    """

    run: Path
    repo: str
    license: str | None
    originals: Source | None = None
    keep: Sequence[str] = ()
    accept: Sequence[str] = ()
    shuffle_seed: int | None = None
    score: Score = field(default_factory=Score)


@dataclass(frozen=True)
class Release:
    """A folder that may be published.

    Attributes:
        folder: README.md and data/.
        view: which columns it has, and which stayed.
        checks: the gate's.
        statuses: rows of the run by status.
        digest: of all its files and their names.
    """

    folder: Path
    view: View
    checks: list[Check]
    statuses: dict[str, int]
    digest: str


@contextmanager
def built(request: Request, on_rows: Callable[[int], None] = lambda rows: None) -> Iterator[Release]:
    """Makes the release in a temporary folder that only this user can read, and removes it afterwards.

    Raises:
        UsageError: the run is not finished or not verified, or a request makes no sense.
        Refused: a limit is not kept, or the scan found something.
    """
    license, limits = check_license(request.license), read_limits(request.accept)
    check_repo(request.repo)
    run = open_finished(request.run)
    audits, view = audits_of(run), view_of(run, request.keep)
    source = None if request.originals is None else open_run(request.run, request.originals)
    secrets, originals = learn(run, view, request.repo, source)
    scored = None if source is None else score_run(request.run, source, audits, request.score, on_rows)
    private = private_texts(run, audits, view, secrets)
    checks = audit_checks(audits, limits, private, scored.unscored if scored else [])
    checks += scored.checks(limits) if scored else []
    demand(checks)
    with tempfile.TemporaryDirectory(prefix="u2s-release-") as place:
        folder = Path(place) / "release"
        try:
            write_view(run, audits, view, folder, request.shuffle_seed)
        except OSError as error:
            if error.errno not in PLACE_ERRORS:
                raise
            raise UsageError(
                f"the release can't be made in the system's temporary folder ({os.strerror(error.errno)}), "
                "which needs room for all published images, twice with --shuffle-seed; set TMPDIR to a larger one"
            ) from error
        report, is_shuffled = scored.report if scored else None, request.shuffle_seed is not None
        told = Told(
            request.repo, license, run, audits, view, checks, list(request.accept), report, is_shuffled
        )
        (folder / CARD).write_text(str(card_of(told)), "utf-8")
        stop_leaks(scan(folder, secrets, originals))
        yield Release(folder, view, checks, audits.statuses, digest_of(folder))


def check_repo(repo: str) -> None:
    """Checks the name of a repository.

    Raises:
        UsageError: it is not "namespace/name".
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", repo) or re.search(
        r"\.\.|--|\.git$|[.-]$", repo
    ):
        raise UsageError(f"--repo is namespace/name on the Hub; given: {repo!r}")


def stop_leaks(leaks: list[Leak]) -> None:
    """Stops where the scan found something.

    Raises:
        Refused: with what and where, by number.
    """
    if not leaks:
        return
    places: dict[tuple[str, str], list[int]] = {}
    for leak in leaks:
        places.setdefault((leak.file, leak.kind), []).append(leak.row)
    lines = ["the release is refused; the scan of what would be published found:"]
    for (file, kind), rows in list(places.items())[:20]:
        numbers = [str(row) for row in rows if row >= 0]
        where = f", row {', '.join(numbers[:10])}{' ...' if len(numbers) > 10 else ''}" if numbers else ""
        lines.append(f"  {kind} in {file}{where}")
    raise Refused("\n".join(lines))


def digest_of(folder: Path) -> str:
    """SHA-256 of the names and contents of all files, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def write_release(
    request: Request, target: Path, on_rows: Callable[[int], None] = lambda rows: None
) -> Release:
    """Writes the folder that a push would send.

    Raises:
        UsageError: as `built`; or the target is not new or empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError("--dry-run takes a new or empty folder")
    with built(request, on_rows) as release:
        record(request, release)
        try:
            shutil.copytree(release.folder, target, dirs_exist_ok=True)
        except OSError as error:
            raise UsageError(f"the folder of --dry-run can't be written ({error.strerror})") from error
        return Release(target, release.view, release.checks, release.statuses, release.digest)


def record(request: Request, release: Release) -> None:
    """Notes a release in the run's folder, which is private: the order's seed would undo the shuffling.

    Raises:
        UsageError: the folder can't be written.
    """
    file = request.run / RECORD
    entry = {"repo": request.repo, "shuffle_seed": request.shuffle_seed, "accepted": list(request.accept)}
    try:
        there = yaml.safe_load(file.read_text("utf-8")) if file.exists() else {}
        with renamed(file) as temporary:
            temporary.write_text(yaml.safe_dump({**(there or {}), release.digest: entry}), "utf-8")
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{RECORD} in the folder of the run can't be written; it keeps the seed") from error
