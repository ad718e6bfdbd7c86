"""Command lines, configs and arrays that hypothesis draws, of which at least a third are valid."""

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from cases import Outcome, outcome
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import pyro_vae as pv
from pyro_vae.command_line.main import main
from pyro_vae.errors import UserError
from pyro_vae.training import by_name

ABSURD = [
    "0", "-1", "1.5", "nan", "inf", "-inf", "1e30", "1e400", "99999999999999999999", "-9223372036854775809", "", " ",
    "None", "null", "true", "[]", "{}", "[1,2]", "0x10", "1e", "ten", "é", "\x01", "../..", "--", "$HOME", "1_0", "૩",
    "%s", "{run}", "a" * 300, "1e9", "1e12", "1e15",
]  # fmt: skip

VALID = {
    "epochs": ["1", "2", "1e0"],
    "batch_size": ["32", "64", "256", "1e2"],
    "lr": ["0.001", "1e-3", "0.05"],
    "latent_dim": ["1", "2", "5"],
    "hidden": ["8", "8,8", "[16, 4]"],
    "activation": ["relu", "tanh"],
    "likelihood": ["bernoulli"],
    "prior": ["standard_normal", "mixture", "flat"],
    "binarize": ["dynamic", "static"],
    "objective": ["trace_elbo", "iwae", "trace_mean_field_elbo", "renyi"],
    "particles": ["1", "3"],
    "beta": ["1", "0.5", "0"],
    "kl_warmup": ["0", "1"],
    "schedule": ["constant", "cosine", "steplr"],
    "optimizer": ["adam", "sgd", "AdamW"],
    "clip": ["1", "none"],
    "ema": ["0", "0.9"],
    "patience": ["1", "none"],
    "seed": ["0", "7", "123456789"],
    "device": ["cpu", "auto"],
    "engine": ["eager", "auto"],
    "precision": ["32-true", "bf16-mixed"],
    "accumulate": ["1", "2"],
    "free_bits": ["0", "0.1"],
    "monitor": ["valid_loss", "loss", "valid_rate:max"],
    "relaxed": ["false"],
    "restarts": ["1", "2"],
    "track": ["csv"],
    "scale": ["unit"],
}
"""Values of the options of `train` that are right; it trains for one or two epochs on digits."""

ON_A_RUN = {
    "evaluate": {
        "limit": ["1", "5", "20"], "particles": ["1", "4"], "split": ["test", "valid"], "seed": ["0", "9"],
        "with": ["elbo", "importance", "elbo,reconstruction", "latent", "prior"], "device": ["cpu"], "json": ["-", "f"],
        "missing": ["refuse"], "scales": ["ignore"], "refit": ["0"], "global_draws": ["3"],
    },
    "sample": {"n": ["1", "7"], "seed": ["0", "3"], "out": ["s.npz", "s.png", "deep/s.npz"], "device": ["cpu"]},
    "reconstruct": {"n": ["1", "3"], "split": ["valid"], "out": ["r.png"], "data": ["digits"], "seed": ["1"]},
    "encode": {"limit": ["1", "9"], "split": ["train"], "out": ["c.npz"], "seed": ["4"], "data": ["digits"]},
    "export": {"draws": ["2", "5"], "limit": ["1", "3"], "out": ["e.nc"], "seed": ["1"], "split": ["test"]},
    "impute": {"draws": ["2"], "particles": ["3"], "limit": ["2"], "out": ["i.npz"]},
    "report": {"device": ["cpu"]},
}  # fmt: skip
"""Values of the options of the commands on a run that are right."""


TEXT = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=12)
"""Words; no argument of a process holds a zero."""


def options(draw: Any, table: dict[str, list[str]], sound: bool, most: int) -> list[str]:
    """Options from a table; unless it is to be sound, with odd values, odd names, or without values."""
    words = []
    for name in draw(st.lists(st.sampled_from(sorted(table)), max_size=most, unique=True)):
        odd = not sound and draw(st.booleans())
        value = draw(st.one_of(st.sampled_from(ABSURD), TEXT) if odd else st.sampled_from(table[name]))
        dashes = "-" if len(name) == 1 else "--"
        words += [dashes + name, value] if sound or draw(st.integers(0, 15)) else [dashes + name]
    if not sound and not draw(st.integers(0, 3)):
        words.append(draw(st.one_of(st.sampled_from(["--", "-x", "--no_such", "---", "extra", "@file"]), TEXT)))
    return words


