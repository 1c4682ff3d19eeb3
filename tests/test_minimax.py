"""Algorithm 1: its losses, the signs of its game, its three updates, and what its ablations leave out."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from mal.config.schema import Minimax
from mal.minimax import EPSILON, UPDATES, MinimaxObjective, Networks, build_networks, discriminator_loss, entropy
from mal.models.heads import CosineClassifier, Discriminator
from mal.training.objective import Inputs
from tests.chains import CPU, chain_config

DOUBLE = torch.float64


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def settings(**changes: Any) -> Minimax:
    return Minimax(**(vars(chain_config().minimax) | {"temperature": 0.5} | changes))


def small_networks() -> Networks:
    """F, C and D in float64, so that finite differences and references agree to many digits."""
    torch.manual_seed(0)
    networks = build_networks(chain_config("backbone.width=2", "minimax.temperature=0.5"), CPU)
    for module in (networks.encoder, networks.classifier, networks.discriminator):
        module.double().train()
    return networks


def batches(seed: int = 1) -> dict[str, Inputs]:
    """Eight labelled images and ten unlabelled ones, whose labels are hidden."""
    return {
        "labelled": Inputs(noise(8, 1, 8, 8, seed=seed), torch.arange(8) % 10),
        "unlabelled": Inputs(noise(10, 1, 8, 8, seed=seed + 100), torch.full((10,), -1)),
    }


def named(networks: Networks) -> dict[str, nn.Parameter]:
    parts = {"F": networks.encoder, "C": networks.classifier, "D": networks.discriminator}
    return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}


def weights(networks: Networks) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in named(networks).items()}


def gradients(networks: Networks) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in named(networks).items()}


class Watch:
    """Gradients and weights before and after each update of a step."""

    def __init__(self, networks: Networks, **changes: Any) -> None:
        self.networks = networks
        self.objective = MinimaxObjective(networks, settings(**changes), CPU)
        self.updates: list[tuple[str, dict[str, Tensor | None]]] = []
        self.after: list[dict[str, Tensor]] = []
        for name, optimizer in self.objective.optimizers.items():
            optimizer.register_step_pre_hook(self._before(name))
            optimizer.register_step_post_hook(self._after)

    def _before(self, name: str) -> Callable[..., None]:
        return lambda *_: self.updates.append((name, gradients(self.networks)))

    def _after(self, *_: Any) -> None:
        self.after.append(weights(self.networks))
        for p in named(self.networks).values():
            p.grad = None  # so that the next update shows what it alone computes

    def step(self, inputs: dict[str, Inputs] | None = None) -> dict[str, Tensor]:
        return self.objective.step(inputs or batches(), 0.0)


# ------------------------------------------------------------------------- the losses, in closed form


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_entropy_of_a_uniform_prediction_is_log_k(classes: int) -> None:
    assert entropy(torch.zeros(5, classes, dtype=DOUBLE)).item() == pytest.approx(math.log(classes), abs=2e-5 * classes)


def test_entropy_of_a_sure_prediction_is_nothing() -> None:
    sure = torch.tensor([[400.0, 0.0, 0.0]], dtype=DOUBLE)
    assert entropy(sure).item() == pytest.approx(0, abs=2e-5)
    assert torch.isfinite(entropy(sure.float()))


def test_entropy_is_the_mean_of_minus_sum_p_log_p() -> None:
    logits = noise(20, 7)
    p = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(1, keepdims=True)
    assert entropy(logits).item() == pytest.approx(-(p * np.log(p + EPSILON)).sum(1).mean(), rel=1e-12)
    assert entropy(logits).item() == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-4)


def test_entropys_gradient_is_its_finite_difference() -> None:
    torch.autograd.gradcheck(entropy, (noise(3, 5).requires_grad_(),))


def test_discriminator_loss_is_binary_cross_entropy_with_labelled_1_and_unlabelled_0() -> None:
    labelled, unlabelled = noise(6, seed=1), noise(9, seed=2)
    p, q = torch.sigmoid(labelled), torch.sigmoid(unlabelled)
    assert discriminator_loss(labelled, unlabelled).item() == pytest.approx(
        (-p.log().mean() - (1 - q).log().mean()).item()
    )
    assert discriminator_loss(torch.zeros(3), torch.zeros(5)).item() == pytest.approx(2 * math.log(2))
    assert discriminator_loss(torch.full((2,), 30.0), torch.full((2,), -30.0)).item() < 1e-9
    assert discriminator_loss(torch.full((2,), -30.0), torch.full((2,), 30.0)).item() == pytest.approx(60)


def test_discriminator_loss_pushes_the_pools_apart() -> None:
    labelled, unlabelled = noise(6, seed=1).requires_grad_(), noise(9, seed=2).requires_grad_()
    discriminator_loss(labelled, unlabelled).backward()
    assert (labelled.grad < 0).all()
    assert (unlabelled.grad > 0).all()
    torch.autograd.gradcheck(discriminator_loss, (labelled, unlabelled))


# ------------------------------------------------------------------------- the game's signs


def finite_difference(value: Callable[[], Tensor], parameter: nn.Parameter, position: int) -> float:
    flat, step = parameter.data.view(-1), 1e-6
    old = flat[position].item()
    sides = []
    for sign in (1, -1):
        flat[position] = old + sign * step
        with torch.no_grad():
            sides.append(value().item())
    flat[position] = old
    return (sides[0] - sides[1]) / (2 * step)


def test_f_and_the_bottleneck_descend_the_entropy_and_the_prototypes_ascend_it() -> None:
    networks, weight = small_networks(), 0.7
    watch = Watch(networks, entropy_weight=weight, lr_f=0.0, lr_c=0.0, lr_d=0.0)
    inputs = batches()
    watch.step(inputs)
    (_, played) = watch.updates[1]

    def value() -> Tensor:
        return entropy(networks.classifier(networks.encoder(inputs["unlabelled"].images)))

    checked = {"F.layers.0.weight": 1, "F.layers.13.bias": 1, "C.bottleneck.weight": 1, "C.bottleneck.bias": 1}
    for name, sign in (checked | {"C.prototypes.weight": -1}).items():
        parameter, gradient = named(networks)[name], played[name]
        assert gradient is not None
        positions = gradient.abs().flatten().topk(4).indices.tolist()
        for position in positions:
            slope = finite_difference(value, parameter, position)
            # Adam descends the gradient it is given: +dH goes down H, -dH goes up.
            assert gradient.view(-1)[position].item() == pytest.approx(sign * weight * slope, rel=1e-4), name
            assert abs(slope) > 1e-6


@pytest.mark.parametrize(("rates", "direction"), [({"lr_c": 0.0}, -1), ({"lr_f": 0.0}, 1)])
def test_alone_f_lowers_the_entropy_and_mostly_prototypes_raise_it(rates: dict[str, float], direction: int) -> None:
    networks = small_networks()
    if "lr_f" in rates:
        networks.classifier.bottleneck.requires_grad_(False)
    watch = Watch(networks, entropy_weight=1.0, discriminator=False, **({"lr_f": 1e-4, "lr_c": 1e-4} | rates))
    images = batches()["unlabelled"].images

    def value() -> float:
        with torch.no_grad():
            return entropy(networks.classifier(networks.encoder(images))).item()

    before = value()
    for _ in range(5):
        watch.objective._play_entropy(batches()["unlabelled"])
    assert (value() - before) * direction > 1e-4


def test_lambda_scales_the_entropys_gradient_and_nothing_else() -> None:
    found = {}
    for weight in (0.1, 0.3):
        watch = Watch(small_networks(), entropy_weight=weight, lr_f=0.0, lr_c=0.0)
        watch.step()
        found[weight] = watch.updates
    for name, gradient in found[0.1][1][1].items():
        if name.startswith(("F.", "C.")):
            torch.testing.assert_close(3 * gradient, found[0.3][1][1][name])
    for update in (0, 2):
        for name, gradient in found[0.1][update][1].items():
            torch.testing.assert_close(gradient, found[0.3][update][1][name])


def test_discriminators_loss_never_reaches_f() -> None:
    networks = small_networks()
    watch = Watch(networks)
    watch.step()
    names = [name for name, _ in watch.updates]
    assert names == ["game", "game", "judge"]
    judged = watch.updates[2][1]
    for name, gradient in judged.items():
        if name.startswith("D."):
            assert gradient is not None
            assert gradient.abs().max() > 0
        else:
            assert gradient is None, f"D's loss reached {name}"
    for name, weight in watch.after[1].items():
        moved = not torch.equal(weight, watch.after[2][name])
        assert moved == name.startswith("D."), name


def test_the_games_updates_leave_the_discriminator_alone() -> None:
    networks = small_networks()
    before = weights(networks)
    watch = Watch(networks)
    watch.step()
    for update in (0, 1):
        assert all(g is None for name, g in watch.updates[update][1].items() if name.startswith("D."))
    for name in before:
        assert torch.equal(before[name], watch.after[1][name]) == name.startswith("D."), name


# ------------------------------------------------------------------------- the step as a whole


class PlainAdam:
    """Adam written out (Kingma and Ba 2015, Algorithm 1)."""

    def __init__(self, parameters: list[Tensor], lr: float) -> None:
        self.parameters, self.lr, self.t = parameters, lr, 0
        self.m = [torch.zeros_like(p) for p in parameters]
        self.v = [torch.zeros_like(p) for p in parameters]

    def update(self, found: tuple[Tensor, ...]) -> None:
        self.t += 1
        for p, g, m, v in zip(self.parameters, found, self.m, self.v, strict=True):
            m.copy_(0.9 * m + 0.1 * g)
            v.copy_(0.999 * v + 0.001 * g * g)
            hat = (m / (1 - 0.9**self.t)) / ((v / (1 - 0.999**self.t)).sqrt() + 1e-8)
            p.data -= self.lr * hat


def plain_algorithm_1(networks: Networks, steps: int, weight: float, rates: tuple[float, float, float]) -> list[float]:
    """Three updates one after the other, the game by two explicit gradients; returns the last step's losses."""
    encoder, classifier, judge = networks.encoder, networks.classifier, networks.discriminator
    below, prototypes = list(classifier.bottleneck.parameters()), [classifier.prototypes.weight]
    f = PlainAdam(list(encoder.parameters()), rates[0])
    c = PlainAdam(below + prototypes, rates[1])
    d = PlainAdam(list(judge.parameters()), rates[2])

    def logits(features: Tensor) -> Tensor:
        hidden = classifier.bottleneck(features)
        return hidden / hidden.norm(dim=1, keepdim=True) @ prototypes[0].T / 0.5

    losses: list[float] = []
    for t in range(steps):
        inputs = batches(seed=t + 1)
        labelled = encoder(inputs["labelled"].images)
        p = logits(labelled).softmax(1)
        cross_entropy = -p[torch.arange(8), inputs["labelled"].labels].log().mean()
        found = torch.autograd.grad(cross_entropy, f.parameters + c.parameters)
        f.update(found[: len(f.parameters)])
        c.update(found[len(f.parameters) :])

        unlabelled = encoder(inputs["unlabelled"].images)
        p = logits(unlabelled).softmax(1)
        h = -(p * (p + 1e-5).log()).sum(1).mean()
        found = torch.autograd.grad(h, f.parameters + c.parameters)
        f.update(tuple(weight * g for g in found[: len(f.parameters)]))
        down, up = found[len(f.parameters) : -1], found[-1]
        c.update((*(weight * g for g in down), -weight * up))

        real, fake = judge(labelled.detach()).sigmoid(), judge(unlabelled.detach()).sigmoid()
        binary = -real.log().mean() - (1 - fake).log().mean()
        d.update(torch.autograd.grad(binary, d.parameters))
        losses = [cross_entropy.item(), h.item(), binary.item()]
    return losses


