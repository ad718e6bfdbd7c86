"""Figures: how many panels and cells they have, that they take any pair, and that they leave no trace."""

import copy
import math
from statistics import NormalDist

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.image import imread
from torch import Tensor, nn

from pyro_vae import plots
from pyro_vae.data import Split
from pyro_vae.errors import RunError
from pyro_vae.models.vae import VAE
from pyro_vae.pair.pair import Pair
from pyro_vae.plots.mosaic import mosaic, value_range

SIDE = 6


class Counts(nn.Module):
    """A pair of no base class, with site and field names of its own: Poisson counts of shape [d]."""

    def __init__(self, size: int = 5, latent_dim: int = 2):
        super().__init__()
        self.latent_dim = latent_dim
        self.heads, self.rate = nn.Linear(size, 2 * latent_dim), nn.Linear(latent_dim, size)

    def model(self, counts: Tensor) -> None:
        with pyro.plate("data", len(counts), dim=-1):
            code = pyro.sample("code", dist.Normal(counts.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("seen", dist.Poisson(self.rate(code).exp()).to_event(1), obs=counts)

    def guide(self, counts: Tensor) -> None:
        with pyro.plate("data", len(counts), dim=-1):
            loc, log_scale = self.heads(counts).chunk(2, -1)
            pyro.sample("code", dist.Normal(loc, log_scale.exp()).to_event(1))


class Copies(Pair):
    """p(x|z, hint) with mean `hint` alone, its guide with batch normalisation and dropout."""

    def __init__(self):
        super().__init__()
        self.norm, self.dropout = nn.BatchNorm1d(4), nn.Dropout(0.5)

    def model(self, x: Tensor, hint: Tensor) -> None:
        with self.plate(len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(hint, 0.1).to_event(2), obs=x)

    def guide(self, x: Tensor, hint: Tensor) -> None:
        with self.plate(len(x)):
            features = self.dropout(self.norm(x.flatten(1)))
            pyro.sample("z", dist.Normal(features[:, :2], 1.0).to_event(1))


def binary_vae(latent_dim: int = 2) -> VAE:
    torch.manual_seed(0)
    return VAE((1, SIDE, SIDE), latent_dim, hidden=(8,))


def binary_split(n: int = 30) -> Split:
    generator = torch.Generator().manual_seed(1)
    x = torch.bernoulli(torch.full((n, 1, SIDE, SIDE), 0.4), generator=generator)
    return Split({"x": x, "label": torch.arange(n) % 3})


def count_split(n: int = 20) -> Split:
    return Split({"counts": torch.poisson(torch.full((n, 5), 3.0), generator=torch.Generator().manual_seed(2))})


def history(epochs: int) -> list[dict[str, float]]:
    rows = []
    for epoch in range(1, epochs + 1):
        loss = 100.0 + 900.0 * math.exp(-epoch)
        parts = {"valid_loss": loss + 1, "valid_rate": 20.0, "valid_distortion": loss - 19}
        rows.append({"epoch": epoch, "loss": loss, **parts})
    return rows


def cells(figure) -> np.ndarray:
    """The images of a mosaic [rows, columns, height, width, 3], cut apart by the dot between them."""
    grid = np.asarray(figure.axes[0].images[0].get_array())[1:, 1:]
    rows, columns = grid.shape[0] // (SIDE + 1), grid.shape[1] // (SIDE + 1)
    assert grid.shape == (rows * (SIDE + 1), columns * (SIDE + 1), 3)
    apart = grid.reshape(rows, SIDE + 1, columns, SIDE + 1, 3).transpose(0, 2, 1, 3, 4)
    return apart[:, :, :SIDE, :SIDE]


def bars(figure) -> int:
    """How many vectors are drawn, by the frames around them."""
    frames = [c for c in figure.axes[0].collections if isinstance(c, PolyCollection)]
    return len(frames[0].get_paths())


def test_loss_curves_have_three_panels_and_early_epochs_do_not_squash_them():
    figure = plots.loss_curves(history(50))
    loss, rate, distortion = figure.axes
    assert [line.get_label() for line in loss.lines[:2]] == ["training loss", "validation loss (−ELBO)"]
    assert "nats per datum" in loss.get_ylabel() and loss.get_xlabel() == "epoch"
    low, high = loss.get_ylim()
    assert low < 100.0 and 101.0 < high < 120.0, "the first loss is 431"
    assert rate.get_ylim()[0] < 20.0 < rate.get_ylim()[1]
    assert "rate" in rate.get_title() and "distortion" in distortion.get_title()


def test_the_end_of_a_curve_that_rises_is_shown():
    rows = history(200)
    rows[-1]["valid_loss"] = 150.0
    assert plots.loss_curves(rows).axes[0].get_ylim()[1] > 150.0


def test_the_best_epoch_is_that_of_the_smallest_validation_loss():
    rows = history(20)
    rows[6]["valid_loss"] = 3.0
    best = plots.loss_curves(rows).axes[0].lines[2]
    assert best.get_xdata()[0] == 7 and best.get_ydata()[0] == 3.0 and "3.00 at epoch 7" in best.get_label()


@pytest.mark.parametrize("epochs", [1, 3])
def test_short_histories_are_drawn(epochs, tmp_path):
    plots.save(plots.loss_curves(history(epochs)), tmp_path / "loss.png")
    assert imread(tmp_path / "loss.png").ndim == 3


def test_no_epoch_is_an_error():
    with pytest.raises(RunError, match="no epoch"):
        plots.loss_curves([])


def test_reconstructions_are_below_their_data():
    vae, split = binary_vae(), binary_split()
    shown = cells(plots.reconstructions(vae, split, n=10))
    assert shown.shape[:2] == (2, 10)
    positions = torch.arange(10) * 3
    x = split["x"][positions]
    np.testing.assert_array_equal(shown[0, ..., 0], x[:, 0].numpy())
    with torch.no_grad():
        z = vae.posterior(vae.encoder(x)).mean
        means = vae.likelihood(vae.decoder(z)).mean
    np.testing.assert_allclose(shown[1, ..., 0], means[:, 0].numpy(), atol=1e-6)


def test_many_reconstructions_are_wrapped_and_the_last_row_is_filled_up():
    shown = cells(plots.reconstructions(binary_vae(), binary_split(25), n=25))
    assert shown.shape[:2] == (6, 9)
    np.testing.assert_array_equal(shown[2, 0, ..., 0], binary_split(25)["x"][9, 0].numpy())
    assert (shown[4:, 7:] == 1).all() and not (shown[4, 6] == 1).all()


def test_reconstructions_of_fewer_data_than_asked_for():
    assert cells(plots.reconstructions(binary_vae(), binary_split(4))).shape[:2] == (2, 4)


def test_samples_are_means_of_the_likelihood_in_a_square_grid():
    shown = cells(plots.samples(binary_vae(), binary_split(3), n=50))
    assert shown.shape[:2] == (7, 8)
    images = shown.reshape(56, SIDE, SIDE, 3)
    assert 0 < images[:50].min() and images[:50].max() < 1, "draws would be 0 or 1"
    assert len(np.unique(images[:50].reshape(50, -1), axis=0)) == 50
    assert (images[50:] == 1).all()


def test_samples_are_given_the_fields_that_the_model_conditions_on_row_by_row():
    hint = torch.linspace(0, 1, 8).reshape(2, 2, 2)
    fields = {"x": torch.zeros(2, 2, 2), "hint": hint}
    grid = np.asarray(plots.samples(Copies(), fields, n=4).axes[0].images[0].get_array())[..., 0]
    np.testing.assert_allclose(grid[1:3, 1:3], hint[0], atol=1e-6)
    np.testing.assert_allclose(grid[1:3, 4:6], hint[1], atol=1e-6)
    np.testing.assert_allclose(grid[4:6, 1:3], hint[0], atol=1e-6)


def test_the_manifold_conditions_on_the_first_row():
    fields = {"x": torch.zeros(2, 2, 2), "hint": torch.tensor([[[0.0, 1.0], [0.2, 0.4]], [[0.0, 0.0], [0.0, 0.0]]])}
    grid = np.asarray(plots.manifold(Copies(), fields, side=3).axes[0].images[0].get_array())[..., 0]
    for row in (1, 4, 7):
        for column in (1, 4, 7):
            tile = grid[row : row + 2, column : column + 2]
            np.testing.assert_allclose(tile, fields["hint"][0], atol=1e-6)


def test_manifold_decodes_the_quantiles_of_a_standard_normal():
    vae = binary_vae()
    figure = plots.manifold(vae, binary_split(), side=5)
    shown = cells(figure)
    assert shown.shape[:2] == (5, 5)
    edge = 1.959964
    with torch.no_grad():
        corners = torch.tensor([[-edge, edge], [edge, edge], [-edge, -edge], [0.0, 0.0]])
        expected = vae.likelihood(vae.decoder(corners)).mean[:, 0].numpy()
    drawn = np.stack([shown[0, 0], shown[0, 4], shown[4, 0], shown[2, 2]])[..., 0]
    np.testing.assert_allclose(drawn, expected, atol=1e-5)
    axes = figure.axes[0]
    assert axes.get_xlabel().startswith("z₁") and axes.get_ylabel().startswith("z₂")
    quarter = f"{NormalDist().inv_cdf(0.7375):.2f}"
    labels = ["−1.96", f"−{quarter}", "0.00", quarter, "1.96"]
    assert [t.get_text() for t in axes.get_xticklabels()] == labels
    assert dict(zip(axes.get_yticks(), [t.get_text() for t in axes.get_yticklabels()], strict=True))[0.5] == "1.96"


@pytest.mark.parametrize("latent_dim", [1, 3])
def test_a_code_that_is_not_planar_has_neither_manifold_nor_scatter(latent_dim):
    vae, split = binary_vae(latent_dim), binary_split()
    assert plots.manifold(vae, split) is None
    assert plots.posterior_means(vae, split) is None


def test_a_plane_outside_the_support_of_the_code_has_no_manifold():
    class Positive(Counts):
        def guide(self, counts: Tensor) -> None:
            with pyro.plate("data", len(counts), dim=-1):
                pyro.sample("code", dist.Gamma(self.heads(counts)[:, :2].exp(), 1.0).to_event(1))

    assert plots.manifold(Positive(), count_split()) is None


def test_posterior_means_are_the_guides_and_coloured_by_label():
    vae, split = binary_vae(), binary_split(30)
    figure = plots.posterior_means(vae, split)
    dots = figure.axes[0].collections[0]
    with torch.no_grad():
        means = vae.posterior(vae.encoder(split["x"])).mean
    np.testing.assert_allclose(dots.get_offsets(), means.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(dots.get_array(), split["label"].numpy())
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["0", "1", "2"]


def test_posterior_means_with_real_labels_have_a_colour_bar_and_without_labels_one_colour():
    x = binary_split()["x"]
    real = plots.posterior_means(binary_vae(), Split({"x": x, "label": torch.linspace(0, 1, 30)}))
    assert len(real.axes) == 2 and real.axes[1].get_ylabel() == "label"
    plain = plots.posterior_means(binary_vae(), Split({"x": x}))
    assert len(plain.axes) == 1 and plain.axes[0].get_legend() is None


def test_posterior_means_are_of_a_limited_number_of_data_from_all_of_the_split():
    figure = plots.posterior_means(binary_vae(), binary_split(30), limit=10)
    assert figure.axes[0].collections[0].get_offsets().shape == (10, 2)
    assert set(figure.axes[0].collections[0].get_array()) == {0}, "every third datum has label 0"


def test_a_users_own_pair_of_counts_is_drawn_as_bars(tmp_path):
    pair, split = Counts(), count_split()
    figures = {
        "reconstructions": (plots.reconstructions(pair, split, n=7), 14),
        "samples": (plots.samples(pair, split, n=16), 16),
        "manifold": (plots.manifold(pair, split, side=4), 16),
    }
    for name, (figure, number) in figures.items():
        assert bars(figure) == number, name
        plots.save(figure, tmp_path / f"{name}.png")
        assert imread(tmp_path / f"{name}.png").ndim == 3
    assert plots.posterior_means(pair, split).axes[0].get_xlabel() == "code₁"
    assert plots.manifold(Counts(latent_dim=3), split) is None


def test_bars_have_the_heights_of_the_counts_on_one_scale():
    split = count_split()
    axes = plots.reconstructions(Counts(), split, n=2).axes[0]
    outlines = next(c for c in axes.collections if isinstance(c, LineCollection)).get_segments()
    counts = split["counts"][[0, 10]].numpy()
    heights = np.stack([line[0, 1] - line[1:-1:2, 1] for line in outlines])
    np.testing.assert_allclose(heights / heights.max(), counts / counts.max(), atol=1e-6)
    assert axes.get_xlabel().startswith("each cell: elements 1 to 5 across, 0 to")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.linspace(0, 1, 1000), (0, 1)),
        (torch.linspace(0.02, 0.9, 1000), (0, 1)),
        (torch.linspace(0, 255, 1000), (0, 255)),
        (torch.linspace(0, 30, 1000), (0, 30)),
        (torch.linspace(-3, 3, 1000), (-3, 3)),
        (torch.cat([torch.linspace(0, 1, 999), torch.tensor([50.0])]), (0, 1)),
        (torch.zeros(1000), (0, 1)),
        (torch.full((1000,), math.nan), (0, 1)),
    ],
)
def test_the_range_of_images_comes_from_their_values(values, expected):
    assert value_range(values.reshape(10, 10, 10)) == pytest.approx(expected, rel=0.02, abs=0.04)


