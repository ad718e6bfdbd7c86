"""What a finished run can be asked for. Each function is a command of the command line too, with the same options.

A run is a `Run`, or the folder of one.
"""

import math
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae import files, plots
from pyro_vae.data import Dataset, Split, choose_split
from pyro_vae.data.sequences import are_sequences
from pyro_vae.data.sparse import row_bytes
from pyro_vae.engine.threads import alone
from pyro_vae.errors import Doubt, RunError, check_positive
from pyro_vae.kinds import checked
from pyro_vae.pair import generation
from pyro_vae.pair.data_fit import check_support
from pyro_vae.pair.pair import OBSERVED, device_of, evaluating, select_fields
from pyro_vae.pair.slices import over_time, without_padding
from pyro_vae.parts.memory import check_fits
from pyro_vae.reporting.ex_post import draw_codes
from pyro_vae.reporting.report import write_report
from pyro_vae.runs.run import Run, as_run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = str | Path | Dataset | Split | Tensor | Mapping[str, Tensor] | None


@checked
@alone
def sample(
    run: Run | str | Path,
    n: int = 64,
    out: str | Path | None = None,
    seed: int = 0,
    device: str = "auto",
    data: Data = None,
    split: str = "test",
    ex_post: str | None = None,
) -> dict[str, Tensor]:
    """Draw data from the model: every site's values [n, *event], by name.

    A latent outside the plate of the data has [*event]: one draw of the guide for all of them. Sites NAME_0, NAME_1,
    ... of the time slices of x are one, NAME [n, time, ...]. A sequence has the length of one of the data, and is NaN
    beyond it, or -1 where it is of whole numbers.

    Args:
        n: how many.
        out: a .png for a picture of the means of p(x|z), or an .npz for the values.
        seed: fixes the draws.
        device: auto, cpu or cuda.
        data: what a conditional model is given, by name or file; the run's own data where none are named.
        split: train, valid or test: which of these data.
        ex_post: gmm or flow: draw the latents not from the prior but from a density that is fitted to the codes of the
            training data, a mixture of normals or a normalising flow.

    Raises:
        RunError: fewer than one, no such split, or a file that cannot be written.
        UnknownName: no such density.
        ContractError: an improper prior, from which nothing can be drawn, or latents that no density can be fitted to.
    """
    path = _outlet(out, ".png", ".npz")
    run = as_run(run, device)
    fields = _fields_to_sample(run, n, data, split)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        latents = None if ex_post is None else draw_codes(run, ex_post, n)
        sites = generation.sample(run.pair, fields, latents)
    values = over_time({name: site.raw.cpu() for name, site in sites.items()}, fields)
    if path is not None and path.suffix == ".png":
        means = without_padding(generation.center(generation.picture_site(generation.observed(sites))), fields)
        plots.save((plots.piano_rolls if are_sequences(fields) else plots.image_grid)(means), path)
    elif path is not None:
        save_arrays(values, path)
    return values


@checked
@alone
def reconstruct(
    run: Run | str | Path,
    n: int = 10,
    data: Data = None,
    split: str = "test",
    out: str | Path | None = None,
    device: str = "auto",
    seed: int = 0,
) -> "Figure":
    """Draw data, spread over a split, above their reconstructions.

    Args:
        n: how many.
        data: other data than the run's: a name or a file.
        split: train, valid or test.
        out: a .png.
        device: auto, cpu or cuda.
        seed: fixes the draws of sites that have no mean.

    Raises:
        RunError: fewer than one, no such split, or a file that cannot be written.
    """
    path = _outlet(out, ".png")
    check_positive(RunError, n=n)
    run = as_run(run, device)
    figure = plots.reconstructions(run.pair, run.split(data, split), n, seed)
    if path is not None:
        plots.save(figure, path)
    return figure


@checked
@alone
def encode(
    run: Run | str | Path,
    data: Data = None,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Tensor]:
    """Mean and scale of q(z|x) of every datum: `SITE_mean`, `SITE_scale` [n, *event], and `label` where there is one;
    of a latent outside the plate of the data [*event], once for all. Of an enumerated site `SITE_probabilities`, and
    where the model alone enumerates it `SITE_most_probable` and `SITE_draw`. Sites NAME_0, NAME_1, ... of the time
    slices of x are one, NAME [n, time, ...].

    Args:
        data: other data than the run's: a name or a file.
        split: train, valid or test.
        limit: only the first so many data.
        seed: fixes the draws of sites that later sites depend on.
        out: an .npz.
        device: auto, cpu or cuda.

    Raises:
        RunError: no such split, or a file that cannot be written.
        DataError: data that do not fit the run.
    """
    path = _outlet(out, ".npz")
    run = as_run(run, device)
    chosen = run.split(data, split).head(limit).to(device_of(run.pair))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        codes = generation.encode(run.pair, chosen)
    if "label" in chosen:
        codes["label"] = chosen["label"].cpu()
    if path is not None:
        save_arrays(codes, path)
    return codes