def test_steps_equal_a_plain_reading_of_algorithm_1() -> None:
    networks = small_networks()
    reference = copy.deepcopy(networks)
    rates = (2e-3, 3e-3, 5e-3)
    objective = MinimaxObjective(
        networks, settings(entropy_weight=0.4, lr_f=rates[0], lr_c=rates[1], lr_d=rates[2]), CPU
    )
    for t in range(4):
        losses = objective.step(batches(seed=t + 1), t / 4)
    expected = plain_algorithm_1(reference, 4, 0.4, rates)
    assert [losses[k].item() for k in ("cross_entropy", "entropy", "discriminator")] == pytest.approx(
        expected, rel=1e-6
    )
    for name, weight in weights(reference).items():
        torch.testing.assert_close(weights(networks)[name], weight, rtol=1e-4, atol=1e-6, msg=name)


def test_nothing_is_forwarded_twice_and_d_sees_the_features_already_computed() -> None:
    networks = small_networks()
    seen: dict[str, list[Tensor]] = {"F": [], "C": [], "D": []}
    networks.encoder.register_forward_hook(lambda m, i, out: seen["F"].append(out.detach().clone()))
    networks.classifier.register_forward_hook(lambda m, i, out: seen["C"].append(i[0].detach().clone()))
    networks.discriminator.register_forward_hook(lambda m, i, out: seen["D"].append(i[0].clone()))
    MinimaxObjective(networks, settings(), CPU).step(batches(), 0.0)
    assert {part: len(calls) for part, calls in seen.items()} == {"F": 2, "C": 2, "D": 1}
    assert [len(features) for features in seen["F"]] == [8, 10]
    assert torch.equal(seen["D"][0], torch.cat(seen["F"]))
    assert torch.equal(torch.cat(seen["C"]), torch.cat(seen["F"]))


