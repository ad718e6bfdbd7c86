"""Topic models: LDA on planted topics, and LDA, scikit-learn's and ProdLDA on news by one bound."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept import continued
from machine import table
from rows import Found, Rows, cell, minutes, seconds, verdict
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import LatentDirichletAllocation
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.data.sets.planted_topics import bars

SIDE, SEEDS, WANTED = 5, (0, 1, 2), 0.95
PLANTED = {"epochs": 20, "lr": 0.1, "lr_warmup": 5, "schedule": "cosine", "restarts": 5}
TOPICS, PARTICLES, SHOWN = 20, 100, 8
LDA = {"epochs": 60, "lr": 0.05, "lr_warmup": 5, "schedule": "cosine", "batch_size": 200}
PRODLDA = {"epochs": 100, "lr": 3e-3, "batch_size": 64}
SKLEARN_STEPS = 100


def of_planted(seed: int, folder: Path) -> dict[str, Any]:
    """The least and the mean cosine of a planted topic and the found one that it is matched with."""
    data = pv.load_data("planted_topics", side=SIDE, seed=seed)
    options = {"model_options": {"topics": 2 * SIDE}, "seed": seed, "engine": "eager"}
    run = continued("lda", data, folder=folder / "run", **PLANTED, **options)
    found = run.pair.topic_words().detach().unsqueeze(0)
    cosines = torch.nn.functional.cosine_similarity(bars(SIDE).unsqueeze(1), found, dim=-1)
    matched = cosines[linear_sum_assignment(-cosines.numpy())]
    return {"least": matched.min().item(), "mean": matched.mean().item(), "seconds": seconds(run)}


def news(root: Path) -> pv.Dataset:
    return pv.load_data("bbc_news", file=str(root / "bbc_news.npz"))


def figures(pair: nn.Module, data: pv.Dataset) -> dict[str, Any]:
    """Perplexity of the test documents; coherence of the top words in them, and in the training documents."""
    test = pv.evaluate(pair, data, "topics", PARTICLES, engine="eager", progress=False)
    train = pv.evaluate(pair, data, "topics", 1, engine="eager", progress=False, split="train")
    return {
        "perplexity": test.estimate.summary["perplexity"],
        "bound": test.mean,
        "coherence in test": test.estimate.summary["coherence"],
        "coherence in train": train.estimate.summary["coherence"],
        "words": [" ".join(words.split()[:SHOWN]) for words in test.estimate.summary["top_words"]],
    }


def of_run(model: str, settings: dict[str, Any], root: Path, folder: Path) -> dict[str, Any]:
    """The figures of one of our models on the news."""
    data, options = news(root), {"model_options": {"topics": TOPICS}}
    run = continued(model, data, folder=folder / "run", engine="eager", **settings, **options)
    return {**figures(run.pair, data), "seconds": seconds(run)}


def with_words(words: Tensor, vocabulary: tuple[str, ...]) -> pv.models.LDA:
    """Our LDA with these topics [topics, vocabulary]."""
    pair = pv.models.LDA(words.shape[1:], topics=len(words), vocabulary=vocabulary)
    pair.log_words.data = words.log()
    return pair


def of_sklearn(root: Path, folder: Path) -> dict[str, Any]:
    """The figures of scikit-learn's topics in our pair, with the number of topics and the priors that ours has."""
    data = news(root)
    fitted = LatentDirichletAllocation(TOPICS, max_iter=SKLEARN_STEPS, learning_method="batch", random_state=0)
    components = torch.from_numpy(fitted.fit(data.train["x"].numpy()).components_)
    words = (components / components.sum(1, keepdim=True)).float()
    return figures(with_words(words, data.vocabulary), data)


def top_words(found: Found | None, name: str) -> str:
    """The topics of a model by their most probable words."""
    if found is None:
        return ""
    return f"### Topics of {name}\n\n" + table(["topic", "words"], [[i, w] for i, w in enumerate(found["words"])])


def planted_section(rows: Rows) -> str:
    """The table of planted topics."""
    found = [rows.get(f"documents, planted topics, seed {seed}", partial(of_planted, seed)) for seed in SEEDS]
    lines = [
        [str(seed), cell(each, "least", ".4f"), cell(each, "mean", ".4f"), minutes(each)]
        for seed, each in zip(SEEDS, found, strict=True)
    ]
    worst = None if None in found else min(each["least"] for each in found)
    return f"""## Documents

Planted topics, the rows and columns of a square of {SIDE} by {SIDE} words: the cosine of each and the topic of LDA that
it is matched with. The seed draws the documents and the start; the best of {PLANTED["restarts"]} starts by the
validation loss goes on.

{table(["seed", "least cosine", "mean cosine", "minutes"], lines)}
Of the worst topic of all seeds, {verdict(worst, WANTED, at_least=True)}.
"""


def news_section(rows: Rows, root: Path) -> str:
    """The table of the news."""
    makers: dict[str, Callable[[Path], dict[str, Any]]] = {
        "LDA": partial(of_run, "lda", LDA, root),
        "scikit-learn's LDA": partial(of_sklearn, root),
        "ProdLDA": partial(of_run, "prodlda", PRODLDA, root),
    }
    found = {name: rows.get(f"documents, news, {name}", make) for name, make in makers.items()}
    keys = {"perplexity": ".1f", "bound": ".2f", "coherence in test": ".3f", "coherence in train": ".3f"}
    lines = [[name, *(cell(each, *key) for key in keys.items()), minutes(each)] for name, each in found.items()]
    ours, theirs, product = found.values()
    head = ["", "perplexity", "nats per document", "NPMI in test documents", "NPMI in training documents", "minutes"]
    in_test, in_train = (less(product, ours, f"coherence in {split}") for split in ("test", "train"))
    return f"""### News

BBC News, 2,949 words, {TOPICS} topics, both priors 1/{TOPICS} for LDA and for scikit-learn's, which was fitted by
{SKLEARN_STEPS} passes of batch variational EM. Perplexity is of the words of the test documents, which
are new, by the importance-weighted bound with {PARTICLES} draws; scikit-learn's topics, normalised, stand in our
pair, so that the bound is the same one. Coherence is the mean NPMI of the ten top words of each topic. Our epochs are
chosen by the validation ELBO.

{table(head, lines)}
Of the coherence of ProdLDA less that of LDA, in test documents, {verdict(in_test, 0.0, ".3f", at_least=True)}; in
training documents, of which there are more, {verdict(in_train, 0.0, ".3f", at_least=True)}.
{compared(ours, theirs)}
{top_words(ours, "LDA")}
{top_words(product, "ProdLDA")}"""


def less(one: Found | None, other: Found | None, key: str) -> float | None:
    """The difference of a figure, where both rows are there."""
    return None if one is None or other is None else one[key] - other[key]


def compared(ours: Found | None, theirs: Found | None) -> str:
    """Both perplexities of LDA, in a sentence."""
    if ours is None or theirs is None:
        return ""
    ratio = ours["perplexity"] / theirs["perplexity"] - 1
    return f"Our LDA's perplexity is {abs(ratio):.1%} {'above' if ratio > 0 else 'below'} that of scikit-learn's.\n"


def section(rows: Rows, root: Path | None) -> str:
    """Planted topics, and the news where they are at hand."""
    left_out = "### News\n\nLeft out: BBC News is read from `PYRO_VAE_DATA`, which is not set.\n"
    return f"{planted_section(rows)}\n{left_out if root is None else news_section(rows, root)}"
