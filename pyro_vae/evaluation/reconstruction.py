"""How far the reconstruction at the guide's mean is from each datum."""

from dataclasses import replace

from pyro_vae.evaluation.blocks import Block
from pyro_vae.evaluation.evaluator import Evaluator, Progress
from pyro_vae.evaluation.result import Estimate, PerDatum, quantiles
from pyro_vae.pair.generation import center, picture_site, reconstruct_from
from pyro_vae.pair.scales import Unscaled
from pyro_vae.pair.slices import without_padding


class Reconstruction(Evaluator):
    """Mean squared error per element, and -log p(x|z) in nats, at z = the guide's mean.

    Figures [n]: `reconstruction_nll` (nats; no bound on the likelihood; scales of the pair do not count) and
    `squared_error` (in units of x squared; of what is not missing, and no padding).

    Raises:
        ContractError: the pair breaks the contract, or its model observes nothing.
    """

    shareable = True

    def of_block(self, block: Block, particles: int, progress: Progress) -> PerDatum:
        block.check(of=())
        with block.seeded(), Unscaled():
            batch = block.batch()
            sites = reconstruct_from(block.pair, batch, block.guide)
        site = picture_site(sites)
        nll = -sum(s.log_prob() for s in sites.values()).squeeze(0).cpu()
        squared = without_padding(1.0 * (center(site) - site.seen.squeeze(0)).square(), batch)
        squared_error = squared.reshape(block.size, -1).nanmean(1).cpu()
        progress(block.size * particles)
        return {"reconstruction_nll": nll, "squared_error": squared_error}

    def summarise(self, found: Estimate, particles: int) -> Estimate:
        return replace(found, summary={"squared_error": quantiles(found.per_datum["squared_error"])})