def test_hidden_labels_of_unlabelled_images_do_not_matter() -> None:
    found = []
    for label in (-1, 3):
        networks, inputs = small_networks(), batches()
        inputs["unlabelled"] = Inputs(inputs["unlabelled"].images, torch.full((10,), label))
        MinimaxObjective(networks, settings(), CPU).step(inputs, 0.0)
        found.append(weights(networks))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_d_learns_that_labelled_is_1() -> None:
    networks = small_networks()
    objective = MinimaxObjective(networks, settings(lr_d=0.05), CPU)
    d = networks.discriminator
    size = d.layers[0].in_features
    labelled, unlabelled = noise(8, size, seed=5) + 1, noise(10, size, seed=6) - 1
    first = objective._train_discriminator(labelled, unlabelled)
    for _ in range(30):
        last = objective._train_discriminator(labelled, unlabelled)
    assert last < 0.1 < first
    assert d(labelled).sigmoid().min() > 0.5 > d(unlabelled).sigmoid().max()


# ------------------------------------------------------------------------- ablations (Section 5)


def test_without_the_game_f_and_c_learn_from_labels_alone_and_d_still_trains() -> None:
    networks = small_networks()
    watch = Watch(networks, entropy_weight=0.0)
    losses = watch.step()
    assert [name for name, _ in watch.updates] == ["game", "judge"]
    supervised = small_networks()
    Watch(supervised, entropy_weight=0.0, discriminator=False).step()
    for name, weight in weights(supervised).items():
        if not name.startswith("D."):
            assert torch.equal(weight, weights(networks)[name]), name
    assert losses.keys() == {"cross_entropy", "entropy", "discriminator"}
    assert 0 < losses["entropy"] < math.log(10) + 0.01