@st.composite
def lines(draw: Any) -> list[str]:
    """A command line; RUN stands for the folder of a finished run."""
    verb = draw(st.sampled_from(["train"] * 8 + [*ON_A_RUN, "list", "check", "help"]))
    sound = draw(st.sampled_from([True, False, False] if verb == "train" else [True, True, False]))
    if verb == "list":
        return ["list", draw(st.sampled_from(["models", "objectives"]) if sound else TEXT)]
    if verb == "help":
        return draw(
            st.sampled_from([["--help"], ["train", "--help"], ["--version"], [], ["sample", "--help"], ["-h", "x"]])
        )
    if verb == "check":
        return [
            "check",
            *([] if sound else options(draw, {"latent_dim": ["2"], "data": ["digits"]}, False, 2)),
            "--hidden",
            "4",
        ]
    if verb == "train":
        words = options(draw, VALID, sound, 6)
        if "--epochs" not in words:
            words += ["--epochs", "1"]
        end = draw(st.sampled_from([["--print_config"], ["--quiet"], []]))
        model = (
            [] if sound else draw(st.sampled_from([[], ["blog"], ["vea"], ["no.py:X"], [""], ["vae", "--overwrite"]]))
        )
        return ["train", *model, *words, *end, "--out", "new"]
    words = options(draw, ON_A_RUN[verb], sound, 3)
    if verb in ("evaluate", "encode", "impute") and "--limit" not in words:
        words += ["--limit", "20"]
    if verb == "export" and "--draws" not in words:
        words += ["--draws", "3"]
    return [
        verb,
        "RUN" if sound or draw(st.integers(0, 5)) else draw(st.sampled_from(["nowhere", "", ".", "/dev/null"])),
        *words,
    ]


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.binary(max_size=5),
    st.sampled_from([10**30, -1, 0, 1e999, "nan", "../x", "vae", "digits"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=2), max_leaves=5
)
BROKEN = [
    "a: &a [*a]",
    "{",
    "- 1",
    "",
    "null",
    "!!python/name:os.system",
    "a: 2024-13-45",
    "\x00",
    "a: b: c",
    "? [1]\n: 2",
]


@st.composite
def configs(draw: Any) -> str:
    """The text of a config, in sections or flat."""
    sound = draw(st.sampled_from([True, False]))
    if not sound and not draw(st.integers(0, 5)):
        return draw(st.one_of(st.sampled_from(BROKEN), st.text(max_size=40)))
    of = {"training": ["epochs", "batch_size", "lr", "beta", "clip", "ema", "seed", "accumulate", "schedule"]}
    of |= {"model": ["latent_dim", "hidden", "activation"], "data": ["binarize", "scale"]}
    config: dict[Any, Any] = {"training": {"epochs": 1}}
    for section, names in of.items():
        for name in draw(st.lists(st.sampled_from(names), max_size=3, unique=True)):
            config.setdefault(section, {})[name] = yaml.safe_load(draw(st.sampled_from(VALID[name])))
    if not sound:
        place = draw(st.sampled_from([config, *(inner for inner in config.values())]))
        known = [*VALID, "name", "optimizer_options", "model", "data", "training", "objective"]
        place[draw(st.one_of(st.sampled_from(known), SCALARS.filter(is_hashable)))] = draw(VALUES)
    elif draw(st.booleans()):
        config = {name: value for inner in config.values() for name, value in inner.items()}
    try:
        return yaml.safe_dump(config)
    except (yaml.YAMLError, ValueError):
        return repr(config)


def is_hashable(value: Any) -> bool:
    return not isinstance(value, list | dict)


KINDS = ["float32", "float64", "float16", "longdouble", "int8", "int64", "uint8", "uint16", "uint32", "uint64", "bool",
         "complex64", "U3", "S2", "O", "M8[s]", ">f4", ">i8"]  # fmt: skip


@st.composite
def arrays(draw: Any) -> dict[str, Any]:
    """How an array is made, and how it comes in: its shape, kind of numbers, filling, and door."""
    sound = draw(st.sampled_from([True, False]))
    if sound:
        kind = draw(st.sampled_from(["float32", "float64", "int64", "uint8", "bool", ">f4", "uint64"]))
        shape = draw(st.sampled_from([[40, 6], [60, 1, 4, 4], [50, 3], [33, 2, 2]]))
        filling = "bits"
    else:
        kind = draw(st.sampled_from(KINDS))
        shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 30, 50]), max_size=4))
        filling = draw(st.sampled_from(["bits", "nan", "inf", "large", "negative", "grey", "zeros", "counts"]))
    door = draw(st.sampled_from(["array", "npy", "npz", "tensor", "labelled", "evaluate", "csv"]))
    return {"kind": kind, "shape": shape, "filling": filling, "door": door, "sound": sound}


