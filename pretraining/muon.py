"""Muon: momentum whose direction is orthogonalised, for the weight matrices of the pocket students' pre-training."""

import torch


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024), scaled to AdamW's size of update (Liu et al. 2025, arXiv 2502.16982, section 2.2),
    without weight decay.

    With it the bases pass their gate on a third of AdamW's tokens. `torch.optim.Muon` always multiplies in bfloat16,
    which a CPU without such instructions does 4 (32 wide) to 20 times (320 wide) as slowly as float32; here `half` says
    so.
    """

    def __init__(self, matrices: list[torch.nn.Parameter], lr: float, momentum: float = 0.95, half: bool = False):
        super().__init__(matrices, {"lr": lr, "momentum": momentum})
        self.dtype = torch.bfloat16 if half else torch.float32

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                mean.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalised(p.grad.lerp(mean, group["momentum"]).to(self.dtype)).float()
                p.add_(update, alpha=-0.2 * max(p.shape) ** 0.5 * group["lr"])


def orthogonalised(x: torch.Tensor) -> torch.Tensor:
    """`x` [n, m] with its singular values brought to about 1, by five Newton-Schulz steps."""
    flat = x if x.shape[0] <= x.shape[1] else x.t()
    flat = flat / (flat.norm() + 1e-7)
    for _ in range(5):
        gram = flat @ flat.t()
        flat = 3.4445 * flat + (-4.775 * gram + 2.0315 * gram @ gram) @ flat
    return flat if x.shape[0] <= x.shape[1] else flat.t()
