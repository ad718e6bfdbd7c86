"""What a pair must keep so that its numbers are what they are called: each breach is one line that names the site."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import MixtureSameFamily, biject_to, constraints

from pyro_vae.errors import ContractError, UserError
from pyro_vae.pair.equality import same
from pyro_vae.pair.pair import evaluating, select_fields
from pyro_vae.pair.particles import Fields, run_guide, run_guide_at, run_model
from pyro_vae.pair.sites import Site, Sites, has_mask, is_improper, is_point_mass, latent, unwrapped, values_of

BOTH = ("model", "guide")
CLOSE = 1e-3
PRIOR_DRAWS = 30
"""So many draws of the prior of a latent that all data share tell whether the guide reaches them."""

FRESH_NOISE = "a net draws fresh noise (dropout that is on under eval(), torch.randn); draw it at a sample site"


def check_sites(model: Sites, guide: Sites) -> None:
    """Raise `ContractError` where a latent site of the model lacks a guide, or the guide has a site of its own."""
    latents = latent(model).keys()
    for name in latents:
        if name not in guide and model[name].summed:
            continue
        if name not in guide:
            raise ContractError(f"the model's latent site {name!r} is not in the guide; sample it there")
        if guide[name].observed:
            raise ContractError(f"the guide observes {name!r}, which the model draws; sample it there")
    for name in guide.keys() - latents:
        if not guide[name].auxiliary:
            where = "observes" if name in model else "lacks"
            raise ContractError(
                f"the guide samples {name!r}, which the model {where}; remove it from the guide, or mark it with "
                "infer={'is_auxiliary': True}"
            )


def check_per_datum(model: Sites, guide: Sites) -> None:
    """Raise `ContractError` where a site stands outside the data plate: it has no bound of one datum."""
    for site in [*model.values(), *guide.values()]:
        if not site.in_plate:
            plate = next(iter(site.plates), None)
            where = f" (it is in plate {plate!r}, which is not the data's)" if plate else ""
            raise ContractError(
                f"site {site.name!r} is outside the data plate{where}, so no bound of a single datum exists; move it "
                "inside `with pyro.plate('data', n, dim=-1):`, n the length of the batch, or make it a "
                "torch.nn.Parameter"
            )


def check_supports(model: Sites, guide: Sites) -> None:
    """Raise `ContractError` where guide and prior of a site do not reach each other's draws: then importance weights
    leave out part of the posterior, or are zero. Reads values, so it is for the start of an evaluation."""
    for name, proposal in guide.items():
        prior = model.get(name)
        if prior is None or is_point_mass(proposal.fn) or is_improper(prior.fn):
            continue
        shape = torch.Size([] if prior.in_plate else [PRIOR_DRAWS])
        if proposal.support is not None and not proposal.support.check(prior.fn(shape)).all():
            what = "guide cannot draw all that the prior"
        elif prior.support is not None and not prior.support.check(proposal.raw).all():
            what = "prior has no density where the guide"
        else:
            continue
        raise ContractError(
            f"site {name!r}: the {what} draws (supports {proposal.support} and {prior.support}); "
            "choose a guide distribution with the prior's support"
        )


def prior_before_guide(model: Sites, guide: Sites) -> dict[str, bool]:
    """Whether each latent's prior is settled before the guide draws it: the guide has drawn all that precede it in the
    model. Only then is KL(q || p) of the two distributions the expectation of log q - log p over its draw; a guide
    that draws a hierarchy bottom up is the other case."""
    place = {name: i for i, name in enumerate(guide)}
    settled, latest = {}, -1
    for name in [name for name in latent(model) if name in place]:
        settled[name] = place[name] > latest
        latest = max(latest, place[name])
    return settled


class Fault(NamedTuple):
    """Why a term is no log-density, in words, and whether the numbers still make a loss."""

    line: str
    is_loss: bool = True


def density_faults(model: Sites, guide: Sites, of: Sequence[str] = BOTH) -> list[Fault]:
    """Why the terms of a pair are no log-densities; nothing where they are. Reads values.

    Args:
        of: the programs whose densities are asked for.
    """
    faults, both = [], {name: site for name, site in latent(model).items() if name in guide}
    if "model" in of:
        faults += [fault for site in model.values() for fault in _model_faults(site)]
    if "guide" in of:
        drawn = any(site.auxiliary for site in latent(guide).values())
        faults += [fault for name, site in both.items() for fault in _guide_faults(site, guide[name], drawn)]
    for name, site in both.items():
        masked = has_mask(site) or has_mask(guide[name])
        if masked and not torch.eq(site.counted(), guide[name].counted()).all():
            line = f"site {name!r} is masked in one of the two programs only; mask it in both alike"
            faults.append(Fault(line, is_loss=False))
    return faults


def check_density(model: Sites, guide: Sites, of: Sequence[str] = BOTH) -> None:
    """Raise `ContractError` where `density_faults` finds one."""
    faults = density_faults(model, guide, of)
    if faults:
        raise ContractError(f"no log-likelihood can be given: {faults[0].line}")


def _model_faults(site: Site) -> Iterator[Fault]:
    if isinstance(unwrapped(site.fn), dist.Unit):
        yield Fault(f"pyro.factor {site.name!r} leaves the model unnormalised, so its numbers are a loss")
    elif is_improper(site.fn):
        yield Fault(f"the prior of site {site.name!r} is improper (ImproperUniform), so its numbers are a loss")
    yield from _scale_fault(site, "model")


def _guide_faults(prior: Site, site: Site, follows_auxiliary: bool) -> Iterator[Fault]:
    kinds = [_is_discrete(prior.support), _is_discrete(site.support)]
    if is_point_mass(site.fn):
        if not kinds[0] and not follows_auxiliary:
            way_out = (
                "use ais with start=prior, which needs no guide" if site.in_plate else "evaluate it at this estimate"
            )
            yield Fault(
                f"the guide's site {site.name!r} is a point mass (Delta), which has no density, so its numbers are a "
                f"loss; for log p(x) {way_out}"
            )
    elif None not in kinds and kinds[0] != kinds[1]:
        words = ["discrete" if kind else "continuous" for kind in kinds]
        yield Fault(
            f"site {site.name!r} is {words[0]} in the model and {words[1]} in the guide (a relaxation), so the two "
            "densities do not compare and its numbers are a loss"
        )
    yield from _scale_fault(site, "guide")


def _scale_fault(site: Site, program: str) -> Iterator[Fault]:
    scale = site.scale
    if isinstance(scale, Tensor):
        off = scale[scale != 1]
        scale = off[0].item() if off.numel() else 1.0
    if scale != 1.0:
        yield Fault(
            f"site {site.name!r} of the {program} is scaled by {scale:.4g}, so its numbers are a scaled loss; "
            "leave poutine.scale out under eval(), or evaluate with scales='ignore' (--scales ignore)",
            is_loss=False,
        )


def _is_discrete(support: constraints.Constraint | None) -> bool | None:
    try:
        return None if support is None else support.is_discrete
    except NotImplementedError:
        return None


def check_auxiliary(pair: nn.Module, batch: Fields, of_plate: bool = True, fixed: Collection[str] = ()) -> None:
    """Raise `ContractError` where an auxiliary site that the guide draws leaves the latents without a density.

    log q(z|x) is known where the point masses that follow the auxiliary sites are an invertible function of them, and
    their log_density is minus the log of its Jacobian, as in Pyro's AutoContinuous.

    Args:
        of_plate: look at the sites in the plate of the data; else at those outside it.
        fixed: sites that are point masses whatever is drawn, and are left out.
    """
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(), evaluating(pair):
        fields = {name: field.clone() for name, field in select_fields(pair, batch).items()}
        guide = run_guide(pair, fields)
        placed = {name: site for name, site in latent(guide).items() if site.in_plate == of_plate and name not in fixed}
        drawn = {name: site for name, site in placed.items() if site.auxiliary}
        for name, site in drawn.items():
            if is_point_mass(site.fn):
                raise _no_function(name)
        if drawn:
            _check_function(pair, fields, guide, drawn, [name for name in placed if name not in drawn])


def _check_function(pair: nn.Module, fields: Fields, guide: Sites, drawn: Sites, others: Collection[str]) -> None:
    """Compare the log_density of those of the other sites that are point masses with the Jacobian of their function."""
    maps = {name: biject_to(support_of(site)) for name, site in drawn.items()}
    places = {name: maps[name].inv(_of_data(site).detach()).requires_grad_() for name, site in drawn.items()}
    moved = {name: maps[name](place) for name, place in places.items()}
    moved = {name: value if drawn[name].in_plate else value.squeeze(1) for name, value in moved.items()}
    again = run_guide_at(pair, fields, values_of(guide) | moved)
    model = run_model(pair, fields, values_of(again))
    masses = {name: again[name] for name in others if is_point_mass(again[name].fn) and name in model}
    codes, expected = [], torch.zeros(())
    for name, place in places.items():
        expected = expected + _log_stretch(maps[name], place, maps[name](place))
    for name, site in masses.items():
        to_support, value = biject_to(support_of(model[name])), _of_data(site)
        code = to_support.inv(value)
        codes.append(code.reshape(code.shape[1], -1))
        expected = expected - _log_stretch(to_support, code, value) - site.log_prob()
    log_det = _log_det(places, masses, codes, next(iter(drawn)))
    rounding = CLOSE * (1 + sum(code.shape[1] for code in codes) / 1000)
    if not torch.allclose(log_det.to(expected), expected, rtol=CLOSE, atol=rounding):
        raise ContractError(
            f"the log_density of site {next(iter(masses))!r} is not minus the log of the Jacobian of its function of "
            f"the auxiliary site {next(iter(drawn))!r}, so log q is not its density; give Delta(value, log_density=...)"
        )


def _of_data(site: Site) -> Tensor:
    """The value of a site [particles, batch, ...]; [1, 1, ...] of one outside the plate of the data."""
    return site.value if site.in_plate else site.value.unsqueeze(1)


def _log_det(places: dict[str, Tensor], masses: Sites, codes: list[Tensor], first: str) -> Float[Tensor, " batch"]:
    """The log of the Jacobian's determinant of the codes of point masses, as a function of places; raises where there
    is none."""
    numbers = torch.cat([place.reshape(place.shape[1], -1) for place in places.values()], 1)
    if codes and same(torch.cat(codes, 1).sort(1).values, numbers.sort(1).values):
        return numbers.new_zeros(len(numbers))  # each code is one of the numbers, as in Pyro's AutoGuides
    jacobian = _jacobian(codes, list(places.values()))
    _refuse_unused(jacobian, places, masses, codes)
    if jacobian.shape[1] != jacobian.shape[2] or not (log_det := torch.linalg.slogdet(jacobian)[1]).isfinite().all():
        raise _no_function(first)
    return log_det


def _jacobian(codes: list[Tensor], places: list[Tensor]) -> Float[Tensor, "batch codes places"]:
    rows = []
    for column in [column for code in codes for column in code.unbind(1)]:
        slopes = [torch.zeros_like(place) for place in places]
        if column.requires_grad:
            slopes = torch.autograd.grad(column.sum(), places, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([slope.reshape(slope.shape[1], -1) for slope in slopes], 1))
    size, width = places[0].shape[1], sum(place[0, 0].numel() for place in places)
    return torch.stack(rows, 1) if rows else places[0].new_zeros(size, 0, width)


def _refuse_unused(jacobian: Tensor, places: dict[str, Tensor], masses: Sites, codes: list[Tensor]) -> None:
    """Raise where an auxiliary site moves no point mass, or a point mass follows no auxiliary site."""
    widths = [place[0, 0].numel() for place in places.values()]
    for name, part in zip(places, jacobian.split(widths, 2), strict=True):
        if not part.any():
            raise _no_function(name)
    for name, part in zip(masses, jacobian.split([code.shape[1] for code in codes], 1), strict=True):
        if not part.any():
            raise ContractError(f"the guide's site {name!r} is a point mass (Delta), which has no density")


def _no_function(name: str) -> ContractError:
    return ContractError(
        f"the guide's auxiliary site {name!r} leaves the latents without a density: no latent is an invertible "
        "function of it; give them as Delta(f(auxiliary), log_density=minus the log Jacobian), or draw them directly"
    )


def _log_stretch(transform: Any, place: Tensor, value: Tensor) -> Float[Tensor, "particles batch"]:
    stretch = transform.log_abs_det_jacobian(place, value)
    return stretch.flatten(2).sum(2) if stretch.dim() > 2 else stretch


def support_of(site: Site) -> constraints.Constraint:
    """The support of a site's distribution; of its components where it is a mixture, for which torch has no map."""
    fn = site.fn
    support = fn.component_distribution.support if isinstance(fn, MixtureSameFamily) else site.support
    return constraints.real if support is None else support


