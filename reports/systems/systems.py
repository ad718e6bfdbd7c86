"""The systems of the report: what each is made of, and in words what differs from the row above."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GREY, BITS, GAPS = "grey levels", "black and white", "black and white, half of it gone"
LABELLED, COUNTED = "black and white, some of it labelled", "counts from 0 to 16"
CHAINS, TOPICS, CELLS = "made-up sequences", "made-up documents", "made-up counts of cells"
WHOLE = "black and white, nothing gone"
"""What the data with gaps were made of; no system is trained on it."""


@dataclass(frozen=True)
class System:
    """A row of the report.

    Attributes:
        name: as the report calls it.
        model: the registered model's name.
        differs: what differs from the row above, in words.
        data: which form of the data it is trained on.
        options: of the model.
        training: settings of `pyro_vae.train`, the objective's among them.
        weighted: whether its importance-weighted bound is another number than its ELBO.
        ex_post: whether its samples come from a density that is fitted to its codes.
    """

    name: str
    model: str
    differs: str
    data: str = BITS
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    weighted: bool = True
    ex_post: bool = False

    @property
    def stem(self) -> str:
        """The name as that of a folder."""
        return "".join(c if c.isalnum() else "_" for c in self.name).lower()

    @property
    def objective(self) -> str:
        """The name of the objective."""
        return self.training.get("objective", "trace_mean_field_elbo")


NORMAL, GAUSSIAN = {"prior": "standard_normal"}, {"likelihood": "gaussian", "likelihood_sigma": 0.2}
TOTAL, INFO = {"objective": "beta_tcvae", "beta": 4.0}, {"objective": "info_vae"}
REGULARISED = {"objective": "l2_elbo", "objective_options": {"l2": 1e-2}, "beta": 0.1}
MASKED = {"missing": "marginalise", "encoder_mask": True}

SYSTEMS = [
    System("autoencoder", "autoencoder", "A point mass at f(x) for a code, and no prior.", GREY, ex_post=True),
    System("linear autoencoder", "linear_autoencoder", "No hidden layers: the plane of PCA.", GREY, ex_post=True),
    System("sparse autoencoder", "sparse_autoencoder", "128 rectified codes with an L1 penalty.", GREY, ex_post=True),
    System("denoising autoencoder", "denoising_autoencoder", "No prior; noise on what it sees.", GREY, ex_post=True),
    System(
        "regularised autoencoder", "autoencoder", "No noise; a penalty on the code and on the decoder's weights.",
        GREY, NORMAL, REGULARISED, ex_post=True,
    ),
    System(
        "probabilistic autoencoder", "probabilistic_autoencoder",
        "No penalty; a normal of fixed width about f(x) for a code, still no prior.", GREY, ex_post=True,
    ),
    System(
        "the same, regularised", "probabilistic_autoencoder", "A prior N(0, I) on the code, and so a bound.",
        GREY, NORMAL,
    ),
    System("linear VAE", "linear_vae", "No hidden layers; widths of code and pixels are learned: PPCA.", GREY),
    System("Gaussian VAE", "vae", "Hidden layers; the pixels' width is 0.2.", GREY, GAUSSIAN),
    System("VAE", "vae", "Pixels are black or white, a Bernoulli each."),
    System("beta-VAE", "vae", "The KL counts four times.", training={"beta": 4.0}),
    System("beta-TCVAE", "vae", "Of the KL only the total correlation counts four times.", training=TOTAL),
    System("InfoVAE (MMD)", "vae", "No KL; the codes of all data together are drawn to the prior.", training=INFO),
    System("planar flow", "vae", "The KL again; planar flows bend the posterior.", options={"posterior": "planar"}),
    System("radial flow", "vae", "Radial flows do.", options={"posterior": "radial"}),
    System("inverse autoregressive flow", "vae", "Inverse autoregressive flows do.", options={"posterior": "iaf"}),
    System("neural spline flow", "vae", "Neural splines do.", options={"posterior": "neural_spline"}),
    System("flow prior", "vae", "A normal posterior again; the prior is a flow.", options={"prior": "flow"}),
    System("mixture prior", "vae", "The prior is a mixture of ten normals.", options={"prior": "mixture"}),
    System("VampPrior", "vae", "A mixture of posteriors at learned data.", options={"prior": "vamp"}),
    System("hierarchical VAE", "hierarchical", "A second stochastic layer above; the guide goes bottom up."),
    System("ladder VAE", "hierarchical", "The guide goes top down, beside the model.", options={"ladder": True}),
    System(
        "two layers of Burda et al.", "burda_two_layers", "Bottom up again; tanh, two deterministic layers for each.",
    ),
    System("VQ-VAE", "vqvae", "Codes of a codebook, with an autoregressive prior.", weighted=False),
    System("VAE of missing data (MIWAE)", "vae", "A VAE that sees half of the pixels.", GAPS, MASKED),
    System(
        "Helmholtz machine", "sigmoid_belief_net", "All pixels again; layers of bits; the guide learns at dreams.",
        training={"objective": "wake_sleep"},
    ),
    System("mixture of Bernoullis", "mixture", "No net: ten pictures, of which each datum is one, and noise."),
    System("Gaussian-mixture VAE", "gmvae", "Nets again; the ten values say which normal the code is of."),
    System("M2", "m2", "They are labels, some of them known; the code is the style.", LABELLED),
    System("M1+M2", "m1_m2", "The label and the style stand above a code.", LABELLED),
    System("sparse gamma DEF", "sparse_gamma_def", "No label: layers of gammas, mostly near 0.", COUNTED),
    System("hidden Markov model", "hmm", "Of sequences: each time slice has a state, which moves.", CHAINS),
    System("deep Markov model", "dmm", "A vector moves, by nets.", CHAINS),
    System("LDA", "lda", "Of bags of words: each word has a topic.", TOPICS, training={"lr": 0.1}),
    System("ProdLDA", "prodlda", "A net says the topics of a document, whose words they multiply.", TOPICS),
    System("SCANVI", "scanvi", "Of counts of genes: M1+M2 with library sizes, beside the batch.", CELLS),
]  # fmt: skip
