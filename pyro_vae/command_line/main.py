"""The command line: parsing and printing only. Nothing heavy is imported until a command needs it."""

import argparse
import inspect
import json
import os
import re
import select
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pyro_vae import plugins, scripts
from pyro_vae.errors import Changed, Doubt, Renamed, UnknownName, UsageError, UserError, find, is_lack_of_memory
from pyro_vae.stops import STOPS, Stops, status_of

USAGE = """usage: pyro-vae COMMAND ...

Deep latent-variable models as Pyro programs.

  train [MODEL]      train a model on a data set and write a run folder with its report
  evaluate RUN       bounds on the log-likelihood, and other figures, of a trained run
  compare RUN RUN... which of several runs is best: paired differences on the same data
  sample RUN         draw from the model
  reconstruct RUN    originals and reconstructions
  encode RUN         posterior mean and scale of every datum
  impute RUN         draws of the values that data lack
  export RUN         draws and importance weights for ArviZ
  report RUN         write the run's report again
  check [MODEL]      does a model keep the contract on a data set? Takes the options of train
  list [KIND]        the models, datasets, objectives and evaluators that are installed

`pyro-vae COMMAND --help` tells a command's options; `pyro-vae train` alone trains a 2-D VAE on digits.
MODEL may be a pair in a file of yours, my_model.py:MyPair; commands on its RUN then need --pair my_model.py:MyPair.
--debug shows the traceback of an error."""


CLOSED_PIPE = 141
"""The exit status where what reads our output has gone, as in `pyro-vae list | head -1`; a shell's own for this."""

FOR_A_PERSON = (Renamed, Changed, Doubt)
"""Warnings that are a line on stderr."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, or 2 for a user's mistake, or 128 and the number of the signal that stopped
    it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us
            setattr(sys, name, open(os.devnull, "w"))
    try:
        status = run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
        return status
    except BrokenPipeError as problem:
        return CLOSED_PIPE if _unread() else _refused(problem)
    except OSError as problem:  # the disk that stdout is on is full
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _refused(problem)


def run(arguments: list[str]) -> int:
    """Run a command; a mistake of the user's becomes one line."""
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with Stops(), warnings.catch_warnings():
            for category in FOR_A_PERSON:
                warnings.simplefilter("always", category)
            warnings.showwarning = partial(_show, warnings.showwarning)
            return dispatch(arguments)
    except (UserError, OSError) as problem:
        if debug or isinstance(problem, BrokenPipeError):
            raise
        return _refused(problem)
    except (MemoryError, RuntimeError) as problem:
        if debug or not is_lack_of_memory(problem):
            raise
        said = (str(problem).splitlines() or ["out of memory"])[0]
        return _refused(UserError(f"there is not enough memory ({said}); ask for less, or for smaller sizes"))
    except STOPS as stop:
        say(f"pyro-vae: interrupted{getattr(stop, 'how_to_go_on', '')}")
        return status_of(stop)


def _refused(problem: Exception) -> int:
    print(f"pyro-vae: {' '.join(str(problem).split())}", file=sys.stderr)
    return 2


def _unread() -> bool:
    """Whether what reads our output has gone; what is left to print then goes nowhere."""
    streams = select.poll()
    for stream in (sys.stdout, sys.stderr):
        streams.register(stream, 0)  # errors alone
    gone = [place for place, _ in streams.poll(0)]
    for place in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), place)
    return bool(gone)


