# SPDX-License-Identifier: Apache-2.0
"""Muon for the matrices of the layers, AdamW for all else."""

from collections import defaultdict

import torch
from torch.optim import AdamW


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


class Muon(AdamW):
    """
    [Muon](https://kellerjordan.github.io/posts/muon/) for the parameter groups with `muon=True`, and
    [`~torch.optim.AdamW`] for the others.

    Muon orthogonalizes the momentum of a matrix before it takes a step, so that all directions move alike. It computes what
    `torch.optim.Muon` computes with `adjust_lr_fn="match_rms_adamw"`, but all matrices of one shape at once: one after the
    other, small ones keep a GPU waiting.

    Args:
        params:
            Parameter groups. Those with `muon=True` hold matrices only.
        lr (`float`, *optional*, defaults to 1e-3), weight_decay and more:
            As for [`~torch.optim.AdamW`]; these two hold for both.
        momentum (`float`, *optional*, defaults to 0.95):
            Share of Muon's moving average of the gradients that is kept at each step.

    Raises:
        `ValueError`: a group with `muon=True` holds something else than matrices.

    Example:

    ```python
    >>> optimizer = Muon(parameter_groups(model, learning_rate=3e-3, weight_decay=0.05, muon=True))
    ```"""

    def __init__(self, params, lr: float = 1e-3, momentum: float = 0.95, **kwargs):
        super().__init__(params, lr, **kwargs)
        for group in self.param_groups:
            group.setdefault("muon", False)
            group.setdefault("momentum", momentum)
            for parameter in group["params"] if group["muon"] else ():
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices, got a parameter of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure=None):
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["muon"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            if group["muon"] and matrices:
                self.step_matrices(matrices, group)
        return loss

    def step_matrices(self, matrices: list[torch.Tensor], group: dict) -> None:
        """Move matrices by Muon's step, with the settings of their group."""
        for matrix in matrices:
            if not self.state[matrix]:
                # AdamW looks for the number of steps when it loads a state
                self.state[matrix] = {"step": torch.zeros(()), "momentum_buffer": torch.zeros_like(matrix)}
        states, lr = [self.state[matrix] for matrix in matrices], group["lr"]
        averages = [state["momentum_buffer"] for state in states]
        # What the optimizers of torch 2.11 to 2.13 use themselves to start one kernel for many tensors: it has no public name
        torch._foreach_add_([state["step"] for state in states], 1)
        gradients = [matrix.grad for matrix in matrices]
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        # Nesterov's look ahead
        updates = list(torch._foreach_lerp(gradients, averages, group["momentum"]))
        by_shape = defaultdict(list)
        for index, update in enumerate(updates):
            by_shape[tuple(sorted(update.shape))].append(index)
        for shape, indices in by_shape.items():
            stack = torch.stack(
                [updates[index] if updates[index].shape == shape else updates[index].mT for index in indices]
            )
            stack = orthogonalize(stack).float() * (UPDATE_RMS * max(shape) ** 0.5)
            for index, update in zip(indices, stack.unbind()):
                updates[index] = update if updates[index].shape == shape else update.mT
        torch._foreach_mul_(matrices, 1 - lr * group["weight_decay"])
        torch._foreach_mul_(updates, lr)
        torch._foreach_sub_(matrices, updates)
