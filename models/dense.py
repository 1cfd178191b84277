"""Dense layers whose first weights come from a generator of their own, and their optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def linear(num_in: int, num_out: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer: weights uniform in ± sqrt(3 / num_in), bias 0.

    Source: LeCun et al., "Efficient BackProp", 1998, section 4.6: the variance of the input stays.
    """
    with torch.device("meta"):  # PyTorch's own initialisation would draw from the global generator
        layer = nn.Linear(num_in, num_out)
    layer.to_empty(device="cpu")
    bound = math.sqrt(3.0 / num_in)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.zero_()
    return layer


def mlp(widths: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers with a ReLU behind each; nothing for a single width."""
    layers: list[nn.Module] = []
    for num_in, num_out in pairwise(widths):
        layers += [linear(num_in, num_out, generator), nn.ReLU()]
    return nn.Sequential(*layers)


class FlatAdam:
    """Adam over parameters that it moves into one flat tensor: a few calls a step, however many.

    Source: Kingma and Ba, "Adam", ICLR 2015, algorithm 1.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        chosen = list(parameters)
        self.lr, self.beta1, self.beta2, self.eps = lr, 0.9, 0.999, 1e-8
        self.weights = torch.cat([p.detach().reshape(-1) for p in chosen])
        self.gradient = torch.zeros_like(self.weights)
        self.mean = torch.zeros_like(self.weights)
        self.square = torch.zeros_like(self.weights)
        self.num_steps = torch.zeros((), dtype=torch.int64)
        start = 0
        for parameter in chosen:
            end = start + parameter.numel()
            parameter.data = self.weights[start:end].view(parameter.shape)
            parameter.grad = self.gradient[start:end].view(parameter.shape)
            start = end

    def step(self) -> None:
        """Apply the accumulated gradient, and clear it."""
        self.num_steps += 1
        num_steps = int(self.num_steps)
        gradient = self.gradient
        self.mean.lerp_(gradient, 1 - self.beta1)
        self.square.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        spread = self.square.sqrt().div_(math.sqrt(1 - self.beta2**num_steps)).add_(self.eps)
        self.weights.addcdiv_(self.mean, spread, value=-self.lr / (1 - self.beta1**num_steps))
        gradient.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        """The live state, weights excluded."""
        return {"mean": self.mean, "square": self.square, "num_steps": self.num_steps}
