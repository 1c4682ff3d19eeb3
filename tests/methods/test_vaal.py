"""VAAL: sizes and settings as published, its losses, which side D calls labelled, and resumption bit for bit."""

import copy

import numpy as np
import pytest
import torch

from mal.methods.vaal import HIDDEN_UNITS, VAALObjective, latent_size
from mal.models.heads import Discriminator
from mal.models.vae import VAE
from mal.process.device import Device
from mal.process.interrupt import Interrupted
from mal.training.objective import Inputs
from tests.method_settings import build, chain, setting, task_model

CPU = Device(torch.device("cpu"), bf16=False)
METHOD = {"lr": 0.0005, "beta": 1.0, "adversarial_weight": 1.0, "vae_steps": 2}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def objective(**changes):
    torch.manual_seed(0)
    return VAALObjective(VAE(1, 8, 8, width=4), Discriminator(8, 32), METHOD | changes, CPU)


def inputs(labelled, unlabelled, turns=2):
    sides = {"labelled": labelled, "unlabelled": unlabelled}
    labels = torch.full((len(labelled),), -1)
    return {f"{name}_{turn}": Inputs(images, labels) for name, images in sides.items() for turn in range(turns)}


def test_published_sizes():
    vae = VAE(3, 32, 32)
    assert count(vae) == 22_835_139
    assert round(count(vae) / 1e6, 2) == 22.84
    convolutions = [layer for layer in vae.encoder if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [128, 256, 512, 1024]
    shapes = {(layer.kernel_size, layer.stride, layer.padding) for layer in convolutions}
    assert shapes == {((4, 4), (2, 2), (1, 1))}
    discriminator = Discriminator(32, HIDDEN_UNITS)
    linear = [layer for layer in discriminator.layers if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(32, 512), (512, 512), (512, 1)]


def test_published_settings():
    method = chain("vaal").method
    assert (method["width"], method["lr"], method["vae_steps"]) == (128, 5e-4, 2)
    assert (method["beta"], method["adversarial_weight"]) == (1, 1)
    sizes = [latent_size(32, "classification"), latent_size(224, "classification"), latent_size(224, "segmentation")]
    assert sizes == [32, 64, 128]


@pytest.mark.parametrize(
    ("channels", "side", "inner", "grid"),
    [(1, 8, 32, 2), (1, 28, 32, 2), (3, 32, 32, 2), (3, 64, 64, 4), (3, 224, 224, 7)],
)
def test_sizes_from_8_to_224_pixels(channels, side, inner, grid):
    vae = VAE(channels, side, 8, width=2).eval()
    pictures = torch.randn(2, channels, side, side)
    with torch.no_grad():
        reconstruction, mean, log_variance = vae(pictures)
        hidden = vae.encoder[:-1](vae.fit(pictures))
    assert reconstruction.shape == vae.fit(pictures).shape == (2, channels, inner, inner)
    assert mean.shape == log_variance.shape == (2, 8)
    assert hidden.shape[-2:] == (grid, grid)


def test_losses_are_the_sources():
    goal = objective()
    goal.vae.eval()
    pictures = torch.randn(5, 1, 8, 8)
    torch.manual_seed(1)
    losses = {name: loss.item() for name, loss in goal._losses(pictures).items()}
    torch.manual_seed(1)
    with torch.no_grad():
        reconstruction, mean, log_variance = goal.vae(pictures)
        logits = goal.discriminator(mean)
    assert losses["reconstruction"] == pytest.approx(float(((reconstruction - goal.vae.fit(pictures)) ** 2).mean()))
    divergence = 0.5 * (mean.exp().log() ** 2 + log_variance.exp() - log_variance - 1).sum()
    assert losses["divergence"] == pytest.approx(float(divergence), rel=1e-4)
    labelled = torch.nn.functional.binary_cross_entropy_with_logits(logits, torch.ones(5))
    assert losses["adversarial"] == pytest.approx(float(labelled))


def test_two_updates_of_the_vae_to_one_of_its_discriminator():
    goal = objective()
    updates = []
    for name, optimizer in goal.optimizers.items():
        optimizer.register_step_post_hook(lambda *_, name=name: updates.append(name))
    losses = goal.step(inputs(torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)), 0.0)
    assert updates == ["coder", "coder", "judge"]
    assert set(losses) == {"reconstruction", "divergence", "adversarial", "discriminator"}
    assert all(loss.ndim == 0 and torch.isfinite(loss) and not loss.requires_grad for loss in losses.values())


def test_each_optimizer_moves_its_own_network():
    goal = objective()
    pictures = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8)
    judge = copy.deepcopy(goal.discriminator.state_dict())
    goal._train_vae(*pictures)
    assert all(torch.equal(judge[name], value) for name, value in goal.discriminator.state_dict().items())
    coder = [parameter.clone() for parameter in goal.vae.parameters()]
    goal._train_discriminator(*pictures)
    assert all(torch.equal(old, new) for old, new in zip(coder, goal.vae.parameters(), strict=True))
    assert any(not torch.equal(judge[name], value) for name, value in goal.discriminator.state_dict().items())


def test_discriminator_calls_the_labelled_labelled():
    """Both pools with the same label, a known mistake, would leave the two apart by nothing."""
    goal = objective(adversarial_weight=0.0, beta=0.0, lr=0.01)
    torch.manual_seed(2)
    bright, dark = torch.randn(16, 1, 8, 8) + 2, torch.randn(16, 1, 8, 8) - 2
    for _ in range(30):
        goal.step(inputs(bright, dark), 0.0)
    goal.vae.eval()
    with torch.no_grad():
        logits = [goal.discriminator(goal.vae.encode(side)[0]) for side in (bright, dark)]
    assert float(logits[0].min()) > 0 > float(logits[1].max())


def test_the_query_is_the_lowest_of_d(tmp_path):
    at = setting(tmp_path, "vaal_small", "method.width=2", "method.epochs=0.1")
    method = build(at)
    method.fit()
    scores = method.score(task_model(at))
    assert scores["labelledness"].shape == (len(at.unlabelled),)
    picks = method.select(scores, 30).positions
    rest = np.delete(scores["labelledness"], picks)
    assert scores["labelledness"][picks].max() <= rest.min()
    assert np.array_equal(method.score(task_model(at, seed=1))["labelledness"], scores["labelledness"])


def test_an_interrupted_training_equals_an_undisturbed_one(tmp_path, monkeypatch):
    settings = ("vaal_small", "method.width=2", "method.epochs=0.5")
    undisturbed = build(setting(tmp_path / "a", *settings))
    undisturbed.fit()

    first = build(setting(tmp_path / "b", *settings))
    step, done = VAALObjective.step, []

    def stopping(self, *arguments):
        done.append(1)
        if len(done) == 4:
            first.setting._trainer.progress.interrupt.cause = "a test"
        return step(self, *arguments)

    monkeypatch.setattr(VAALObjective, "step", stopping)
    with pytest.raises(Interrupted):
        first.fit()
    assert len(done) == 4
    second = build(setting(tmp_path / "b", *settings))
    second.fit()
    assert 4 < len(done) == -(-0.5 * 1347 // 64)
    for name, module in undisturbed.objective.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, second.objective.modules[name].state_dict()[key]), key
    assert undisturbed.setting._trainer.history == second.setting._trainer.history
    scores = [method.score(task_model(method.setting))["labelledness"] for method in (undisturbed, second)]
    assert np.array_equal(*scores)


def test_the_last_round_trains_nothing_for_a_query(tmp_path):
    at = setting(tmp_path, "vaal", "rounds=1")
    build(at).fit()
    assert at._trainer.history == {}
