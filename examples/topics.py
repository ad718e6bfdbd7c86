"""Topics that were planted in made-up documents, the rows and columns of a square of words, are found again by LDA."""

import sys
from pathlib import Path

import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
SIDE = 5


def planted() -> torch.Tensor:
    """p(word | topic) [10, 25]: even on a row, or on a column."""
    rows = torch.eye(SIDE).repeat_interleave(SIDE, 1)
    return torch.cat([rows, rows.view(SIDE, SIDE, SIDE).transpose(1, 2).reshape(SIDE, -1)]) / SIDE


if __name__ == "__main__":
    data = pv.load_data("planted_topics", side=SIDE, documents=3000)
    how = {"lr": 0.1, "lr_warmup": EPOCHS // 4, "schedule": "cosine", "model_options": {"topics": 2 * SIDE}}
    run = pv.train("lda", data, EPOCHS, engine="eager", progress=False, **how)
    found = run.pair.topic_words().detach()
    cosines = torch.nn.functional.cosine_similarity(planted().unsqueeze(1), found.unsqueeze(0), dim=-1)
    _, match = linear_sum_assignment(-cosines.numpy())
    result = pv.evaluate(run, data, "topics", particles=100, top=SIDE, engine="eager", progress=False)
    print(f"cosine of a planted topic and the one that is found: {cosines.amax(1).min():.3f} or more")
    print(result.estimate.lines[0])

    document = data.test["x"][:1]
    shares = pv.encode(run, document.float())["doc_topics_mean"][0]
    best = shares.argmax()
    words = [run.pair.vocabulary[word] for word in found[best].topk(SIDE).indices]
    print(f"a new document of {int(document.sum())} words is {shares[best]:.0%} of the topic of {', '.join(words)}")

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    cells = figure.subplots(4, 2 * SIDE)
    shown = {"planted": planted(), "found": found[match], "documents": data.test["x"][: 2 * SIDE].float()}
    means = pv.encode(run, shown["documents"])["doc_topics_mean"] @ found
    for row, (name, pictures) in enumerate({**shown, "their words'\nprobabilities": means}.items()):
        cells[row, 0].set_ylabel(name)
        for axes, picture in zip(cells[row], pictures, strict=True):
            axes.imshow(picture.view(SIDE, SIDE), cmap="Blues")
            axes.set(xticks=[], yticks=[])
    pv.plots.save(figure, Path("topics.png"))
