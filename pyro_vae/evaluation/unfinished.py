"""An evaluation that was interrupted, and goes on: its blocks that are done, each in a file of its own."""

import hashlib
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae import files
from pyro_vae.errors import Doubt, RunError
from pyro_vae.evaluation.result import PerDatum

PLAIN = (bool, int, float, str, Path, type(None))
"""What an option may be that is told as it is."""

DIGESTS = ("weights", "settings of the pair", "programs", "data")
"""What is told by a hash, which means nothing to a reader."""


class Unfinished:
    """A folder that keeps the figures of blocks that are done, in a folder for each evaluator.

    Each file is whole or not there, and says which evaluation it is of.

    Raises:
        RunError: the path is a file.
    """

    def __init__(self, folder: str | Path):
        self.folder, self.inner, self.used = Path(folder), [], set()
        if self.folder.exists() and not self.folder.is_dir():
            raise RunError(f"{folder} is a file; resume needs the name of a folder, in which it keeps what is done")

    @classmethod
    def at(cls, resume: "str | Path | Unfinished | None") -> "Unfinished | None":
        """The folder of a name; one that is handed in as it is, and None where nothing is to be kept."""
        return cls(resume) if isinstance(resume, str | Path) else resume

    def inside(self, name: str) -> "Unfinished":
        """A folder within this one, which is cleared with it."""
        self.inner.append(Unfinished(self.folder / _file_name(name)))
        return self.inner[-1]

    def of(self, evaluator: str, evaluation: Mapping[str, str]) -> "Done":
        """The blocks of one evaluator; see `what_is_evaluated`."""
        return Done(self.folder / _file_name(evaluator), evaluation, self.used)

    def clear(self) -> None:
        """Delete the files that this evaluation has read or written, and the folders where nothing else is left."""
        for part in self.inner:
            part.clear()
        for path in self.used:
            for file in (path, *path.parent.glob(f".{path.name}.*")):  # the latter where a process was killed
                file.unlink(missing_ok=True)
        for folder in (*{path.parent for path in self.used}, self.folder):
            with suppress(OSError):  # not empty, or not there
                folder.rmdir()


class Done:
    """The blocks of one evaluator that are done.

    Args:
        folder: where their files are.
        evaluation: which evaluation it is, in words, by what may differ.
        used: is told the files that are read or written.
    """

    def __init__(self, folder: Path, evaluation: Mapping[str, str], used: set[Path]):
        self.folder, self.evaluation, self.used = folder, dict(evaluation), used

    def recall(self, name: str, data: Sequence[Mapping[str, Tensor]]) -> PerDatum | None:
        """The figures of the block or blocks of this name; None where they are not done.

        Args:
            data: the fields of each block.

        Raises:
            RunError: they are those of another evaluation; says what differs.
        """
        path = self._path(name)
        if not path.exists():
            return None
        try:
            stored = files.load(path)
            figures, evaluation = stored["figures"], dict(stored["evaluation"])
        except (RunError, KeyError, TypeError, ValueError):
            warnings.warn(f"{path} is damaged, so what it kept is evaluated again", Doubt, stacklevel=2)
            return None
        now = self.evaluation | {"data": _digest_of(data)}
        differing = [_difference(key, evaluation.get(key), now[key]) for key in now if evaluation.get(key) != now[key]]
        if differing:
            raise RunError(
                f"cannot go on with what {self.folder} keeps: {' and '.join(differing)}; evaluate as before, name "
                "another folder, or delete it"
            )
        self.used.add(path)
        return figures

    def keep(self, name: str, data: Sequence[Mapping[str, Tensor]], figures: PerDatum) -> None:
        """Write the figures of blocks; raises `RunError` where the folder cannot be written."""
        path = self._path(name)
        files.save(path, {"evaluation": self.evaluation | {"data": _digest_of(data)}, "figures": dict(figures)})
        self.used.add(path)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"


def what_is_evaluated(pair: nn.Module, evaluator: Any, **settings: Any) -> dict[str, str]:
    """Which evaluation it is, in words: all that the figures of a block depend on, save the block's own data."""
    told = {
        "pair": type(pair).__name__,
        "weights": _digest_of([pair.state_dict()]),
        "settings of the pair": _digest_of_words(_modules(pair)),
        "programs": _digest_of_words(_sources(pair, evaluator)),
        "evaluator": _told(evaluator),
        "torch": str(torch.__version__),
    }
    return told | {name: _told(value) for name, value in settings.items()}


def _modules(pair: nn.Module) -> Iterator[str]:
    """Each module with its attributes that are plain values."""
    for name, module in pair.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, PLAIN) and key != "training"}
        yield f"{name}: {type(module).__qualname__} {module.extra_repr()} {plain}"


def _sources(pair: nn.Module, evaluator: Any) -> Iterator[str]:
    """The source of the classes of the pair's modules, of functions that they hold, and of the evaluator."""
    modules = [module for module in pair.modules() if not type(module).__module__.startswith(("torch.", "pyro."))]
    for value in (*modules, evaluator):
        held = getattr(value, "__dict__", {})
        inner = [each for part in held.values() if isinstance(part, Mapping) for each in part.values()]
        programs = [each for each in (*held.values(), *inner) if inspect.isroutine(each)]
        for program in (type(value), *programs):
            try:
                yield inspect.getsource(inspect.unwrap(program))
            except (OSError, TypeError):  # made in a shell, or not in Python
                yield program.__qualname__


def _told(value: Any) -> str:
    """A value in words that are the same in another process."""
    if isinstance(value, PLAIN):
        return str(value)
    if isinstance(value, Tensor | np.ndarray):
        return _digest_of([{"": torch.as_tensor(value)}])
    if isinstance(value, nn.Module):
        return f"{type(value).__qualname__} {_digest_of([value.state_dict()])}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_told(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_told, value)) + "]"
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if hasattr(value, "__qualname__") or not getattr(value, "__dict__", None):
        return name
    return f"{name}({', '.join(f'{key}={_told(inner)}' for key, inner in vars(value).items())})"


def _digest_of(parts: Sequence[Mapping[str, Any]]) -> str:
    """A hash of named tensors."""
    found = hashlib.sha256()
    for part in parts:
        for name, value in part.items():
            if isinstance(value, Tensor):
                found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
                found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _digest_of_words(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _difference(name: str, before: str | None, now: str) -> str:
    return f"the {name} differ" if name in DIGESTS else f"{name} was {before} and is {now}"


def _file_name(text: str) -> str:
    return quote(text, safe=" ").replace(".", "%2E")