def dispatch(arguments: list[str]) -> int:
    """Hand the arguments to their command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] == "--version":
        print(version("pyro-vae"))
        return 0
    command = find("command", arguments[0], COMMANDS)
    os.environ.setdefault("TQDM_MININTERVAL", "0.5")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # threads that spin starve each other on a busy machine
    command(arguments[1:])
    return 0


def say(message: str) -> None:
    """A message for a person, on stderr: stdout is for programs. The first of several processes speaks for all."""
    if _first_process():
        print(message, file=sys.stderr)


def _show(usual: Callable[..., None], message: Warning, category: type[Warning], *where: Any) -> None:
    """What a user should know of is a line; any other warning is shown as it usually is."""
    if category in FOR_A_PERSON:
        say(f"warning: {message}" if category is Doubt else f"pyro-vae: {message}")
    else:
        usual(message, category, *where)


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def train_command(arguments: list[str]) -> None:
    from pyro_vae.command_line.settings import parse_train
    from pyro_vae.runs.folder import REPORT, new_folder
    from pyro_vae.training.by_name import config_of
    from pyro_vae.training.train import train

    parser = _parser("train", "Train a model and write a run folder with its report.")
    asked, switches = parse_train(parser, arguments)
    if switches.print_config:
        import yaml

        print(yaml.safe_dump(config_of(asked), sort_keys=False), end="")
        return
    pair, data = asked["pair"].rpartition(":")[2], re.sub(r"[^\w.-]+", "_", Path(asked["data"]).stem)
    how = {"resume": switches.resume, "overwrite": switches.overwrite, "progress": not switches.quiet}
    with nullcontext(Path(switches.out)) if switches.out else new_folder(f"{pair}-{data}") as out:
        try:
            run = train(**asked, out=out, **how)
        except STOPS as stop:
            if hasattr(stop, "resumable"):
                named = [asked["pair"]] if scripts.in_file(asked["pair"]) else []
                command = shlex.join(["pyro-vae", "train", *named, "--resume", "--out", str(out)])
                stop.how_to_go_on = f"; continue it with: {command}"
            raise
    print_results(run.results)
    say(f"report: {out / REPORT}")


def evaluate_command(arguments: list[str]) -> None:
    from pyro_vae import files
    from pyro_vae.command_line.options import own_values
    from pyro_vae.evaluation import evaluate, evaluate_each

    parser = _run_parser("evaluate", "Figures of a trained run, in nats per datum.")
    skip = ["pair", "evaluator", "progress", "relaxed", "resume"]
    told = "evaluators, comma-separated", "also write"
    shared, own, given = _parse_evaluation(parser, arguments, evaluate, skip, told)
    made = {name: plugins.build("evaluator", name, own_values(given, options)) for name, options in own.items()}
    resume = given.run / UNFINISHED if given.resume is True else given.resume
    run = run_of(given)
    what = {option.name: getattr(given, option.name) for option in shared}
    how = {"progress": not given.quiet, "resume": resume}
    results = list(evaluate_each(run, what.pop("data"), made, **how, **what))
    print_results(results)
    if given.json and _first_process():
        entries = [result.entry(per_datum=True) for result in results]
        files.print_or_write(given.json, json.dumps(entries, indent=2))


def compare_command(arguments: list[str]) -> None:
    from pyro_vae.command_line.options import own_values
    from pyro_vae.reporting.compare import compare

    parser = _parser("compare", compare.__doc__.split("\n")[0])
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="*", help="the folders of two runs or more")
    in_file = "the pair of runs that were trained with one in a file; given again for each further pair"
    parser.add_argument("--pair", metavar="FILE:NAME", action="append", default=[], help=in_file)
    skip = ["runs", "evaluator", "progress", "json", "resume"]
    told = "the evaluator, one that gives bounds on log p(x)", "write"
    shared, own, given = _parse_evaluation(parser, arguments, compare, skip, told, out=COMPARISON)
    if len(own) > 1:
        raise UsageError(f"compare takes one evaluator, not {given.evaluators}")
    ((evaluator, options),) = own.items()
    what = {option.name: getattr(given, option.name) for option in shared} | own_values(given, options)
    resume = Path(UNFINISHED) if given.resume is True else given.resume
    runs = [_with_pair(folder, given.pair) for folder in given.runs]
    found = compare(runs, evaluator, progress=not given.quiet, json=given.json, resume=resume, **what)
    for line in (*found.lines, *(f"warning: {warning}" for warning in found.warnings), f"wrote {given.out}"):
        say(line)


def _parse_evaluation(
    parser: argparse.ArgumentParser,
    arguments: list[str],
    function: Callable[..., Any],
    skip: Sequence[str],
    told: tuple[str, str],
    **defaults: Any,
) -> tuple[list[Any], dict[str, list[Any]], argparse.Namespace]:
    """What stands on the command line of `evaluate` or `compare`: the options of the function that it calls, those of
    each evaluator that is named, and the values.

    Args:
        skip: parameters of the function that are no options, or options that are added here.
        told: what --with names, and what --json does with the figures, in words.
        defaults: defaults of the command line's own.
    """
    from pyro_vae.command_line.options import add_options, add_shared_options, options_of

    which, writes = told
    peeked = Parser(prog=parser.prog, add_help=False, allow_abbrev=False)
    named = inspect.signature(function).parameters["evaluator"].default
    for each in (parser, peeked):
        each.add_argument(
            "--with", dest="evaluators", metavar="NAME", default=named, help=f"{which} (default: {named})"
        )
    shared = options_of(function, skip=skip)
    add_options(parser, shared, "options")
    parser.add_argument("--json", help=f"{writes} the figures, those of every datum too, to this file; - is stdout")
    keeps = f"keep each block of data that is done in this folder ({UNFINISHED}), and go on with what it keeps"
    parser.add_argument("--resume", nargs="?", const=True, metavar="FOLDER", help=keeps)
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    names = peeked.parse_known_args(arguments)[0].evaluators.split(",")
    own = {name: options_of(plugins.load("evaluator", name)) for name in names}
    add_shared_options(parser, own)
    parser.set_defaults(**defaults)
    return shared, own, parser.parse_args(arguments)


def _with_pair(folder: Path, pairs: Sequence[str]) -> Any:
    """The folder of a run; where its pair is in a file, and that is among those that are given, the run itself."""
    from pyro_vae import scripts
    from pyro_vae.runs.config import read_config
    from pyro_vae.runs.run import load_run

    stored = read_config(folder).get("model", {}).get("name", "")
    if not pairs or (stored and not scripts.in_file(stored)):
        return folder
    same = [pair for pair in pairs if Path(pair).name == Path(stored).name]
    return load_run(folder, (same or list(pairs))[0])


UNFINISHED, COMPARISON = "unfinished", "comparison.png"
"""Where an evaluation keeps what is done (in the folder of its run), and where a comparison is drawn."""

OUTLETS = {
    "sample": "samples.png",
    "reconstruct": "reconstructions.png",
    "encode": "codes.npz",
    "impute": "imputed.npz",
    "export": "run.nc",
}
"""The commands that write a file, and the file where none is named."""


def verb_command(name: str, arguments: list[str]) -> None:
    """A command that is one function of a run; its options are the function's own."""
    from pyro_vae.command_line.options import add_options, options_of
    from pyro_vae.reporting import verbs

    verb = getattr(verbs, name)
    parser = _run_parser(name, verb.__doc__.split("\n")[0])
    options = options_of(verb, skip=["run"])
    add_options(parser, options, "options")
    if name in OUTLETS:
        parser.set_defaults(out=OUTLETS[name])
    given = parser.parse_args(arguments)
    made = verb(run_of(given), **{option.name: getattr(given, option.name) for option in options})
    say(f"wrote {given.out}" if name in OUTLETS else f"{name}: {made}")


