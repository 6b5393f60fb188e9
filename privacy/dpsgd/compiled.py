"""The step of torch.func compiled: per-record gradients, norms and the clipped sum fused by torch.compile.

Worth its start (a minute or so for each shape, and a C++ compiler on a CPU) where small operations between large ones
take the time, as in transformers. Batches must keep one shape: pad them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from privacy.errors import ParameterError

Losses = Callable[[Tensor, Tensor], Tensor]


class CompiledStep:
    """For one module, loss and clip; one record per patient. Compiles at the first call of each shape."""

    def __init__(self, module: nn.Module, loss: Losses, clip: float) -> None:
        self._module = module
        self._names = [name for name, p in module.named_parameters() if p.requires_grad]

        def record_loss(trained: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            output = functional_call(module, {**trained, **fixed}, (x.unsqueeze(0),))
            return loss(output, y.unsqueeze(0)).sum()

        per_record = vmap(grad(record_loss), in_dims=(None, None, 0, 0))

        def step(
            trained: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, y: Tensor, seed: Tensor
        ) -> tuple[Tensor, Tensor]:
            gradients = per_record(trained, fixed, x, y)
            # Autocast would round the products to half precision, which takes the sum past the clip.
            with torch.autocast(x.device.type, enabled=False):
                rows = [gradients[name].flatten(1).float() for name in self._names]
                norms = torch.stack([row.square().sum(1) for row in rows]).sum(0)
                weights = norms.rsqrt().mul(clip).clamp(max=1.0) * seed
                # A product of matrices is left to the BLAS, which streams the rows; one by a vector would be fused into
                # a loop that strides over them, at three times the cost.
                sums = [torch.mm(weights.unsqueeze(0), row).squeeze(0) for row in rows]
            return norms, torch.cat(sums)

        self._step = torch.compile(step, dynamic=False)

    def __call__(self, inputs: Tensor, targets: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """(R,) squared norms, where a NaN may stand, and the (D,) clipped sum, good only if all norms are finite.

        seed: (R,) 1 for a record, 0 for padding. Raises ParameterError where this machine cannot compile.
        """
        trained = {name: p.detach() for name, p in self._module.named_parameters()}
        fixed = {name: trained.pop(name) for name in list(trained) if name not in self._names}
        fixed |= {name: b.detach() for name, b in self._module.named_buffers()}
        try:
            norms, total = self._step(trained, fixed, inputs, targets, seed)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise ParameterError(
                f"This model's step cannot be compiled here ({type(error).__name__}).",
                'Install a C++ compiler, or use the engine "bookkeeping".',
            ) from error
        return norms, total