def made(case: dict[str, Any]) -> np.ndarray:
    """The array of a case."""
    draw = np.random.default_rng(0)
    x = draw.integers(0, 2, case["shape"]).astype("float64")
    filled = {
        "grey": draw.random(case["shape"]),
        "zeros": x * 0,
        "counts": draw.poisson(3, case["shape"]),
        "negative": -x,
    }
    x = filled.get(case["filling"], x)
    x = np.asarray(x)
    with np.errstate(all="ignore"):
        if case["filling"] in ("nan", "inf") and x.size:
            x = x.astype("float64")
            x.flat[x.size // 2] = float(case["filling"])
        if case["filling"] == "large" and x.size:
            x = x.astype(case["kind"]) if case["kind"] == "uint64" else x * 1e300
            x.flat[x.size // 2] = 2**64 - 1 if case["kind"] == "uint64" else 1e308
        return x.astype(case["kind"])


def train_on(case: dict[str, Any]) -> int:
    """Train, or evaluate, on an array; a mistake becomes the line that the command line makes of it."""
    torch.set_num_threads(1)
    x = made(case)
    try:
        if case["door"] in ("npy", "npz", "csv"):
            {
                "npy": lambda: np.save("x.npy", x, allow_pickle=True),
                "npz": lambda: np.savez("x.npz", x=x),
                "csv": lambda: np.savetxt("x.csv", x, delimiter=",", fmt="%s"),
            }[case["door"]]()
    except Exception:
        print("no such file can be written")
        return 0
    quiet = {"epochs": 1, "batch_size": 16, "progress": False, "model_options": {"hidden": [4]}, "data_options": {}}
    try:
        if case["door"] in ("npy", "npz", "csv"):
            pv.train("vae", f"x.{case['door']}", **quiet)
        else:
            given_data = {"tensor": as_tensor, "labelled": labelled}.get(case["door"], lambda array: array)(x)
            if case["door"] == "evaluate":
                pv.evaluate(pv.VAE(x.shape[1:], hidden=(4,)), given_data, progress=False)
            else:
                quiet.pop("data_options")
                pv.train("vae", given_data, **quiet)
    except UserError as problem:
        import sys

        print(f"pyro-vae: {problem}", file=sys.stderr)
        return 2
    return 0


def as_tensor(x: np.ndarray) -> Any:
    """A tensor, or where NumPy's elements make none the array."""
    try:
        return torch.as_tensor(x)
    except (TypeError, ValueError):
        return x


def labelled(x: np.ndarray) -> dict[str, np.ndarray]:
    return {"x": x, "label": np.arange(x.shape[0] if x.ndim else 1) % 2}


def drawn(strategy: st.SearchStrategy, count: int) -> list[Any]:
    """So many different examples; the same each time, with the same hypothesis."""
    found: list[Any] = []

    @seed(21)
    @settings(
        max_examples=2 * count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(case: Any) -> None:
        found.append(case)

    collect()
    return found[:count]


def command(words: list[str], report: bool = True) -> int:
    """A command in this process; the figures of a report take most of the time of so short a training."""
    torch.set_num_threads(1)
    if not report:
        by_name.write_report = lambda *_: None
    return main(words)


def tried(name: str, case: Any, scratch: Path, run: Path) -> dict[str, Any]:
    """One case in a process of its own: how it ended, and what is wrong with that."""
    folder = scratch / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    call: Callable[[], int] = partial(train_on, case)
    if name == "lines":
        shutil.copytree(run, folder / "RUN")
        call = partial(command, case)
    elif name == "configs":
        (folder / "config.yaml").write_text(case, errors="surrogateescape" if _odd(case) else None)
        call = partial(command, "train --config config.yaml --quiet --out new".split(), report=False)
    ended: Outcome = outcome(call, folder)
    fault = ended.fault(folder / "new")
    shown = case if isinstance(case, str) else json.dumps(case)
    return {
        "case": shown,
        "ended": ended.status,
        "fault": fault,
        "seconds": round(ended.seconds, 2),
        "said": ended.err[-200:],
    }


def _odd(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


STRATEGIES = {"lines": (lines(), 400), "configs": (configs(), 300), "arrays": (arrays(), 300)}
"""Each kind of case, and how many."""

os.environ.setdefault("TQDM_MININTERVAL", "0.5")
