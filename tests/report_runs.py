"""Runs for the tests of the report: a small real one, and a large one made of the same few pictures."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from fakes import Painter, RedFinder
from PIL import Image

from u2s_datasets import Anonymizer, Edit, Inspect, Verify, schema
from u2s_datasets.image_io import Photo
from u2s_datasets.run.pipeline import output_features
from u2s_datasets.run.runner import prepare, run
from u2s_datasets.run.shards import shards_of
from u2s_datasets.run.source import open_source
from u2s_datasets.transforms.checks import Limits
from u2s_datasets.transforms.verify import audit

EVIL = (
    "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'><!-- {{7*7}} ' \" & \u2028"
)
GREY, SIZE = (120, 130, 140), (96, 64)


def anonymizer(text=EVIL) -> Anonymizer:
    return Anonymizer(
        inspect=Inspect(detectors={"red": RedFinder(text=text)}),
        edit=Edit(editor=Painter(works_from=1)),
        verify=Verify(face_embedder=None, limits=Limits(min_change=0.2)),
    )


def drawn(shade: int, red: bool, size=SIZE) -> Image.Image:
    """Grey with a gradient, so that every picture has pixels of its own; some have a red patch."""
    pixels = np.full((size[1], size[0], 3), GREY, np.uint8)
    pixels[..., 0] = np.linspace(0, 200, size[0]).astype(np.uint8)
    pixels[..., 1] = shade % 256
    pixels[..., 2] = shade // 256 * 40
    if red:
        pixels[20:40, 30:60] = (255, 0, 0)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, length: int | None = None) -> bytes:
    """PNG bytes, filled up behind their end to a length."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue().ljust(length or 0, b"\0")


def write_photographs(folder: Path) -> None:
    """Four with a red patch, three without, a small one of another size, a broken one; two classes."""
    names = {
        "b/0.png": drawn(10, red=True), "a/1.png": drawn(20, red=True), "a/2.png": drawn(30, red=False),
        "b/3.png": drawn(40, red=False), "b/4.png": drawn(50, red=True), "a/5.png": drawn(60, red=False),
        "a/6.png": drawn(70, red=True, size=(80, 64)),
    }  # fmt: skip
    for name, image in names.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(image, 4000))
    (folder / "b/7.png").write_bytes(encoded(drawn(80, red=True))[:150])


def small_run(folder: Path) -> tuple[Path, Path]:
    """A real run on those photographs; gives the run and the originals."""
    write_photographs(folder / "originals")
    run(open_source(str(folder / "originals")), anonymizer(), folder / "run", shard_size=3, batch_size=2)
    return folder / "run", folder / "originals"


def large_run(folder: Path, rows: int) -> tuple[Path, Path]:
    """A folder as a finished run leaves it, its rows made up without models; scores are spread evenly."""
    folder.mkdir()
    before = [Photo.of(encoded(drawn(shade * 5, red=shade % 4 != 0))) for shade in range(40)]
    after = [Photo.of(encoded(drawn(shade * 5, red=False))) for shade in range(40)]
    labels = ClassLabel(names=["harbour", "station"])
    features = Features({"image": ImageFeature(), "label": labels})
    columns = {"image": [before[n % 40].as_row() for n in range(rows)], "label": [n % 2 for n in range(rows)]}
    originals = folder / "originals.parquet"
    Dataset.from_dict(columns, features=features).to_parquet(originals)
    source, settings = open_source(str(originals)), anonymizer()
    prepare(source, settings, folder / "run", 256)
    arrow = output_features(source, settings).arrow_schema
    for shard in shards_of(source, folder / "run", 256):
        added = [
            _made_up(number, before[number % 40], after[number % 40])
            for number in range(shard.start, shard.stop)
        ]
        table = [
            {"label": number % 2, **row}
            for number, row in zip(range(shard.start, shard.stop), added, strict=True)
        ]
        pq.write_table(pa.Table.from_pylist(table, schema=arrow), shard.path, row_group_size=32)
    return folder / "run", originals


def _made_up(number: int, before: Photo, after: Photo) -> dict:
    unsafe = number % 40 % 4 != 0
    status = schema.Status.UNTOUCHED if not unsafe else schema.Status.EDITED
    if number % 50 == 1:
        status = schema.Status.WITHHELD
    attempts = 1 + number % 3
    checks = {
        "face_similarity": (number % 1000) / 1000, "faces_left": 0, "text_similarity": 0.1, "words_left": 0,
        "codes_left": 0, "change_inside": 0.3, "change_outside": 0.0,
    }  # fmt: skip
    region = schema.Region((30.0, 20.0, 60.0, 40.0), schema.FACE, 0.9).as_row()
    leaves = status is not schema.Status.WITHHELD
    reason = None if leaves else "faces left"
    judged = audit(status, attempts, before.seed(42) ^ (attempts - 1), "painter", checks, reason)
    return {
        schema.RISK: {
            "unsafe": unsafe, "groups": ["people"] if unsafe else [], "regions": [region] if unsafe else [],
            "evidence": json.dumps({"text": [], "codes": [], "metadata": []}),
        },
        schema.PRIVATE_CAPTION: f"A person, number {number}." if unsafe else None,
        schema.PUBLIC_CAPTION: "A person." if unsafe else None,
        schema.EDIT_INSTRUCTION: "Make it somebody else." if unsafe else None,
        schema.COMBINED_CAPTION: None,
        schema.EDITED_IMAGE: None if not leaves else (after if unsafe else before).as_row(),
        schema.AUDIT: judged if unsafe or not leaves else audit(status),
    }  # fmt: skip
