"""AlexNet's convolutions, on which LPIPS stands, with random weights."""

from torch import nn

CHANNELS = (64, 192, 384, 256, 256)
"""Of the five."""


def alexnet() -> nn.Sequential:
    """The convolutions of AlexNet."""
    first, second, third, fourth, fifth = CHANNELS
    return nn.Sequential(
        nn.Conv2d(3, first, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(first, second, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(second, third, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(third, fourth, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(fourth, fifth, 3, padding=1),
        nn.ReLU(),
    )