def test_image_grid_has_no_margins_and_whole_dots(tmp_path):
    x = torch.zeros(5, 1, 4, 3)
    x[1] = 1.0
    plots.save_images(x, tmp_path / "grid.png", columns=2)
    picture = imread(tmp_path / "grid.png")[..., :3]
    dots = picture.shape[1] // 9
    assert picture.shape == (16 * dots, 9 * dots, 3)
    small = picture.reshape(16, dots, 9, dots, 3)
    assert (small == small[:, :1, :, :1]).all()
    small = small[:, 0, :, 0, 0]
    assert (small[1:5, 1:4] == 0).all() and (small[1:5, 5:8] == 1).all() and (small[:, 4] == 1).all()


@pytest.mark.parametrize(
    ("shape", "colour"), [((3, 4, 4), True), ((1, 4, 4), False), ((5, 4, 4), False), ((4, 4), False)]
)
def test_channels(shape, colour):
    values = torch.rand(4, *shape, generator=torch.Generator().manual_seed(0))
    grid = np.asarray(plots.image_grid(values).axes[0].images[0].get_array())
    cell = grid[1:5, 1:5]
    assert (cell.std(-1).max() > 0) == colour
    first = values[0].reshape(-1, 4, 4)[0].numpy()
    np.testing.assert_allclose(cell[..., 0], first, atol=1e-6)


