"""A pair that a Python file of the user's own defines, by a name such as `my_model.py:MyPair`.

The file becomes a module with a name of its own, so that two files of one name do not shadow each other. While it runs,
what lies beside it is found first, as it is by `python my_model.py`; afterwards the import path is as it was.
"""

import copy
import hashlib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from pyro_vae.errors import PluginError, UnknownName

SUFFIX = ".py"


def in_file(name: Any) -> bool:
    """Whether the name of a model says that it is defined in a file, as `my_model.py:MyPair` does."""
    return isinstance(name, str) and (":" in name or name.endswith(SUFFIX))


def load(name: str) -> Callable[..., Any]:
    """What makes a pair: the class or the function of this name, or of an object, a function that gives a copy of it.

    Raises:
        PluginError: the file is not there or raises an error, or what has the name there is no pair.
        UnknownName: the file has nothing of this name; lists what could be meant.
    """
    path, attribute = _parts(name)
    module = _run(path, _read(path))
    if not attribute:
        meant = " or ".join(f"{path}:{other}" for other in _pairs_of(module) or ["NAME"])
        raise PluginError(f"{path} is a file; say what in it is the pair: {meant}")
    if not hasattr(module, attribute):
        raise UnknownName(f"name in {path}", attribute, _pairs_of(module))
    found = getattr(module, attribute)
    if inspect.isroutine(found) or (inspect.isclass(found) and _has_programs(found)):
        return found
    if _is_object_pair(found):
        return _copies_of(found)
    what = "a class without model and guide" if inspect.isclass(found) else f"of type {type(found).__name__}"
    raise PluginError(
        f"{name} is {what}; a pair in a file is a class with model and guide, a function that returns a pair, or a "
        "torch.nn.Module with model and guide"
    )


def source_of(name: str) -> dict[str, str]:
    """Of a name in a file, the file's name and its SHA-256, as a run keeps them."""
    path, _ = _parts(name)
    return {"file": path.name, "sha256": hashlib.sha256(_read(path)).hexdigest()}


def _parts(name: str) -> tuple[Path, str]:
    """The path of the file, and the name in it; "" where there is none."""
    path, colon, attribute = name.rpartition(":") if not name.endswith(SUFFIX) else (name, "", "")
    if not path.endswith(SUFFIX):
        raise PluginError(f"{name!r}: {path!r} is no Python file; a pair in a file is said as my_model.py:MyPair")
    return Path(path), attribute


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as problem:
        raise PluginError(f"cannot read {path}: {problem.strerror}") from problem


def _run(path: Path, source: bytes) -> ModuleType:
    """The module that a file defines; raises `PluginError`, which names the line, where the file raises an error."""
    try:
        return _module(path.resolve(), source)
    except (Exception, SystemExit) as problem:
        said = " ".join(str(problem).split())
        message = f"{path} raised {type(problem).__name__}{_line_in(path.resolve(), problem)}: {said}"
        raise PluginError(message) from problem


@lru_cache(maxsize=32)
def _module(path: Path, source: bytes) -> ModuleType:
    """Runs a file once, at a seed of its own, so that a pair that it makes has the same weights each time."""
    import torch  # which `list` does without

    digest = hashlib.sha256(str(path).encode() + source).hexdigest()[:12]
    module = ModuleType(f"{path.stem}_{digest}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        with _beside(path.parent), torch.random.fork_rng():
            torch.manual_seed(0)
            exec(compile(source, str(path), "exec"), vars(module))
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


@contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """Modules that lie in a folder are found first; afterwards what is imported, and from where, is as it was."""
    importlib.invalidate_caches()
    own = {path.stem for path in folder.glob(f"*{SUFFIX}")} | {p.parent.name for p in folder.glob("*/__init__.py")}
    own.discard(__package__)
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in own}
    for name, module in before.items():
        if not _lies_in(folder, module):
            del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]
        sys.modules.update(before)


def _lies_in(folder: Path, module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(folder)


def _line_in(path: Path, problem: BaseException) -> str:
    """In which line of a file an error was raised, in words."""
    frames = traceback.extract_tb(problem.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)] or [getattr(problem, "lineno", None)]
    return "" if lines[-1] is None else f" in line {lines[-1]}"


def _has_programs(found: Any) -> bool:
    return all(callable(getattr(found, program, None)) for program in ("model", "guide"))


def _is_object_pair(found: Any) -> bool:
    return _has_programs(found) and not (inspect.isclass(found) or inspect.ismodule(found))


def _pairs_of(module: ModuleType) -> list[str]:
    """The names in a module of what could be a pair: objects, and classes and functions that it defines itself."""
    named = {name: found for name, found in vars(module).items() if not name.startswith("_")}
    own = {name for name, found in named.items() if getattr(found, "__module__", None) == module.__name__}
    return [
        name
        for name, found in named.items()
        if _is_object_pair(found) or (name in own and (inspect.isfunction(found) or _has_programs(found)))
    ]


def _copies_of(pair: Any) -> Callable[[], Any]:
    def copied() -> Any:
        return copy.deepcopy(pair)

    copied.__doc__ = type(pair).__doc__
    return copied
