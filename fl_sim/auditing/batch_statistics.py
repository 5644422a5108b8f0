"""Batch normalisation's statistics, as given images make them."""

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fl_sim.data.base import Split
from fl_sim.training import normalized

State = dict[str, torch.Tensor]
_BATCH = 32


@torch.no_grad()
def estimated_statistics(model: nn.Module, images: Split) -> State:
    """Return batch normalisation's buffers as the images give them; the model stays as it was.

    Layer after layer in one pass each batch, with the batches' own statistics, averaged evenly.
    """
    norms = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
    norms = {n: m for n, m in norms.items() if m.track_running_stats}
    kept = {n: (m.momentum, {k: b.clone() for k, b in m.named_buffers()}) for n, m in norms.items()}
    model.eval()
    for norm in norms.values():
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    pieces = max(1, round(len(images) / _BATCH))
    for rows in torch.arange(len(images)).tensor_split(pieces):
        indices = rows.numpy() if len(rows) > 1 else rows.repeat(2).numpy()
        model(normalized(images.batch(indices)[0]))
    found = {
        f"{name}.{key}": buffer.detach().cpu().clone()
        for name, norm in norms.items()
        for key, buffer in norm.named_buffers()
    }
    for name, norm in norms.items():
        norm.momentum, buffers = kept[name]
        norm.load_state_dict(buffers, strict=False)
        norm.eval()
    return found