def test_a_single_image_and_scalars_are_drawn():
    assert plots.image_grid(torch.rand(1, 1, 4, 4)).axes[0].images
    assert bars(plots.image_grid(torch.rand(3))) == 3
    assert bars(plots.image_grid(torch.rand(3, 1, 40))) == 3


def test_pictures_leave_generators_modes_and_buffers_as_they_were():
    pair, split = Copies().train(), Split({"x": torch.rand(8, 2, 2), "hint": torch.rand(8, 2, 2)})
    pair.norm.eval()
    before, state = copy.deepcopy(pair.state_dict()), torch.get_rng_state()
    for draw in (plots.posterior_means, plots.samples, plots.reconstructions, plots.manifold):
        draw(pair, split)
    assert torch.equal(torch.get_rng_state(), state)
    assert pair.training and pair.dropout.training and not pair.norm.training
    assert all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())


def test_pictures_are_the_same_each_time_even_of_data_that_are_drawn():
    grey = Split({"x": torch.full((10, 1, SIDE, SIDE), 0.5)})
    drawn = grey.then(lambda batch: {**batch, "x": torch.bernoulli(batch["x"])})
    vae = binary_vae()
    for draw in (lambda: plots.samples(vae, binary_split()), lambda: plots.reconstructions(vae, drawn)):
        first = cells(draw())
        torch.rand(3)
        np.testing.assert_array_equal(first, cells(draw()))