def test_without_d_the_game_is_the_same_and_d_does_not_move() -> None:
    networks, full = small_networks(), small_networks()
    before = weights(networks)
    losses = MinimaxObjective(networks, settings(discriminator=False), CPU).step(batches(), 0.0)
    MinimaxObjective(full, settings(), CPU).step(batches(), 0.0)
    assert losses.keys() == {"cross_entropy", "entropy"}
    for name in before:
        same_as = before if name.startswith("D.") else weights(full)
        assert torch.equal(weights(networks)[name], same_as[name]), name


def test_without_both_unlabelled_images_are_not_looked_at() -> None:
    networks = small_networks()
    calls: list[int] = []
    networks.encoder.register_forward_hook(lambda m, i, out: calls.append(len(out)))
    losses = MinimaxObjective(networks, settings(entropy_weight=0.0, discriminator=False), CPU).step(batches(), 0.0)
    assert calls == [8]
    assert losses.keys() == {"cross_entropy"}


# ------------------------------------------------------------------------- golden losses


def test_golden_losses() -> None:
    # Mostly in float64, so that the order of a CPU's sums does not show in the digits compared.
    networks = small_networks()
    objective = MinimaxObjective(networks, settings(entropy_weight=0.1, temperature=0.5), CPU)
    found = []
    for t in range(5):
        losses = objective.step(batches(seed=t + 1), t / 5)
        found.append([losses[k].item() for k in ("cross_entropy", "entropy", "discriminator")])
    assert np.array(found) == pytest.approx(np.array(GOLDEN), rel=1e-4)


