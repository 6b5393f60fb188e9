"""Layers made of several linear maps: attention and recurrent layers, run so that each map can be recorded.

torch's own kernels for them hide the inner activations. Here the same function is computed from the same parameters
out of linear maps; results agree with torch's layers to rounding.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from privacy.errors import ParameterError


class LinearRecorder(Protocol):
    """What runs x W[rows]^T + b[rows] for an x with the records first, and remembers it."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, rows: slice = ...) -> Tensor: ...


def attention_obstacle(layer: nn.MultiheadAttention) -> str | None:
    """Why a layer cannot be recorded, or None."""
    if layer.bias_k is not None or layer.add_zero_attn:
        return "attends to added positions"
    if layer.in_proj_weight is None:
        return "has keys or values of another width"
    return None


def attention(
    layer: nn.MultiheadAttention,
    recorder: LinearRecorder,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Stands in for `nn.MultiheadAttention.forward`, with the same arguments and results; records must be an axis."""
    if query.dim() != 3:
        raise ParameterError("Attention needs records, positions and features.", "Give it three axes.")
    same = key is query and value is query
    if not layer.batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    records, targets, width = query.shape
    q, k, v = _project(layer, recorder, query, key, value, same)
    heads, size = layer.num_heads, width // layer.num_heads
    q, k, v = (x.reshape(records, -1, heads, size).transpose(1, 2) for x in (q, k, v))
    mask = _mask(layer, attn_mask, key_padding_mask, records, q, k)
    if need_weights:
        scores = q @ k.transpose(-1, -2) / math.sqrt(size)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        mixed = weights @ v
    else:
        causal = is_causal and attn_mask is None
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    mixed = mixed.transpose(1, 2).reshape(records, targets, width)
    projection = layer.out_proj
    out = recorder.linear(mixed, projection.weight, projection.bias)
    out = out if layer.batch_first else out.transpose(0, 1)
    if not need_weights:
        return out, None
    return out, (weights.mean(1) if average_attn_weights else weights)


def _project(
    layer: nn.MultiheadAttention, recorder: LinearRecorder, query: Tensor, key: Tensor, value: Tensor, same: bool
) -> tuple[Tensor, Tensor, Tensor]:
    weight, bias, width = layer.in_proj_weight, layer.in_proj_bias, layer.embed_dim
    if same:
        q, k, v = recorder.linear(query, weight, bias).chunk(3, dim=-1)
        return q, k, v
    q, k, v = (
        recorder.linear(x, weight, bias, slice(i * width, (i + 1) * width)) for i, x in enumerate((query, key, value))
    )
    return q, k, v


def _mask(
    layer: nn.MultiheadAttention,
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    records: int,
    q: Tensor,
    k: Tensor,
) -> Tensor | None:
    """Both masks as one that is added to the scores, or None."""
    total: Tensor | None = None
    if attn_mask is not None:
        total = _additive(attn_mask, q)
        if total.dim() == 3:
            total = total.view(records, layer.num_heads, q.shape[2], k.shape[2])
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, q)[:, None, None, :]
        total = padding if total is None else total + padding
    return total


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(mask, -math.inf)


def recurrent_obstacle(layer: nn.RNNBase) -> str | None:
    """Why a layer cannot be recorded, or None."""
    if layer.proj_size:
        return "projects its hidden state"
    return None


def recurrent(layer: nn.RNNBase, recorder: LinearRecorder, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    """Stands in for the forward pass of `nn.RNN`, `nn.GRU` and `nn.LSTM`, with the same results. x has three axes.

    The input's map runs once over the whole sequence, the state's map once a step. Raises ParameterError for a packed
    sequence: pad it, and mask what the loss should not see.
    """
    if not isinstance(x, Tensor) or x.dim() != 3:
        raise ParameterError("A recurrent layer needs records, steps and features.", "Pad sequences to one length.")
    x = x if layer.batch_first else x.transpose(0, 1)
    directions = 2 if layer.bidirectional else 1
    long = layer.mode == "LSTM"
    state = _initial(layer, x, hx, directions)
    last: list[tuple[Tensor, ...]] = []
    for depth in range(layer.num_layers):
        outputs = []
        for direction in range(directions):
            place = depth * directions + direction
            start = tuple(part[place] for part in state)
            suffix = f"l{depth}{'_reverse' if direction else ''}"
            output, end = _run(layer, recorder, x, start, suffix, backwards=bool(direction))
            outputs.append(output)
            last.append(end)
        x = torch.cat(outputs, dim=-1) if directions == 2 else outputs[0]
    ends = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
    return (x if layer.batch_first else x.transpose(0, 1)), (ends if long else ends[0])


def _initial(layer: nn.RNNBase, x: Tensor, hx: Any, directions: int) -> tuple[Tensor, ...]:
    if hx is not None:
        return tuple(hx) if isinstance(hx, tuple) else (hx,)
    zeros = x.new_zeros((layer.num_layers * directions, x.shape[0], layer.hidden_size))
    return (zeros, zeros) if layer.mode == "LSTM" else (zeros,)


def _run(
    layer: nn.RNNBase, recorder: LinearRecorder, x: Tensor, state: tuple[Tensor, ...], suffix: str, *, backwards: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    inner, outer = getattr(layer, f"weight_hh_{suffix}"), getattr(layer, f"weight_ih_{suffix}")
    inner_bias = getattr(layer, f"bias_hh_{suffix}") if layer.bias else None
    outer_bias = getattr(layer, f"bias_ih_{suffix}") if layer.bias else None
    inputs = recorder.linear(x, outer, outer_bias).unbind(1)
    outputs: list[Tensor] = []
    for step in reversed(inputs) if backwards else inputs:
        hidden = recorder.linear(state[0], inner, inner_bias)
        state = _cell(layer.mode, step, hidden, state)
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs, dim=1), state


def _cell(mode: str, inputs: Tensor, hidden: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if mode == "LSTM":
        i, f, c, o = (inputs + hidden).chunk(4, dim=-1)
        cell = f.sigmoid() * state[1] + i.sigmoid() * c.tanh()
        return o.sigmoid() * cell.tanh(), cell
    if mode == "GRU":
        (ir, iz, new), (hr, hz, hn) = inputs.chunk(3, dim=-1), hidden.chunk(3, dim=-1)
        update = (iz + hz).sigmoid()
        candidate = (new + (ir + hr).sigmoid() * hn).tanh()
        return ((1 - update) * candidate + update * state[0],)
    total = inputs + hidden
    return (total.tanh() if mode == "RNN_TANH" else total.relu(),)