def test_means_of_an_evaluated_pair_know_no_dropout():
    pair, split = Copies().train(), Split({"x": torch.rand(8, 2, 2), "hint": torch.rand(8, 2, 2)})
    offsets = plots.posterior_means(pair, split).axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(offsets, split["x"].flatten(1)[:, :2], rtol=1e-4)


def test_an_unknown_format_is_an_error_and_writes_nothing(tmp_path):
    with pytest.raises(RunError, match="png"):
        plots.save_images(torch.rand(1, 4, 4), tmp_path / "picture.xyz")
    assert list(tmp_path.iterdir()) == []


# --- labels -------------------------------------------------------------------------------------------------


class Shades(nn.Module):
    """Pictures whose mean is a pattern of the label plus a style that all pixels share."""

    def __init__(self, labels: int = 3):
        super().__init__()
        self.patterns = nn.Parameter(torch.rand(labels, SIDE, SIDE))

    def model(self, x: Tensor, label: Tensor) -> None:
        known = label >= 0
        with pyro.plate("data", len(x)):
            weights = torch.zeros(len(self.patterns))
            shown = torch.where(known, label, 0)
            y = pyro.sample("label", dist.Categorical(logits=weights), obs=shown, obs_mask=known)
            z = pyro.sample("z", dist.Normal(self.patterns[y].mean((-1, -2)), 1.0))
            mean = self.patterns[y] + z[..., None, None]
            pyro.sample("x", dist.Normal(mean, 0.1).to_event(2), obs=x)

    def guide(self, x: Tensor, label: Tensor) -> None:
        with pyro.plate("data", len(x)):
            with pyro.poutine.mask(mask=label < 0):
                weights = torch.zeros(len(self.patterns))
                pyro.sample("label_unobserved", dist.Categorical(logits=weights), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(x.mean((-1, -2)), 1.0))