GOLDEN = [
    [2.1839726, 2.2233520, 1.4052410],
    [2.3992973, 2.2164512, 1.3898003],
    [2.3063912, 2.2235236, 1.3834364],
    [2.2292078, 2.2305360, 1.3934968],
    [2.2372474, 2.2231522, 1.3955190],
]


# ------------------------------------------------------------------------- options where the paper is silent


def statistics(network: nn.Module) -> list[Tensor]:
    return [b.clone() for name, b in network.named_buffers() if name.endswith(("running_mean", "running_var"))]


def trained_once(**changes: Any) -> tuple[MinimaxObjective, dict[str, Tensor], dict[str, Tensor]]:
    """An objective after one step, the step's losses, and the weights before it."""
    networks = small_networks()
    before = weights(networks)
    objective = MinimaxObjective(networks, settings(**changes), CPU, steps=10)
    return objective, objective.step(batches(), 0.5), before


def test_without_the_game_the_unlabelled_leave_no_trace_in_f() -> None:
    alone, _, _ = trained_once(entropy_weight=0.0, discriminator=False)
    with_d, _, _ = trained_once(entropy_weight=0.0)
    for one, other in zip(statistics(alone.networks.encoder), statistics(with_d.networks.encoder), strict=True):
        assert torch.equal(one, other)
    playing, _, _ = trained_once()
    assert not torch.equal(statistics(playing.networks.encoder)[0], statistics(alone.networks.encoder)[0])


def test_ds_loss_reaches_f_only_where_asked() -> None:
    apart, _, _ = trained_once()
    reached, _, _ = trained_once(d_to_f=1.0)
    left, joined = weights(apart.networks), weights(reached.networks)
    assert all(torch.equal(left[name], joined[name]) for name in left if name.startswith("C"))
    assert any(not torch.equal(left[name], joined[name]) for name in left if name.startswith("F"))
    # F descends D's loss, on features of that moment.
    watch = Watch(small_networks(), d_to_f=0.25, lr_f=0.0, lr_c=0.0)
    watch.objective.step(batches(), 0.0)
    assert [name for name, _ in watch.updates] == ["game", "game", "judge", "game"]
    _, seen = watch.updates[2]
    networks = small_networks()
    both = torch.cat([networks.encoder(batches()[part].images) for part in ("labelled", "unlabelled")])
    logits = networks.discriminator(both)
    discriminator_loss(logits[:8], logits[8:]).backward()
    for name, parameter in named(networks).items():
        if name.startswith("F"):
            torch.testing.assert_close(seen[name], 0.25 * parameter.grad, rtol=1e-5, atol=1e-7)


