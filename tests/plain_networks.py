"""The networks as their documents describe them, written with stock layers only; no code of ours."""

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, relu

# Convolutions per stage. masked-loss.md 1.3; VGG9: decision 2.
STAGES = {
    "vgg9": (1, 1, 2, 1, 1),
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


class PlainVGG(nn.Module):
    """conv (with bias), BatchNorm, ReLU; then the head of one of three documents."""

    def __init__(self, arch, width=1.0, head="fc512", dropout=True, batchnorm=True, classes=10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for channels, repeats in zip((64, 128, 256, 512, 512), STAGES[arch], strict=True):
            for _ in range(repeats):
                after = int(channels * width)
                layers.append(nn.Conv2d(before, after, kernel_size=3, padding=1))
                if batchnorm:
                    layers.append(nn.BatchNorm2d(after))
                layers.append(nn.ReLU(inplace=True))
                before = after
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        if head == "fc512x2":
            layers.append(nn.AvgPool2d(kernel_size=1, stride=1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        hidden, p = int(512 * width), 0.5 if dropout else 0.0
        if head == "fc512":
            self.classifier = nn.Sequential(nn.Linear(before, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        elif head == "gap" and dropout:
            self.classifier = nn.Sequential(nn.Dropout(0.5), nn.Linear(before, classes))
        elif head == "gap":
            self.classifier = nn.Linear(before, classes)
        else:
            self.classifier = nn.Sequential(
                nn.Linear(before, hidden), nn.ReLU(), nn.Dropout(p),
                nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(p), nn.Linear(hidden, classes),
            )  # fmt: skip
        if head != "fc512x2":
            self.start()

    def start(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.constant_(module.bias, 0)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.constant_(module.bias, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))


class PlainBlock(nn.Module):
    """He et al. 2015, figure 2 left, with the parameterless skip connection of section 3.3 (A)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.stride, self.new = stride, after - before

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        skip = x if self.stride == 1 else x[:, :, ::2, ::2]
        return relu(y + pad(skip, (0, 0, 0, 0, self.new // 2, (self.new + 1) // 2)))


class PlainCifarResNet(nn.Module):
    """He et al. 2015, section 4.2: 6n + 2 layers."""

    def __init__(self, n: int, width: float = 1.0) -> None:
        super().__init__()
        a, b, c = (int(width * channels) for channels in (16, 32, 64))
        self.conv1, self.bn1 = nn.Conv2d(3, a, 3, padding=1, bias=False), nn.BatchNorm2d(a)
        self.layer1 = nn.Sequential(*(PlainBlock(a, a, 1) for _ in range(n)))
        self.layer2 = nn.Sequential(PlainBlock(a, b, 2), *(PlainBlock(b, b, 1) for _ in range(n - 1)))
        self.layer3 = nn.Sequential(PlainBlock(b, c, 2), *(PlainBlock(c, c, 1) for _ in range(n - 1)))
        self.fc = nn.Linear(c, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


class NarrowResNet(torchvision.models.ResNet):
    """torchvision's with a share of the channels."""

    def __init__(self, share: float) -> None:
        self.share = share
        super().__init__(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2])

    def _make_layer(self, block, planes, blocks, stride=1, dilate=False) -> nn.Sequential:
        if planes == 64:
            self.inplanes = int(planes * self.share)
        return super()._make_layer(block, int(planes * self.share), blocks, stride, dilate)


def plain_resnet18(share: float = 1.0) -> nn.Module:
    """torchvision's, with the 3x3 stem of adaptive-noise.md 5.3."""
    model = NarrowResNet(share) if share != 1 else torchvision.models.resnet18()
    stem = int(64 * share)
    model.conv1, model.bn1 = nn.Conv2d(3, stem, 3, stride=1, padding=1, bias=False), nn.BatchNorm2d(stem)
    model.fc = nn.Linear(8 * stem, 10)
    return model


class PlainSmall(nn.Module):
    """adaptive-noise.md 5.3, and the MLP: convolutions with ReLU and max-pool, then linear layers."""

    def __init__(self, convs: tuple[int, ...], linears: tuple[int, ...]) -> None:
        super().__init__()
        before, self.depths = 3, (len(convs), len(linears))
        for number, after in enumerate(convs, 1):
            setattr(self, f"conv{number}", nn.Conv2d(before, after, 3, padding=1))
            before = after
        before *= (32 // 2 ** len(convs)) ** 2
        for number, after in enumerate(linears, 1):
            setattr(self, f"fc{number}", nn.Linear(before, after))
            before = after

    def forward(self, x: Tensor) -> Tensor:
        convs, linears = self.depths
        for number in range(1, convs + 1):
            x = max_pool2d(relu(getattr(self, f"conv{number}")(x)), 2)
        x = x.flatten(1)
        for number in range(1, linears):
            x = relu(getattr(self, f"fc{number}")(x))
        return getattr(self, f"fc{linears}")(x)


class PlainCNN2(nn.Module):
    """correction.md 4.3."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(1568, 128), nn.ReLU(), nn.Linear(128, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))
