"""Sandwich layers: every choice of their weights is 1-Lipschitz in L2."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

ROOT2 = 2.0**0.5


def cayley(v: Tensor) -> tuple[Tensor, Tensor]:
    """A [..., m, m] and B [..., m, n] with A A^H + B B^H = I, from any V [..., m, m + n], real or complex.

    V^H = [U; Y],  Z = U - U^H + Y^H Y,  A^H = (I + Z)^-1 (I - Z),  B^H = -2 Y (I + Z)^-1.
    """
    m = v.shape[-2]
    u, y = v[..., :m].mH, v[..., m:].mH
    z = u - u.mH + y.mH @ y
    eye = torch.eye(m, dtype=v.dtype, device=v.device)
    inverse = torch.linalg.inv(eye + z)
    return (inverse @ (eye - z)).mH, (-2 * y @ inverse).mH


def excess(a: Tensor, b: Tensor) -> float:
    """How far rounding has moved them: the largest eigenvalue of A A^H + B B^H, minus 1, at least 0."""
    wide = torch.complex128 if a.is_complex() else torch.float64
    a, b = a.to(wide), b.to(wide)
    return max(0.0, float(torch.linalg.eigvalsh(a @ a.mH + b @ b.mH).amax()) - 1)


class Orthogonal(nn.Module):
    """The free weights X, alpha of [A B], and A and B as deployed.

    In train mode A and B are computed from X and alpha in each pass, in eval mode they are the buffers that `refresh`
    has written.
    """

    a: Tensor
    b: Tensor

    def __init__(self, n: int, m: int, kernel: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.x = nn.Parameter(nn.init.xavier_normal_(torch.empty(m, m + n, *kernel)))
        self.alpha = nn.Parameter(self.x.detach().norm())

    def start(self) -> None:
        """Make the buffers; for the end of the constructors."""
        for name, value in zip("ab", self.computed(), strict=True):
            self.register_buffer(name, _real(value).detach())

    def weights(self) -> Tensor:
        """V = alpha X / |X|_F; one matrix for each frequency of a convolution."""
        return self.alpha * self.x / self.x.norm()

    def computed(self) -> tuple[Tensor, Tensor]:
        return cayley(self.weights())

    def deployed(self) -> tuple[Tensor, Tensor]:
        """A and B of this mode."""
        return self.computed() if self.training else (self.stored(self.a), self.stored(self.b))

    def stored(self, value: Tensor) -> Tensor:
        return value

    @torch.no_grad()
    def refresh(self) -> None:
        """Write the buffers from X and alpha; after the last step of training."""
        for buffer, value in zip((self.a, self.b), self.computed(), strict=True):
            buffer.copy_(_real(value))

    def excess(self) -> float:
        """By what fraction the deployed layer may exceed its Lipschitz bound."""
        return excess(self.stored(self.a), self.stored(self.b))


def _real(value: Tensor) -> Tensor:
    return torch.view_as_real(value.resolve_conj()) if value.is_complex() else value


class SandwichLinear(Orthogonal):
    """h' = sqrt2 A^T Psi relu(sqrt2 Psi^-1 B h + b), Psi = diag(e^psi), of h [N, n]; output [N, m]."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__(n, m)
        self.psi, self.bias = nn.Parameter(torch.zeros(m)), nn.Parameter(torch.zeros(m))
        self.start()

    def forward(self, h: Tensor) -> Tensor:
        a, b = self.deployed()
        inner = (ROOT2 * (h @ b.mT) / self.psi.exp() + self.bias).relu()
        return ROOT2 * (inner * self.psi.exp()) @ a


class OrthogonalLinear(Orthogonal):
    """z = B h + b, 1-Lipschitz."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__(n, m)
        self.bias = nn.Parameter(torch.zeros(m))
        self.start()

    def forward(self, h: Tensor) -> Tensor:
        return h @ self.deployed()[1].mT + self.bias


class SandwichConv(Orthogonal):
    """The same for circular convolutions of h [N, C, H, W]: A and B for each spatial frequency, one psi a channel.

    Args:
        stride: 2 first moves each 2x2 block of pixels into channels, which changes no norm.
        kernel: side of the kernel, in pixels of its input.
    """

    KERNEL: ClassVar[dict[int, int]] = {1: 3, 2: 2}

    def __init__(self, n: int, m: int, size: int, stride: int) -> None:
        kernel = self.KERNEL[stride]
        super().__init__(n * stride**2, m, (kernel, kernel))
        self.size, self.stride = size // stride, stride
        self.psi, self.bias = nn.Parameter(torch.zeros(m, 1, 1)), nn.Parameter(torch.zeros(m, 1, 1))
        self.start()

    def computed(self) -> tuple[Tensor, Tensor]:
        v = torch.fft.rfft2(self.weights(), s=(self.size, self.size))
        return cayley(v.permute(2, 3, 0, 1))

    def stored(self, value: Tensor) -> Tensor:
        return torch.view_as_complex(value)

    def forward(self, h: Tensor) -> Tensor:
        a, b = self.deployed()
        h = nn.functional.pixel_unshuffle(h, self.stride)
        inner = (ROOT2 * self._apply_matrix(b, h) / self.psi.exp() + self.bias).relu()
        return ROOT2 * self._apply_matrix(a.mH, inner * self.psi.exp())

    def _apply_matrix(self, matrix: Tensor, h: Tensor) -> Tensor:
        """One matrix for each frequency, [H, W', out, in], on h [N, in, H, W]."""
        at = torch.fft.rfft2(h)
        return torch.fft.irfft2(torch.einsum("hwoi,nihw->nohw", matrix, at), s=(self.size, self.size))