@checked
@alone
def impute(
    run: nn.Module | Run | str | Path,
    data: Data = None,
    split: str = "all",
    draws: int = 20,
    particles: int = 500,
    limit: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Tensor]:
    """Draw the values that data lack (NaN) given those that are observed.

    Gives SITE [draws, n, *event] of each site that lacks some, in which what is observed is as it is, and `ess` [n],
    the effective number of draws of the guide behind them. Of the guide's draws for a datum some are picked by their
    importance weights, and what is missing is drawn from p(x|z) there.

    Args:
        run: also a pair, where data are given.
        data: other data than the run's: a name or a file.
        split: train, valid, test, or all of them, in the order of the file.
        draws: how many for each datum.
        particles: draws of the guide for each datum, among which they are picked.
        limit: only the first so many data.
        seed: fixes the draws.
        out: an .npz.
        device: auto, cpu or cuda.

    Raises:
        RunError: fewer than one draw, particle or datum, a pair without data, no such split, or a file that cannot be
            written.
        DataError: data that do not fit, or of which nothing is missing.
        ContractError: the model does not leave out what is missing, or has no log-densities of each datum; names the
            site.
    """
    from pyro_vae.evaluation.imputation import imputations
    from pyro_vae.evaluation.missing import tolerant

    path = _outlet(out, ".npz")
    check_positive(RunError, draws=draws, particles=particles, limit=limit)
    whole = as_run(run, device) if isinstance(run, Run | str | Path) else None
    if whole is None and data is None:
        raise RunError("a pair has no data of its own; give impute(pair, data)")
    pair, data = (run, data) if whole is None else (whole.pair, whole.data_like(data))
    chosen = choose_split(data, split).head(limit).to(device_of(pair))
    needed = draws * chosen.size * sum(map(row_bytes, chosen.fields.values()))
    check_fits(RunError, needed, f"{draws} draws for each of {chosen.size} data", "draw fewer, or set a limit")
    with torch.random.fork_rng(), evaluating(pair):
        pair, _, notes = tolerant(pair, chosen, "marginalise", whole)
        check_support(pair, chosen, whole is not None and whole.relaxed)
        found = imputations(pair, chosen, draws, particles, seed)
    few = (found.ess < draws).double().mean().item()
    if few > 0:
        notes.append(
            f"{few:.1%} of the data have fewer than {draws} effective draws of the guide, so that their imputations "
            "repeat a few latents; use more particles"
        )
    for note in notes:
        warnings.warn(note, Doubt, stacklevel=2)
    imputed = {**found.values, "ess": found.ess}
    if path is not None:
        save_arrays(imputed, path)
    return imputed


@checked
@alone
def export(
    run: Run | str | Path,
    data: Data = None,
    split: str = "test",
    draws: int = 500,
    limit: int = 100,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
) -> Any:
    """Draws, predictions and importance weights as ArviZ InferenceData; see `pyro_vae.inference_data`.

    Args:
        data: other data than the run's: a name or a file.
        split: train, valid or test.
        draws: draws of the guide for each datum.
        limit: how many data.
        seed: fixes the draws.
        out: an .nc.
        device: auto, cpu or cuda.

    Raises:
        RunError: fewer than one draw or datum, no such split, or a file that cannot be written.
        DataError: data that do not fit the run.
    """
    path = _outlet(out, ".nc")
    exported = as_run(run, device).posterior(data, draws, limit, seed, split)
    if path is not None:
        _save_netcdf(exported, path)
    return exported


@alone
def report(run: Run | str | Path, device: str = "auto") -> Path:
    """Write the run's `report.md` and its figures again; gives the path of report.md.

    Args:
        device: auto, cpu or cuda.

    Raises:
        RunError: the run has no folder, or the folder cannot be written.
    """
    return write_report(as_run(run, device))


def _outlet(out: str | Path | None, *suffixes: str) -> Path | None:
    if out is not None and Path(out).suffix not in suffixes:
        raise RunError(f"--out {out}: the name must end in {' or '.join(suffixes)}")
    return None if out is None else Path(out)


def save_arrays(arrays: Mapping[str, Tensor], path: Path) -> None:
    numpy = {name: value.detach().cpu().numpy() for name, value in arrays.items()}
    files.write_whole(path, lambda file: np.savez_compressed(file, **numpy))


def _save_netcdf(exported: Any, path: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "run.nc"
        exported.to_netcdf(str(whole))
        files.write_whole(path, lambda file: file.write(whole.read_bytes()))


def bytes_of(fields: Mapping[str, tuple[list[int], str]]) -> int:
    """What a datum of the fields that a run recorded fills."""
    return sum(math.prod(shape) * getattr(torch, dtype).itemsize for shape, dtype in fields.values())


def _fields_to_sample(run: Run, n: int, data: Data, split: str) -> dict[str, Tensor]:
    """Fields for `n` draws: what the model conditions on is that of the data, over and over if need be."""
    check_positive(RunError, n=n)
    check_fits(RunError, n * bytes_of(run.fields), f"{n} samples", "draw fewer")
    if len(run.fields.keys() - {name + OBSERVED for name in run.fields}) == 1:
        fields = generation.blank_fields(run.fields, n)
    else:
        chosen = run.split(data, split)
        fields = select_fields(run.pair, chosen.take(torch.arange(n) % chosen.size))
    return {name: value.to(device_of(run.pair)) for name, value in fields.items()}
