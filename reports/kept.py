"""What a report makes is kept in a folder, so that what was stopped goes on where it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro_vae as pv
from pyro_vae import files


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a file holds, or else what is made, and then kept there."""
    if not path.exists():
        found = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, json.dumps(found))
    return json.loads(path.read_text())


def continued(model: str, data: pv.Dataset, epochs: int, folder: Path, **settings: Any) -> pv.Run:
    """A run of a named model, trained to its end; a training that was stopped goes on."""
    resume = (folder / "last.pt").exists()
    return pv.train(model, data, epochs, out=folder, resume=resume, overwrite=not resume, progress=False, **settings)