def check_data_apart(pair: nn.Module, batch: Fields) -> None:
    """Raise `ContractError` where the terms of a datum change with the data beside it or from run to run, under
    `eval()`; names the site and the reason."""
    fields = {name: field[:2] for name, field in select_fields(pair, batch).items()}
    twice = [0, 0]  # the first datum beside itself: what counts its batch refuses a single one
    some = {name: field[twice] for name, field in fields.items()}
    with torch.random.fork_rng(), evaluating(pair), torch.no_grad():
        guide = run_guide(pair, fields, summing=True)
        values = values_of(guide)
        part = {name: value[:, twice] if guide[name].in_plate else value for name, value in values.items()}
        for program, run in (("model", run_model), ("guide", run_guide_at)):
            try:
                whole, again = (_scores(run(pair, fields, values, summing=True)) for _ in range(2))
                alone = _scores(run(pair, some, part, summing=True))
            except UserError:
                continue  # a plate of fixed size, which cannot be cut, or a density that is known at its own draws only
            for name, score in whole.items():
                if not same(score, again[name]):
                    raise _not_alone(program, name, guide, "changes from run to run", FRESH_NOISE)
                if not same(alone[name][:, :1], score[:, :1]):
                    raise _not_alone(program, name, guide, "depends on the other data beside it", _mixes_data(pair))


def _scores(sites: Sites) -> dict[str, Tensor]:
    return {name: site.unfold(site.density, 0) for name, site in sites.items() if site.in_plate}


def _not_alone(program: str, name: str, guide: Sites, how: str, reason: str) -> ContractError:
    what = "log q(z|x)" if program == "guide" else "log p(z)" if name in guide else "log p(x|z)"
    return ContractError(f"{what} of a datum {how} under eval(), at site {name!r} of the {program}: {reason}")


def _mixes_data(pair: nn.Module) -> str:
    """Why a datum may depend on those beside it, and what to do."""
    reason = "keep data apart, in the plate"
    for part, module in pair.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            reason = f"{part!r} is a BatchNorm without running statistics; set track_running_stats=True"
    return reason
