"""`u2s doctor` and `u2s presets`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
import yaml

from u2s_datasets import config
from u2s_datasets.cli.common import JsonOption, errors
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
