"""Algorithm 1 on maps of features: the signs of its game, pixel averages, golden losses."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mal.minimax import Networks, build_networks, entropy
from mal.training.objective import Inputs
from tests.chains import CPU
from tests.test_chain_maps import scenes_config
from tests.test_minimax import Watch, finite_difference, named, noise


def small_networks() -> Networks:
    """F, C and D in float64."""
    torch.manual_seed(0)
    networks = build_networks(scenes_config("backbone.width=2", "minimax.temperature=0.5"), CPU)
    for module in (networks.encoder, networks.classifier, networks.discriminator):
        module.double().to(memory_format=torch.contiguous_format).train()  # type: ignore[call-overload]
    return networks


def batches(seed: int = 1) -> dict[str, Inputs]:
    """Four labelled images with maps of which a part is not counted, and five unlabelled ones."""
    maps = np.random.default_rng(seed).integers(0, 11, (4, 16, 16), dtype=np.uint8)
    maps[:, :4], maps[3] = 255, 255
    hidden = torch.full((5, 16, 16), 255, dtype=torch.uint8)
    return {
        "labelled": Inputs(noise(4, 1, 16, 16, seed=seed), torch.from_numpy(maps)),
        "unlabelled": Inputs(noise(5, 1, 16, 16, seed=seed + 100), hidden),
    }


def test_entropy_is_the_mean_over_all_pixels() -> None:
    logits = noise(2, 5, 3, 4)
    rows = logits.permute(0, 2, 3, 1).reshape(-1, 5)
    assert entropy(logits).item() == pytest.approx(entropy(rows).item(), rel=1e-12)


def test_cross_entropy_of_the_step_counts_the_known_pixels_alone() -> None:
    networks, inputs = small_networks(), batches()
    labelled = inputs["labelled"]
    with torch.no_grad():
        log_p = networks.classifier(networks.encoder(labelled.images)).log_softmax(1)
    known = labelled.labels != 255
    picked = log_p.gather(1, torch.where(known, labelled.labels, 0).long()[:, None])[:, 0]
    losses = Watch(networks, lr_f=0.0, lr_c=0.0, lr_d=0.0).step(inputs)
    assert losses["cross_entropy"].item() == pytest.approx(-picked[known].mean().item(), rel=1e-6)


def test_f_descends_the_entropy_and_the_prototypes_ascend_it() -> None:
    networks, weight, inputs = small_networks(), 0.7, batches()
    watch = Watch(networks, entropy_weight=weight, lr_f=0.0, lr_c=0.0, lr_d=0.0)
    watch.step(inputs)
    (_, played) = watch.updates[1]

    def value() -> Tensor:
        return entropy(networks.classifier(networks.encoder(inputs["unlabelled"].images)))

    checked = {"F.layers.0.0.weight": 1, "F.layers.5.0.weight": 1, "F.layers.5.1.bias": 1, "C.prototypes.weight": -1}
    for name, sign in checked.items():
        parameter, gradient = named(networks)[name], played[name]
        assert gradient is not None
        for position in gradient.abs().flatten().topk(4).indices.tolist():
            slope = finite_difference(value, parameter, position)
            # Adam descends the gradient it is given: +dH goes down H, -dH goes up.
            assert gradient.reshape(-1)[position].item() == pytest.approx(sign * weight * slope, rel=1e-4), name
            assert abs(slope) > 1e-6


def test_discriminators_loss_never_reaches_f_and_the_game_never_d() -> None:
    watch = Watch(small_networks())
    watch.step(batches())
    assert [name for name, _ in watch.updates] == ["game", "game", "judge"]
    for update, (_, found) in enumerate(watch.updates):
        for name, gradient in found.items():
            assert (gradient is not None) == (name.startswith("D.") == (update == 2)), (update, name)


def test_a_batch_of_maps_without_a_class_leaves_the_supervised_gradient_at_zero() -> None:
    networks, inputs = small_networks(), batches()
    nothing = torch.full_like(inputs["labelled"].labels, 255)
    watch = Watch(networks, lr_f=0.0, lr_c=0.0, lr_d=0.0)
    losses = watch.step(inputs | {"labelled": Inputs(inputs["labelled"].images, nothing)})
    assert losses["cross_entropy"].item() == 0
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all((g == 0).all() for g in watch.updates[0][1].values() if g is not None)


def test_golden_losses() -> None:
    watch = Watch(small_networks(), entropy_weight=0.1, temperature=0.5)
    found = []
    for t in range(4):
        losses = watch.step(batches(seed=t + 1))
        found.append([losses[k].item() for k in ("cross_entropy", "entropy", "discriminator")])
    assert np.array(found) == pytest.approx(np.array(GOLDEN), rel=1e-4)


GOLDEN = [
    [2.4781517, 2.3100762, 1.3939943],
    [2.4677762, 2.3191590, 1.3926363],
    [2.5015334, 2.3183224, 1.3782718],
    [2.4761189, 2.3122849, 1.3820419],
]