def test_d_learns_on_features_as_it_is_asked() -> None:
    still = {"lr_f": 0.0, "lr_c": 0.0, "lr_d": 0.0}
    objective, losses, _ = trained_once(d_features="eval", **still)
    networks, inputs = objective.networks, batches()
    assert networks.encoder.training
    networks.encoder.eval()
    logits = [networks.discriminator(networks.encoder(inputs[part].images)) for part in ("labelled", "unlabelled")]
    expected = discriminator_loss(logits[0], logits[1])
    assert float(losses["discriminator"]) == pytest.approx(float(expected.detach()), rel=1e-6)
    _, as_trained, _ = trained_once(**still)
    assert abs(float(as_trained["discriminator"] - losses["discriminator"])) > 1e-4


def test_d_sees_directions_over_t_where_asked() -> None:
    torch.manual_seed(0)
    config = chain_config("backbone.width=2", "minimax.d_input=normalised", "minimax.temperature=0.5")
    judge = build_networks(config, CPU).discriminator
    assert isinstance(judge, Discriminator)
    features = torch.randn(5, 8)
    torch.testing.assert_close(judge(features), judge(3 * features))
    torch.testing.assert_close(judge(features), judge.layers(normalize(features, dim=1) / 0.5).squeeze(1))


def test_prototypes_start_as_mmes_do_where_asked() -> None:
    norms = {}
    for start in ("xavier", "uniform"):
        torch.manual_seed(0)
        classifier = CosineClassifier(512, 256, 10, 0.05, start)
        norms[start] = float(classifier.prototypes.weight.detach().norm(dim=1).mean())
    assert norms["uniform"] == pytest.approx(0.577, abs=0.02)
    assert norms["xavier"] == pytest.approx(1.38, abs=0.05)


def test_rates_follow_the_schedule_and_sgd_takes_nesterovs_momentum() -> None:
    objective, _, before = trained_once(optimizer="sgd", schedule="inverse", lr_f=0.1, lr_c=1.0)
    factor = (1 + 1e-4 * 5) ** -0.75
    assert [group["lr"] for group in objective.game.param_groups] == pytest.approx([0.1 * factor, factor])
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in objective.game.param_groups)
    assert any(
        not torch.equal(before[name], now) for name, now in weights(objective.networks).items() if name[0] == "F"
    )


def test_scores_are_float32_whatever_the_precision_of_training() -> None:
    torch.manual_seed(0)
    judge = Discriminator(64, 32)
    features = torch.randn(20_000, 64).bfloat16()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        training, asked = judge(features), judge.eval()(features)
    assert (training.dtype, asked.dtype) == (torch.bfloat16, torch.float32)
    assert len(training.unique()) < 5000 < 19_000 < len(asked.unique())


@pytest.mark.parametrize("first", ["entropy", "discriminator"])
def test_the_order_of_the_updates_is_as_asked(first: str) -> None:
    watch = Watch(small_networks(), first=first)
    losses = watch.objective.step(batches(), 0.0)
    assert list(losses) == [first, *(name for name in UPDATES if name != first)]
    updated = ["judge", "game", "game"] if first == "discriminator" else ["game", "game", "judge"]
    assert [name for name, _ in watch.updates] == updated
    inputs, networks = batches(), small_networks()
    if first == "entropy":
        expected = entropy(networks.classifier(networks.encoder(inputs["unlabelled"].images)))
    else:
        logits = [networks.discriminator(networks.encoder(inputs[p].images)) for p in ("labelled", "unlabelled")]
        expected = discriminator_loss(*logits)
    assert float(losses[first]) == pytest.approx(float(expected.detach()), rel=1e-6), "before the others"


def test_averaged_networks_follow_the_weights_and_are_what_is_asked() -> None:
    networks = small_networks()
    objective = MinimaxObjective(networks, settings(average=0.75), CPU, steps=3)
    expected: dict[str, Tensor] = {}
    for step in range(3):
        objective.step(batches(step), 0.0)
        now = weights(networks)
        expected = {name: 0.75 * expected[name] + 0.25 * now[name] for name in now} if expected else now
    found = weights(objective.trained)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    assert set(objective.modules) > {"encoder", "encoder_average"}, "a checkpoint keeps both"
