"""`u2s doctor`, `u2s presets` and `u2s plan`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
import yaml

from u2s_datasets import config
from u2s_datasets.cli.common import JsonOption, PresetOption, SetOption, errors, progress
from u2s_datasets.cli.main import app


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Shows versions, devices and which preset can run here."""
    with errors():
        from u2s_datasets import doctor as doctor_

        found: dict[str, Any] = {
            "versions": doctor_.versions(),
            "devices": doctor_.devices(),
            "presets": doctor_.presets(),
        }
        if as_json:
            print(json.dumps(found))
            return
        for name, version in found["versions"].items():
            print(f"{name:28}{version or 'not installed'}")
        print("devices: " + "; ".join(found["devices"]))
        for row in found["presets"]:
            print(f"preset {row['name']}: {_verdict(row)}")
            if row["install"]:
                print(f"  {row['install']}")


def _verdict(row: dict[str, Any]) -> str:
    if row["missing"]:
        return "lacks " + ", ".join(row["missing"])
    if row["fits"] is False:
        return f"installed; needs {row['vram_gib']} GiB of GPU memory, which no GPU here has"
    return "can run"


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Prints all settings of this preset.")] = None,
) -> None:
    """Lists the presets, or every setting of one."""
    with errors():
        if name is None:
            for preset in config.preset_names():
                print(f"{preset}: {config.describe_preset(preset).get('summary', '')}")
            return
        from u2s_datasets.transforms.anonymize import load_preset

        print(yaml.safe_dump(load_preset(name).settings(), sort_keys=False), end="")


@app.command()
def plan(
    source: Annotated[
        str, typer.Argument(help="Folder of images, Parquet or Arrow files, saved dataset, or Hub id.")
    ],
    preset: PresetOption = "local",
    rows: Annotated[
        int | None, typer.Option(min=1, help="Rows to plan for; the source's own if left out.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes like this one, each with its device.")] = 1,
    sample: Annotated[int, typer.Option(min=1, help="Rows to run, drawn over the whole source.")] = 64,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows of a batch of the sample.")] = 8,
    shard_size: Annotated[int, typer.Option(min=1, help="Rows of a shard of the run to come.")] = 256,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of one worker, in any currency.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="One split instead of all.")] = None,
    image_column: Annotated[str | None, typer.Option(help="The column with the images.")] = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Runs a sample and says what all rows would take: time, disk, cost."""
    with errors():
        from u2s_datasets.run import plan as plan_
        from u2s_datasets.run.sample import measure
        from u2s_datasets.run.source import open_source
        from u2s_datasets.transforms.anonymize import load_preset

        opened = open_source(source, split, image_column)
        with progress(sample) as advance:
            measured = measure(opened, load_preset(preset, set_ or []), sample, batch_size, on_rows=advance)
        found = plan_.plan(measured, rows, workers, shard_size, price_per_hour)
        print(json.dumps(found) if as_json else "\n".join(plan_.lines(found)))