def test_the_class_conditional_grid_has_a_column_for_each_label_and_one_style_in_each_row(monkeypatch):
    pair, shown = Shades(), []

    def watched(values, *rest, **how):
        shown.append(values)
        return mosaic(values, *rest, **how)

    monkeypatch.setattr("pyro_vae.plots.figures.mosaic", watched)
    fields = {"x": torch.zeros(2, SIDE, SIDE), "label": torch.tensor([1, 2])}
    figure = plots.class_conditional(pair, fields, styles=4)
    means = shown[0].view(4, 3, SIDE, SIDE)
    centred = means - pair.patterns.detach() - pair.patterns.detach().mean((-1, -2))[:, None, None]
    assert torch.allclose(centred, centred[:, :1, :1, :1].expand_as(centred), atol=1e-5), "one style in each row"
    assert len(centred[:, 0, 0, 0].unique()) == 4
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["0", "1", "2"]
    assert figure.axes[0].get_xlabel() == "label"


def test_there_is_no_class_conditional_grid_of_pairs_without_a_label_or_with_too_many():
    assert plots.class_conditional(VAE((1, SIDE, SIDE), 2, hidden=(8,)), {"x": torch.zeros(2, 1, SIDE, SIDE)}) is None
    many = {"x": torch.zeros(2, SIDE, SIDE), "label": torch.tensor([-1, 2])}
    assert plots.class_conditional(Shades(31), many) is None


def test_a_confusion_matrix_is_shaded_by_the_share_of_its_row():
    figure = plots.confusion_matrix(torch.tensor([[8, 2], [0, 0], [1, 3]]), ["1", "0"], "most probable cluster")
    (axes,) = figure.axes
    assert np.allclose(axes.images[0].get_array(), [[0.8, 0.2], [0, 0], [0.25, 0.75]])
    assert {text.get_text() for text in axes.texts} == {"8", "2", "1", "3"}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1", "0"]
