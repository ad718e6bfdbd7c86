"""Where downloaded data sets are kept, and what is said where they cannot be had."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from pyro_vae.errors import DataError

ROOT = "~/.cache/pyro_vae"


@contextmanager
def downloading(name: str, root: Path) -> Iterator[None]:
    """Wrap a download by torchvision.

    Raises:
        DataError: it fails; names the folder where the files may be put by hand.
    """
    try:
        yield
    except (OSError, RuntimeError, HTTPException, zipfile.BadZipFile, EOFError) as reason:
        cause = " ".join(str(reason).split()) or type(reason).__name__
        raise DataError(
            f"{name} is not in {root} and cannot be downloaded ({cause}); "
            "put torchvision's files there, or set root to a folder that has them"
        ) from reason
