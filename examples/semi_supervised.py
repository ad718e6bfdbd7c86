"""A hundred labels among 1,297 pictures: M2 learns what digits look like from all, what they are called from few."""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from torchvision.utils import make_grid

import pyro_vae as pv

EPOCHS = int(sys.argv[1]) if len(sys.argv) > 1 else 80
LABELS, STYLES = 100, 8

if __name__ == "__main__":
    data = pv.load_data("partly_labelled", labels=LABELS, copies=5, binarize="dynamic")
    torch.manual_seed(0)
    m2 = pv.models.M2((1, 8, 8), num_labels=10, hidden=(200,), data_mean=data.facts["data_mean"])
    pv.train(m2, data, EPOCHS, progress=False)
    result = pv.evaluate(m2, data, "classify", progress=False)
    print(f"M2, {LABELS} labels and all pictures: {result.mean:.1%} ± {result.standard_error:.1%} errors")

    known = np.flatnonzero(data.train["label"] >= 0)
    x, label = data.undrawn["x"][known].flatten(1), data.train["label"][known]
    regression = LogisticRegression(max_iter=1000).fit(x, label)
    wrong = regression.predict(data.test["x"].flatten(1)) != data.test["truth"].numpy()
    print(f"logistic regression, the {LABELS} labels alone: {wrong.mean():.1%} errors")
    bound = pv.evaluate(m2, data, "importance", particles=100, progress=False)
    print(f"log p(x) of the test data, whose labels are hidden: {bound.mean:.2f} ± {bound.standard_error:.2f} nats")

    z = torch.randn(STYLES, 1, 10).expand(STYLES, 10, 10)
    with torch.no_grad():
        features = m2.decoder(torch.cat([z, torch.eye(10).expand(STYLES, 10, 10)], -1))
        means = m2.likelihood(features).mean.flatten(0, 1)
    figure = Figure(figsize=(9, 4), layout="constrained")
    first, second = figure.subplots(1, 2)
    first.imshow(make_grid(means, nrow=10, padding=1)[0], cmap="gray")
    first.set(title="a style in each row, a label in each column", xticks=[], yticks=[])
    counts = torch.zeros(10, 10).index_put_((result.label, result.guess), torch.ones(()), accumulate=True)
    second.imshow(counts, cmap="Blues")
    for row, column in counts.nonzero().tolist():
        color = "white" if counts[row, column] > counts.max() / 2 else "black"
        second.text(column, row, f"{counts[row, column]:.0f}", ha="center", va="center", color=color)
    second.set(
        title=f"{result.mean:.1%} errors from {LABELS} labels", xlabel="most probable label", ylabel="true label"
    )
    second.set(xticks=range(10), yticks=range(10))
    pv.plots.save(figure, Path("semi_supervised.png"))
