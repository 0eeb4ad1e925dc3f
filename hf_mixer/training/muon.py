# SPDX-License-Identifier: Apache-2.0
"""Muon for the matrices of the layers, AdamW for all else."""

from collections import defaultdict

import torch
from torch.optim import AdamW, Optimizer


# Of the quintic iteration in https://kellerjordan.github.io/posts/muon
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
# Makes updates about as large as AdamW's, so that both take the same learning rate: equation 4 of
# https://huggingface.co/papers/2502.16982
UPDATE_RMS = 0.2


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """
    Bring the singular values of matrices of shape `(num_matrices, rows, columns)`, with no more rows than columns, close to
    1, by Newton and Schulz's iteration. Returns bfloat16.
    """
    linear, cubic, quintic = COEFFICIENTS
    matrices = matrices.bfloat16()
    matrices = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = matrices @ matrices.mT
        gram = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        matrices = torch.baddbmm(matrices, gram, matrices, beta=linear)
    return matrices


def check_optimizer_state(optimizer: Optimizer, state_dict: dict) -> None:
    """
    Refuse the state of an optimizer with other groups of parameters, before it is loaded.

    Raises:
        `ValueError`: the two differ in `muon` or in the number of their groups.
    """
    saved, own = (
        [group.get("muon", False) for group in groups]
        for groups in (state_dict["param_groups"], optimizer.param_groups)
    )
    if saved != own:
        raise ValueError(
            "the optimizer in the checkpoint has other groups of parameters: go on with the --muon and the --layer_decay that "
            "it was trained with"
        )


class Muon(Optimizer):
    """
    [Muon](https://kellerjordan.github.io/posts/muon/) for the parameter groups with `muon=True`, and
    [`~torch.optim.AdamW`] for the others.

    Muon orthogonalizes the momentum of a matrix before it takes a step, so that all directions move alike. It computes what
    `torch.optim.Muon` computes with `adjust_lr_fn="match_rms_adamw"`, but all matrices of one shape at once: one after the
    other, small ones keep a GPU waiting.

    Args:
        params:
            Parameters or parameter groups. Groups with `muon=True` hold matrices only.
        lr (`float`, *optional*, defaults to 1e-3), weight_decay (`float`, *optional*, defaults to 0.01):
            Learning rate and weight decay of both.
        betas, eps, fused:
            As for [`~torch.optim.AdamW`], which takes them.
        momentum (`float`, *optional*, defaults to 0.95):
            Share of Muon's moving average of the gradients that is kept at each step, in [0, 1).

    Raises:
        `ValueError`: a group with `muon=True` holds something else than matrices, or `momentum` is out of range.

    Example:

    ```python
    >>> optimizer = Muon(parameter_groups(model, learning_rate=3e-3, weight_decay=0.05, muon=True))
    ```"""

    def __init__(
        self,
        params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        fused: bool | None = None,
    ):
        # It works on the groups and the state of this optimizer
        self.adamw = AdamW([torch.zeros(0)], lr, betas, eps, weight_decay, fused=fused)
        super().__init__(params, {**self.adamw.defaults, "muon": False, "momentum": momentum})

    def add_param_group(self, param_group: dict) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if not 0 <= group["momentum"] < 1:
            raise ValueError(f"momentum has to be in [0, 1), got {group['momentum']}")
        for parameter in group["params"] if group["muon"] else ():
            if parameter.ndim != 2:
                raise ValueError(f"Muon takes matrices, got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.adamw.state = self.state
        self.adamw.param_groups = [group for group in self.param_groups if not group["muon"]]
        self.adamw.step()
        for group in self.param_groups:
            if group["muon"]:
                self.step_matrices(group)
        return loss

    def step_matrices(self, group: dict) -> None:
        """Move the matrices of a group by Muon's step."""
        # By shape, the wide side last
        updates: dict[tuple[int, ...], list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        for matrix in group["params"]:
            if matrix.grad is None:
                continue
            state, momentum = self.state[matrix], group["momentum"]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(matrix)
            average = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
            # Nesterov's look ahead
            update = matrix.grad.lerp(average, momentum)
            is_tall = matrix.shape[0] > matrix.shape[1]
            updates[tuple(sorted(matrix.shape))].append((matrix.mT, update.mT) if is_tall else (matrix, update))
        for shape, pairs in updates.items():
            stack = orthogonalize(torch.stack([update for _, update in pairs]))
            stack = stack.float() * (group["lr"] * UPDATE_RMS * max(shape) ** 0.5)
            for (matrix, _), update in zip(pairs, stack):
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update)