def check_command(arguments: list[str]) -> None:
    from pyro_vae.command_line.settings import parse_train

    parser = _parser("check", "Check that a model keeps the contract of a pair on a data set.")
    asked, _ = parse_train(parser, arguments)
    from pyro_vae.testing import check  # the checks themselves: help does without

    options = {name: asked[name] for name in ("model_options", "data_options")}
    for checked in check(asked["pair"], asked["data"], asked["seed"], **options):
        print(f"ok: {checked}")


def list_command(arguments: list[str]) -> None:
    parser = _parser("list", "What is installed.")
    parser.add_argument("kind", nargs="?", help=", ".join(f"{kind}s" for kind in plugins.GROUPS))
    for kind, found in plugins.installed(parser.parse_args(arguments).kind).items():
        print(f"{kind}:")
        for name, line in found.items():
            print(f"  {name:<24} {line}")


VERBS = {name: partial(verb_command, name) for name in (*OUTLETS, "report")}
COMMANDS = {
    "train": train_command,
    "evaluate": evaluate_command,
    "compare": compare_command,
    **VERBS,
    "check": check_command,
    "list": list_command,
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with the nearest options first."""

    def error(self, message: str) -> Any:
        unknown = re.match(r"unrecognized arguments: (-\S+)", message)
        if unknown:
            known = [o for o in self._option_string_actions if o.startswith("--")]
            raise UnknownName("option", unknown[1].split("=")[0], known)
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser(command: str, description: str) -> Parser:
    return Parser(prog=f"pyro-vae {command}", description=description, allow_abbrev=False)


def _run_parser(command: str, description: str) -> Parser:
    parser = _parser(command, description)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder of a run")
    parser.add_argument("--pair", metavar="FILE:NAME", help="the pair of a run that was trained with one in a file")
    return parser


def run_of(given: argparse.Namespace) -> Any:
    """The folder of the run; where its pair is given, the run itself, on the device that is asked for."""
    if given.pair is None:
        return given.run
    from pyro_vae.runs.run import as_run

    device, given.device = given.device, "auto"  # which leaves it there
    return as_run(given.run, device, given.pair)


def print_results(results: Sequence[Any]) -> None:
    """A table of results: mean and standard error in nats per datum, and what to beware of; of sequences, nats per time
    slice as well."""
    say(f"{'evaluator':<16}{'quantity':<22}{'kind':<13}{'mean ± s.e.':<22}{'bits/dim':<10}{'n':>7}{'particles':>11}")
    for result in results:
        bits = "" if result.bits_per_dim is None else f"{result.bits_per_dim:.4f}"
        error = f"± {result.standard_error:.3f}" if result.n > 1 else "(one datum)"
        figure = f"{result.mean:.3f} {error}"
        named = f"{result.evaluator:<16}{result.quantity:<22}{result.kind or '':<13}"
        say(f"{named}{figure:<22}{bits:<10}{result.n:>7}{result.particles:>11}")
    for result in results:
        if result.per_time_slice is not None:
            figures = f"{result.mean:.3f} nats per sequence, {result.per_time_slice:.4f} nats per time slice"
            say(f"{result.evaluator}: {figures} ({result.time_slices} in {result.n} sequences)")
    for result in results:
        if result.given is not None:
            say(f"{result.evaluator}: the figures of a datum are {result.given}")
        if result.data_set is not None:
            say(f"{result.evaluator}: all {result.n} data together: {result.data_set}")
    if any(result.n == 1 for result in results):
        say("one datum has no standard error")
    for result in results:
        for line in result.estimate.lines:
            say(f"{result.evaluator}: {line}")
    for result in results:
        for warning in result.warnings:
            say(f"warning ({result.evaluator}): {warning}")


if __name__ == "__main__":
    sys.exit(main())
