"""Builds the page: one HTML file that loads nothing and sends nothing.

The template is written out piece by piece, so that memory does not grow with the pictures. Each row is a JSON
text in a `<script type="application/json">` of its own, which the page parses when it shows the row. Scripts and
styles run only because the Content-Security-Policy names their hashes; everything else is forbidden, so that
even a slip in escaping could neither run code nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from u2s_datasets import schema
from u2s_datasets.errors import UsageError
from u2s_datasets.models.base import parallel
from u2s_datasets.report.decisions import decisions_of
from u2s_datasets.report.folder import RunFolder
from u2s_datasets.report.originals import Originals
from u2s_datasets.report.rows import details_of, index_of
from u2s_datasets.run.storage import renamed

SCRIPTS = ("model.js", "pictures.js", "card.js", "charts.js", "page.js")
AT_A_TIME = 32  # rows whose pictures are encoded side by side
# From this many rows on, this longest side: a page of 5 000 rows stays near 100 MB.
SIDES = ((2000, 288), (500, 400), (0, 640))


def write_page(
    run: RunFolder,
    originals: Originals | None,
    out: Path,
    side: int | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> None:
    """Writes the report of a run as one file that only its owner may read.

    Args:
        run: the run.
        originals: its originals; None shows the results only.
        out: the HTML file.
        side: longest side of the pictures in pixels; by default 640, less from 500 rows on.
        on_rows: told the number of rows done.

    Raises:
        UsageError: the file can't be written, or an original is not the one that the run saw.
    """
    side = side or next(pixels for rows, pixels in SIDES if len(run) >= rows)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with renamed(out) as temporary:
            temporary.touch(mode=0o600)
            with temporary.open("w", encoding="utf-8") as file:
                for part in _render(run, originals, side, "report", _details(run, originals, side, on_rows)):
                    file.write(part)
    except OSError as error:
        raise UsageError(f"the report can't be written ({error.strerror}); choose another --out") from error


def review_page(run: RunFolder, originals: Originals | None, side: int) -> bytes:
    """The page of `u2s review`, which asks its server for each row."""
    return "".join(_render(run, originals, side, "review", iter(()))).encode()


def policy(mode: str) -> str:
    """The Content-Security-Policy of a page."""
    connect = "'self'" if mode == "review" else "'none'"
    return (
        f"default-src 'none'; script-src {_hash(script())}; style-src {_hash(style())}; img-src data:; "
        f"connect-src {connect}; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )


def script() -> str:
    """The page's one script."""
    return "\n".join(_template(name) for name in SCRIPTS)


def style() -> str:
    """The page's one style sheet."""
    return _template("page.css")


def in_script(value: Any) -> Markup:
    """JSON that is safe inside a `<script>` element: no character of it can end or open an element."""
    text = json.dumps(value, separators=(",", ":"))
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def _details(
    run: RunFolder, originals: Originals | None, side: int, on_rows: Callable[[int], None]
) -> Iterator[Markup]:
    for start in range(0, len(run), AT_A_TIME):
        numbers = range(start, min(start + AT_A_TIME, len(run)))
        yield from parallel(lambda number: in_script(details_of(run, originals, number, side)), numbers)
        on_rows(len(numbers))


def _render(
    run: RunFolder, originals: Originals | None, side: int, mode: str, rows: Iterator[Markup]
) -> Iterator[str]:
    index = index_of(run, decisions_of(run)) | {"mode": mode, "originals": originals is not None}
    environment = Environment(
        loader=PackageLoader("u2s_datasets.report"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html").generate(
        policy=policy(mode),
        mode=mode,
        originals=originals is not None,
        facts=_facts(run),
        splits=len(run.splits),
        side=side,
        rows=rows,
        index=in_script(index),
        style=Markup(style()),
        script=Markup(script()),
    )


def _facts(run: RunFolder) -> list[tuple[str, str]]:
    settings = run.settings["settings"]
    editors = {fact[schema.AUDIT]["editor"] for fact in run.facts} - {None}
    detectors = [name for name, value in settings["inspect"]["detectors"].items() if value]
    return [
        ("Rows", f"{len(run):,}"),
        ("Splits", ", ".join(run.splits)),
        ("Editors", ", ".join(sorted(editors)) or "none"),
        ("Detectors", ", ".join(detectors) or "none"),
        ("Seed", str(settings["seed"])),
        ("Made with", f"u2s-datasets {run.settings.get('u2s_datasets', '')}".strip()),
        ("Run", run.fingerprint[:12]),
    ]


def _template(name: str) -> str:
    return (resources.files("u2s_datasets.report") / "templates" / name).read_text("utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
