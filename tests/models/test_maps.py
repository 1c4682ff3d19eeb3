"""Networks for segmentation: DRN's parameter counts and layout, fixed enlargement, heads on maps of features."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mal.models.backbones import build_backbone
from mal.models.drn import BasicBlock
from mal.models.heads import (
    MapDiscriminator,
    PixelClassifier,
    PixelHead,
    TaskModel,
    Upsampling,
    pooled,
    stride_of,
)

DOUBLE = torch.float64


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def drn() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone({"name": "drn_d_22"}, 3)


# ------------------------------------------------------------------------- backbones


def test_drn_d_22_has_the_published_number_of_parameters(drn: nn.Module) -> None:
    assert parameters(drn) == 15_880_752
    assert (drn.features, drn.stride) == (512, 8)


def test_m_on_drn_d_22_adds_the_heads_9747(drn: nn.Module) -> None:
    with torch.device("meta"):
        model = TaskModel(build_backbone({"name": "drn_d_22"}, 3), 19)
    assert parameters(model) == 15_880_752 + 9_747
    assert parameters(model.head) == 9_747 == 19 * 512 + 19
    assert not list(model.head.upsampling.parameters())


def test_drn_d_22_gives_28_by_28_features_of_224_pixels() -> None:
    with torch.device("meta"):
        network = build_backbone({"name": "drn_d_22"}, 3)
        assert network(torch.zeros(2, 3, 224, 224)).shape == (2, 512, 28, 28)


def test_drn_d_22s_layers_are_the_papers(drn: nn.Module) -> None:
    found = []
    for layer in drn.layers:
        for block in [layer] if isinstance(layer[0], nn.Conv2d) else layer:
            c = block[0] if isinstance(block, nn.Sequential) else block.first[0]
            found.append((type(block).__name__, c.out_channels, c.kernel_size[0], c.stride[0], c.dilation[0]))
    plain, block = "Sequential", "BasicBlock"
    assert found == [
        (plain, 16, 7, 1, 1),
        (plain, 16, 3, 1, 1),
        (plain, 32, 3, 2, 1),
        (block, 64, 3, 2, 1),
        (block, 64, 3, 1, 1),
        (block, 128, 3, 2, 1),
        (block, 128, 3, 1, 1),
        (block, 256, 3, 1, 2),
        (block, 256, 3, 1, 2),
        (block, 512, 3, 1, 4),
        (block, 512, 3, 1, 4),
        (plain, 512, 3, 1, 2),
        (plain, 512, 3, 1, 1),
    ]


def test_convolutions_are_he_normal_by_fan_out_and_batch_norm_starts_at_one(drn: nn.Module) -> None:
    layers = [m for m in drn.modules() if isinstance(m, nn.Conv2d)]
    assert len(layers) == 25
    for layer in layers:
        assert layer.bias is None
        expected = math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels))
        weight = layer.weight.detach()
        allowed = 4 / math.sqrt(2 * weight.numel())
        assert weight.std().item() == pytest.approx(expected, rel=allowed)
        assert weight.abs().max() > 2.5 * expected  # no uniform one
    for norm in (m for m in drn.modules() if isinstance(m, nn.BatchNorm2d)):
        assert (norm.weight == 1).all()
        assert (norm.bias == 0).all()


def test_a_basic_block_adds_its_input_or_a_projection_of_it() -> None:
    torch.manual_seed(1)
    same, other = BasicBlock(4, 4, dilation=2).double().eval(), BasicBlock(4, 6, stride=2).double().eval()
    x = noise(2, 4, 8, 8)
    torch.testing.assert_close(same(x), F.relu(same.second(same.first(x)) + x))
    assert isinstance(same.shortcut, nn.Identity)
    torch.testing.assert_close(other(x), F.relu(other.second(other.first(x)) + other.shortcut(x)))
    assert other(x).shape == (2, 6, 4, 4)


def test_small_drn_is_small_and_takes_grey_images() -> None:
    network = build_backbone({"name": "small_drn", "width": 4}, 1)
    assert (network.features, network.stride, stride_of(network)) == (16, 4, 4)
    assert network(torch.zeros(2, 1, 16, 24)).shape == (2, 16, 4, 6)
    assert stride_of(build_backbone({"name": "small_cnn", "width": 4}, 1)) == 0


def test_drn_takes_grey_images_as_three_equal_channels() -> None:
    torch.manual_seed(0)
    network = build_backbone({"name": "drn_d_22"}, 1).eval()
    grey = torch.randn(1, 1, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(grey), network(grey.repeat(1, 3, 1, 1)))


# ------------------------------------------------------------------------- enlargement


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_enlargement_is_drns_transposed_convolution_forward_and_backward(factor: int) -> None:
    side, channels = 2 * factor, 3
    centre = (2 * factor - 1) / (2 * factor)
    line = 1 - (torch.arange(side, dtype=DOUBLE) / factor - centre).abs()
    kernel = (line[:, None] * line).expand(channels, 1, side, side)
    ours, theirs = noise(2, channels, 5, 7).requires_grad_(), noise(2, channels, 5, 7).requires_grad_()
    here = Upsampling(factor)(ours)
    there = F.conv_transpose2d(theirs, kernel, stride=factor, padding=factor // 2, groups=channels)
    torch.testing.assert_close(here, there)
    weights = noise(*there.shape, seed=1)
    (here * weights).sum().backward()
    (there * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(("factor", "side"), [(8, 12), (8, 28), (8, 64), (4, 56), (3, 50)])
def test_enlargement_of_maps_in_bf16_is_as_bilinear_as_in_float32(factor: int, side: int) -> None:
    maps = noise(2, 5, side, side).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = Upsampling(factor)(maps)
    torch.testing.assert_close(found.double(), Upsampling(factor)(maps.double()), rtol=1e-4, atol=1e-5)


def test_logits_in_bf16_are_those_of_float32_to_the_rounding_of_the_convolution() -> None:
    torch.manual_seed(0)
    head, features = PixelHead(16, 5, 8), torch.randn(1, 16, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = head(features).float()
    exact = head(features).detach()
    assert (rounded - exact).abs().mean() < 0.005 * exact.abs().mean()


def test_enlargement_is_bilinear_inside() -> None:
    maps = noise(1, 2, 6, 6)
    expected = F.interpolate(maps, scale_factor=4, mode="bilinear", align_corners=False)
    torch.testing.assert_close(Upsampling(4)(maps)[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])
    assert torch.equal(Upsampling(1)(maps), maps)


# ------------------------------------------------------------------------- heads


def classifier(temperature: float = 0.5) -> PixelClassifier:
    torch.manual_seed(2)
    return PixelClassifier(6, 4, temperature, stride=2).double()


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_c_is_prototypes_on_unit_pixels_over_t_then_enlarged(temperature: float) -> None:
    network, x = classifier(temperature), noise(2, 6, 3, 5)
    unit = x / x.norm(dim=1, keepdim=True)
    prototypes = network.prototypes.weight[:, :, 0, 0]
    small = torch.einsum("kd,bdhw->bkhw", prototypes, unit) / temperature
    torch.testing.assert_close(network(x), Upsampling(2)(small))
    torch.testing.assert_close(network(7 * x), network(x))
    assert network.prototypes.bias is None
    assert parameters(network) == 24


def test_reversal_flips_what_reaches_the_features_and_not_the_prototypes() -> None:
    network, x = classifier(), noise(2, 6, 3, 5).requires_grad_()
    weights = noise(2, 4, 6, 10, seed=3)
    wanted = (x, network.prototypes.weight)
    plain, turned = (torch.autograd.grad((network(x, reverse=r) * weights).sum(), wanted) for r in (False, True))
    torch.testing.assert_close(turned[0], -plain[0])
    assert torch.equal(turned[1], plain[1])


def test_d_is_three_convolutions_and_a_small_linear_layer() -> None:
    network = MapDiscriminator(512, 64)
    kinds = [type(layer) for layer in network.layers]
    assert kinds == [nn.Conv2d, nn.ReLU] * 3
    assert [layer.stride for layer in network.layers[::2]] == [(2, 2)] * 3
    assert (network.linear.in_features, network.linear.out_features) == (64, 1)
    assert network(torch.zeros(3, 512, 28, 28)).shape == (3,)
    assert network(torch.zeros(3, 512, 3, 5)).shape == (3,)


def test_m_on_maps_is_a_backbone_a_convolution_and_the_enlargement() -> None:
    torch.manual_seed(4)
    model = TaskModel(build_backbone({"name": "small_drn", "width": 2}, 1), 5, dropout=0.5).double().eval()
    images = noise(2, 1, 8, 12)
    assert isinstance(model.head, PixelHead)
    small = F.conv2d(model.backbone(images), model.head.convolution.weight, model.head.convolution.bias)
    torch.testing.assert_close(model(images), Upsampling(4)(small))
    assert model(images).shape == (2, 5, 8, 12)
    assert model.head.in_features == 8


def test_dropout_before_the_head_drops_whole_channels() -> None:
    torch.manual_seed(5)
    model = TaskModel(build_backbone({"name": "small_drn", "width": 16}, 1), 5, dropout=0.5).train()
    dropped = model.dropout(torch.ones(4, 64, 3, 3))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert (dropped.flatten(2).std(dim=2) == 0).all()


def test_pooled_features_are_the_mean_over_positions() -> None:
    maps, rows = noise(2, 3, 4, 5), noise(4, 3)
    torch.testing.assert_close(pooled(maps), maps.flatten(2).mean(2))
    assert pooled(rows) is rows
