"""Networks: the appendix's parameter counts, pooling, grey images, initialisation, the cosine classifier."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mal.models.backbones import AveragePool, build_backbone
from mal.models.heads import CosineClassifier, Discriminator, TaskModel, reverse_gradient

# As mal/conf/backbone has them; K = 100 as in the appendix.
PAPER = {
    "resnet18": ({"bottleneck": 256, "discriminator": 512}, (11_176_512, 156_928, 525_825, 11_227_812)),
    "vgg16_bn": ({"bottleneck": 512, "discriminator": 512}, (14_723_136, 12_896_768, 13_108_737, 17_232_036)),
}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def built(name: str, channels: int = 3, **config: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone({"name": name, **config}, channels)


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return built("resnet18")


# ------------------------------------------------------------------------- appendix B, exactly


@pytest.mark.parametrize("name", PAPER)
def test_parameter_counts_are_those_of_the_paper(name: str) -> None:
    from mal.config.compose import compose_sweep
    from mal.minimax import build_networks
    from mal.process.device import Device

    (config,) = compose_sweep(["dataset=cifar100", f"backbone={name}", "methods=[mal]", "seeds=1"]).chains
    with torch.device("meta"):  # shapes count parameters as well as numbers do
        networks = build_networks(config, Device(torch.device("meta"), bf16=False))
        task = TaskModel(networks.encoder, config.dataset.classes)
    modules = (networks.encoder, networks.classifier, networks.discriminator, task)
    sizes, counts = PAPER[name]
    assert {key: config.backbone[key] for key in sizes} == sizes
    assert tuple(map(parameters, modules)) == counts
    assert networks.classifier.prototypes.bias is None


def test_discriminator_has_three_linear_layers_with_relu_between() -> None:
    kinds = [type(layer) for layer in Discriminator(6, 5).layers]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert Discriminator(6, 5)(torch.zeros(4, 6)).shape == (4,)


def test_resnet18_keeps_torchvisions_stem_and_gives_512_features(resnet: nn.Module) -> None:
    stem = resnet.layers.conv1
    assert (stem.kernel_size, stem.stride, stem.out_channels) == ((7, 7), (2, 2), 64)
    assert resnet.features == 512
    assert resnet(torch.zeros(2, 3, 32, 32)).shape == (2, 512)


# ------------------------------------------------------------------------- images in, features out


def test_grey_images_are_repeated_to_three_channels(resnet: nn.Module) -> None:
    resnet.eval()
    grey = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(resnet(grey), resnet(grey.repeat(1, 3, 1, 1)))
        assert not torch.equal(resnet(grey), resnet(grey * torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1)))


@pytest.mark.parametrize("size", [8, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_cnn_takes_the_sizes_it_is_for(size: int, channels: int) -> None:
    network = built("small_cnn", channels, width=4)
    assert network.features == 16
    assert network(torch.zeros(2, channels, size, size)).shape == (2, 16)


def test_vgg_features_are_flattened_7_by_7() -> None:
    with torch.device("meta"):
        network = built("vgg16_bn")
        assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 25_088) == (2, network.features)


@given(st.integers(1, 15), st.integers(1, 15), st.integers(1, 8))
def test_average_pool_is_adaptive_average_pooling_forward_and_backward(height: int, width: int, size: int) -> None:
    ours = torch.randn(2, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theirs = ours.clone().requires_grad_()
    ours.requires_grad_()
    here, there = AveragePool(size)(ours), nn.AdaptiveAvgPool2d(size)(theirs)
    torch.testing.assert_close(here, there)
    weights = torch.randn(there.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (here * weights).sum().backward()
    (there * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(("side", "size"), [(7, 7), (20, 7), (15, 4), (2, 7)])
def test_average_pool_of_features_in_bf16_rounds_once(side: int, size: int) -> None:
    features = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = AveragePool(size)(features)
    assert found.dtype == torch.bfloat16
    exact = nn.functional.adaptive_avg_pool2d(features.double(), size)
    assert ((found.double() - exact).abs() <= exact * 2**-8).all()


# ------------------------------------------------------------------------- initialisation


def test_every_convolution_and_linear_layer_is_xavier_uniform(resnet: nn.Module) -> None:
    layers = [m for m in resnet.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == 20
    for layer in layers:
        receptive = layer.kernel_size[0] * layer.kernel_size[1]
        bound = math.sqrt(6 / ((layer.in_channels + layer.out_channels) * receptive))
        weight = layer.weight.detach()
        assert weight.abs().max() <= bound
        assert weight.abs().max() > 0.99 * bound
        assert abs(weight.std() / (bound / math.sqrt(3)) - 1) < 0.05
        assert abs(weight.mean()) < 0.05 * bound


def test_heads_are_xavier_with_zero_biases() -> None:
    torch.manual_seed(3)
    backbone = nn.Identity()
    backbone.features = 40
    for module in (CosineClassifier(40, 30, 10, 0.05), Discriminator(40, 30), TaskModel(backbone, 10)):
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                assert layer.weight.abs().max() <= math.sqrt(6 / (layer.in_features + layer.out_features))
                assert layer.bias is None or not layer.bias.any()


def test_initialisation_is_drawn_from_torchs_seed() -> None:
    first, again = built("small_cnn", 1, width=4), built("small_cnn", 1, width=4)
    torch.manual_seed(1)
    other = build_backbone({"name": "small_cnn", "width": 4}, 1)
    key = "layers.0.weight"
    assert torch.equal(first.state_dict()[key], again.state_dict()[key])
    assert not torch.equal(first.state_dict()[key], other.state_dict()[key])


# ------------------------------------------------------------------------- the cosine classifier


def cosine(temperature: float = 0.05) -> CosineClassifier:
    torch.manual_seed(4)
    return CosineClassifier(6, 5, 4, temperature).double()


def features(rows: int = 7) -> torch.Tensor:
    return torch.randn(rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("scale", [1e-3, 0.5, 1e4])
def test_logits_do_not_depend_on_the_scale_of_the_features(scale: float) -> None:
    classifier = cosine()  # its biases are zero, so the bottleneck scales with the features
    torch.testing.assert_close(classifier(features() * scale), classifier(features()))
    assert not torch.allclose(classifier(-features()), classifier(features()))


@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
def test_logits_are_prototype_products_of_unit_vectors_divided_by_t(temperature: float) -> None:
    classifier = cosine(temperature)
    hidden = features() @ classifier.bottleneck.weight.T + classifier.bottleneck.bias
    unit = hidden / hidden.norm(dim=1, keepdim=True)
    torch.testing.assert_close(classifier(features()), unit @ classifier.prototypes.weight.T / temperature)


def test_a_lower_temperature_makes_predictions_surer_and_changes_no_decision() -> None:
    cold, warm = cosine(0.05)(features()), cosine(1.0)(features())
    assert torch.equal(cold.argmax(1), warm.argmax(1))
    assert (cold.softmax(1).amax(1) > warm.softmax(1).amax(1)).all()


def test_gradient_reversal_is_the_identity_forward_and_a_minus_backward() -> None:
    x = features().requires_grad_()
    y = reverse_gradient(x)
    assert torch.equal(y, x)
    weights = torch.arange(42.0, dtype=torch.float64).view(7, 6)
    (y * weights).sum().backward()
    assert torch.equal(x.grad, -weights)


def test_reversal_in_the_classifier_flips_the_bottleneck_and_not_the_prototypes() -> None:
    classifier = cosine(0.5)
    x = features().requires_grad_()
    gradients = []
    for reverse in (False, True):
        loss = F.cross_entropy(classifier(x, reverse=reverse), torch.arange(7) % 4)
        wanted = (x, classifier.bottleneck.weight, classifier.bottleneck.bias, classifier.prototypes.weight)
        gradients.append(torch.autograd.grad(loss, wanted))
    plain, flipped = gradients
    for below, turned in zip(plain[:3], flipped[:3], strict=True):
        torch.testing.assert_close(turned, -below)
        assert below.abs().max() > 0
    assert torch.equal(plain[3], flipped[3])


def test_task_model_is_a_backbone_and_one_linear_layer() -> None:
    torch.manual_seed(6)
    model = TaskModel(build_backbone({"name": "small_cnn", "width": 4}, 1), 10).eval()
    images = torch.randn(3, 1, 8, 8)
    expected = model.backbone(images) @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(images), expected)
