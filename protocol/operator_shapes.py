"""What each operator of a graph makes of its arguments, by torch's own rules (a test compares them): the shape of its
value and its multiplications. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from protocol.operator_call import Call, Shape, Unfit, axis

_Result = tuple[Shape, int]


def broadcast(*shapes: Shape) -> Shape:
    """The common shape of values that are combined element by element. Raises Unfit."""
    axes = max(map(len, shapes))
    padded = [(1,) * (axes - len(shape)) + shape for shape in shapes]
    result = []
    for sizes in zip(*padded, strict=True):
        wide = {size for size in sizes if size != 1}
        if len(wide) > 1:
            raise Unfit("the values have different sizes")
        result.append(wide.pop() if wide else 1)
    return tuple(result)


def _product(left: Shape, right: Shape) -> _Result:
    """Matrices along the last two axes, the others broadcast."""
    if len(left) < 2 or len(right) < 2 or left[-1] != right[-2]:
        raise Unfit("the matrices do not fit")
    shape = (*broadcast(left[:-2], right[:-2]), left[-2], right[-1])
    return shape, math.prod(shape) * left[-1]


def _linear(call: Call) -> _Result:
    given, weight, bias = call.shape("input"), call.shape("weight"), call.optional("bias")
    if not given or len(weight) != 2 or given[-1] != weight[1] or bias not in (None, weight[:1]):
        raise Unfit("weight or bias do not fit the input")
    shape = (*given[:-1], weight[0])
    return shape, math.prod(shape) * weight[1]


def _addmm(call: Call) -> _Result:
    shape, cost = _matrices(call, "mat1", 2)
    if broadcast(call.shape("self"), shape) != shape:
        raise Unfit("the bias does not fit")
    return shape, cost


def _matrices(call: Call, left: str, axes: int) -> _Result:
    first, second = call.shape(left), call.shape("mat2")
    if len(first) != axes or len(second) != axes or first[:-2] != second[:-2]:
        raise Unfit(f"both must have {axes} axes")
    return _product(first, second)


def _same(call: Call) -> _Result:
    shape = call.shape("self")
    return shape, math.prod(shape)


def _transposed(call: Call) -> _Result:
    shape = call.shape("self")
    if len(shape) > 2:
        raise Unfit("t takes two axes")
    return shape[::-1], 0


def _permuted(call: Call) -> _Result:
    shape = call.shape("self")
    places = [axis(place, len(shape)) for place in call.wholes("dims")]
    if sorted(places) != list(range(len(shape))):
        raise Unfit("dims is no order of the axes")
    return tuple(shape[place] for place in places), 0


def _exchanged(call: Call) -> _Result:
    shape = list(call.shape("self"))
    first, second = (axis(call.whole(name), len(shape)) for name in ("dim0", "dim1"))
    shape[first], shape[second] = shape[second], shape[first]
    return tuple(shape), 0


def whole_shape(count: int, wanted: Shape) -> Shape:
    """The wanted shape with its one -1 worked out. Raises Unfit."""
    known = math.prod(size for size in wanted if size != -1)
    if wanted.count(-1) > 1 or any(size < -1 or size == 0 for size in wanted) or count % known:
        raise Unfit("the shape does not fit")
    shape = tuple(count // known if size == -1 else size for size in wanted)
    if math.prod(shape) != count:
        raise Unfit("the shape does not fit")
    return shape


def _reshaped(call: Call) -> _Result:
    wanted = call.wholes("size" if "size" in call.arguments else "shape")
    return whole_shape(math.prod(call.shape("self")), wanted), 0


def _flattened(call: Call) -> _Result:
    shape = call.shape("self")
    first, last = axis(call.whole("start_dim", 0), len(shape)), axis(call.whole("end_dim", -1), len(shape))
    if first > last:
        raise Unfit("start_dim is beyond end_dim")
    return (*shape[:first], math.prod(shape[first : last + 1]), *shape[last + 1 :]), 0


def _unflattened(call: Call) -> _Result:
    shape = call.shape("self")
    place = axis(call.whole("dim"), len(shape))
    return (*shape[:place], *whole_shape(shape[place], call.wholes("sizes")), *shape[place + 1 :]), 0


def _unsqueezed(call: Call) -> _Result:
    shape = call.shape("self")
    place = axis(call.whole("dim"), len(shape) + 1)
    return (*shape[:place], 1, *shape[place:]), 0


def _squeezed(call: Call) -> _Result:
    shape = call.shape("self")
    place = axis(call.whole("dim"), len(shape))
    return (*shape[:place], *(() if shape[place] == 1 else shape[place : place + 1]), *shape[place + 1 :]), 0


def _expanded(call: Call) -> _Result:
    shape, wanted = call.shape("self"), call.wholes("size")
    more = len(wanted) - len(shape)
    if more < 0 or -1 in wanted[:more]:
        raise Unfit("the sizes do not fit")
    result = tuple(have if size == -1 else size for have, size in zip((1,) * more + shape, wanted, strict=True))
    if broadcast(result, shape) != result:
        raise Unfit("the sizes do not fit")
    return result, 0


def _selected(call: Call) -> _Result:
    shape = call.shape("self")
    place = axis(call.whole("dim"), len(shape))
    axis(call.whole("index"), shape[place])
    return (*shape[:place], *shape[place + 1 :]), 0


def cut(call: Call) -> tuple[int, int, int, int]:
    """(axis, start, end, step) of a slice, within the axis. Raises Unfit."""
    shape = call.shape("self")
    place = axis(call.whole("dim", 0), len(shape))
    step = call.whole("step", 1)
    if step < 1:
        raise Unfit("step is not positive")
    given = [call.arguments.get(name) for name in ("start", "end")]
    start, end, _ = slice(*(item if isinstance(item, int) else None for item in given)).indices(shape[place])
    return place, start, end, step


def _sliced(call: Call) -> _Result:
    shape = call.shape("self")
    place, start, end, step = cut(call)
    return (*shape[:place], len(range(start, end, step)), *shape[place + 1 :]), 0


def _joined(call: Call) -> _Result:
    names = call.arguments.get("tensors")
    if not isinstance(names, tuple) or not names:
        raise Unfit("tensors is missing")
    shapes = [call.shapes[str(name)] for name in names]
    place = axis(call.whole("dim", 0), len(shapes[0]))
    rest = {(*shape[:place], *shape[place + 1 :]) for shape in shapes}
    if len(rest) != 1 or len({len(shape) for shape in shapes}) != 1:
        raise Unfit("the values have different sizes")
    return (*shapes[0][:place], sum(shape[place] for shape in shapes), *shapes[0][place + 1 :]), 0


def _combined(call: Call) -> _Result:
    other = call.optional("other")
    if other is None and not isinstance(call.arguments.get("other"), int | float):
        raise Unfit("other is missing")
    shape = broadcast(call.shape("self"), other or ())
    return shape, math.prod(shape)


def _reduced(call: Call) -> _Result:
    shape, places = call.shape("self"), call.wholes("dim")
    gone = {axis(place, len(shape)) for place in places}
    if not gone or len(gone) != len(places):
        raise Unfit("dim names no axis, or one twice")
    keep = call.flag("keepdim", False)
    kept = [1 if place in gone else size for place, size in enumerate(shape) if keep or place not in gone]
    return tuple(kept), math.prod(shape)


def _softmax(call: Call) -> _Result:
    axis(call.whole("dim"), len(call.shape("self")))
    return _same(call)


def _layer_norm(call: Call) -> _Result:
    shape, wanted = call.shape("input"), call.wholes("normalized_shape")
    given = {call.optional("weight"), call.optional("bias")}
    if not wanted or shape[-len(wanted) :] != wanted or not given <= {None, wanted}:
        raise Unfit("the normalised shape does not fit")
    return shape, math.prod(shape)


def _group_norm(call: Call) -> _Result:
    shape, groups = call.shape("input"), call.whole("num_groups")
    given = {call.optional("weight"), call.optional("bias")}
    if len(shape) < 2 or groups < 1 or shape[1] % groups or not given <= {None, shape[1:2]}:
        raise Unfit("the groups do not fit the channels")
    return shape, math.prod(shape)


def _instance_norm(call: Call) -> _Result:
    shape = call.shape("input")
    given = {call.optional("weight"), call.optional("bias")}
    if len(shape) < 3 or math.prod(shape[2:]) < 2 or not given <= {None, shape[1:2]}:
        raise Unfit("there is nothing to normalise over, or weight or bias do not fit the channels")
    if not call.flag("use_input_stats", default=False):
        raise Unfit("it must normalise each record by its own values")
    return shape, math.prod(shape)


def _slopes(call: Call) -> _Result:
    shape, weight = call.shape("self"), call.shape("weight")
    if weight != (1,) and (len(shape) < 2 or weight != shape[1:2]):
        raise Unfit("the slopes do not fit the channels")
    return shape, math.prod(shape)


def spread(values: Shape, axes: int) -> Shape:
    """One number for each axis. Raises Unfit."""
    if len(values) == 1:
        return values * axes
    if len(values) != axes:
        raise Unfit(f"{len(values)} numbers for {axes} axes")
    return values


def _convolution(axes: int) -> Callable[[Call], _Result]:
    def rule(call: Call) -> _Result:
        shape, weight, bias = call.shape("input"), call.shape("weight"), call.optional("bias")
        groups = call.whole("groups", 1)
        stride, padding, dilation = (
            spread(call.wholes(name, (default,)), axes)
            for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))
        )
        if len(shape) != axes + 2 or len(weight) != axes + 2 or groups < 1 or bias not in (None, weight[:1]):
            raise Unfit("weight or bias do not fit the input")
        if shape[1] != weight[1] * groups or weight[0] % groups:
            raise Unfit("the groups do not fit the channels")
        windows = tuple(
            _windows(shape[2 + place], weight[2 + place], stride[place], padding[place], dilation[place])
            for place in range(axes)
        )
        result = (shape[0], weight[0], *windows)
        return result, math.prod(result) * math.prod(weight[1:])

    return rule


def _windows(length: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    if min(kernel, stride, dilation) < 1 or padding < 0:
        raise Unfit("a size is not positive")
    room = length + 2 * padding - dilation * (kernel - 1) - 1
    if room < 0:
        raise Unfit("the kernel is larger than the input")
    return room // stride + 1


def pooling(call: Call, axes: int) -> tuple[Shape, Shape, Shape, Shape]:
    """(kernel, stride, padding, dilation), one number for each axis. Raises Unfit."""
    kernel = spread(call.wholes("kernel_size"), axes)
    stride = spread(call.wholes("stride", ()) or kernel, axes)
    padding, dilation = spread(call.wholes("padding", (0,)), axes), spread(call.wholes("dilation", (1,)), axes)
    if any(2 * pad > size for pad, size in zip(padding, kernel, strict=True)):
        raise Unfit("the padding is more than half the kernel")
    return kernel, stride, padding, dilation


def _pooled(axes: int) -> Callable[[Call], _Result]:
    def rule(call: Call) -> _Result:
        shape = call.shape("self")
        kernel, stride, padding, dilation = pooling(call, axes)
        if len(shape) != axes + 2:
            raise Unfit(f"the input needs {axes + 2} axes")
        if call.flag("ceil_mode", False):
            raise Unfit("ceil_mode is not taken: programs disagree on its last window")
        windows = tuple(_windows(shape[2 + p], kernel[p], stride[p], padding[p], dilation[p]) for p in range(axes))
        result = (*shape[:2], *windows)
        return result, math.prod(result) * math.prod(kernel)

    return rule


def _adaptive(axes: int) -> Callable[[Call], _Result]:
    def rule(call: Call) -> _Result:
        shape, wanted = call.shape("self"), spread(call.wholes("output_size"), axes)
        if len(shape) != axes + 2 or any(size < 1 or shape[2 + p] % size for p, size in enumerate(wanted)):
            raise Unfit("the output's size does not divide the input's")
        return (*shape[:2], *wanted), math.prod(shape)

    return rule


def _attention(call: Call) -> _Result:
    query, key, value = (call.shape(name) for name in ("query", "key", "value"))
    if min(map(len, (query, key, value))) < 2 or not query[:-2] == key[:-2] == value[:-2]:
        raise Unfit("query, key and value have different leading axes")
    if query[-1] != key[-1] or key[-2] != value[-2] or float(str(call.arguments.get("dropout_p", 0.0))) != 0.0:
        raise Unfit("query, key and value do not fit, or there is dropout")
    return (*query[:-1], value[-1]), math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def attention_scores(call: Call) -> int:
    """Numbers that attention holds within: its scores and their softmax."""
    return 2 * math.prod(call.shape("query")[:-1]) * call.shape("key")[-2]


RULES: Mapping[str, Callable[[Call], _Result]] = {
    "linear.default": _linear,
    "addmm.default": _addmm,
    "mm.default": lambda call: _matrices(call, "self", 2),
    "matmul.default": lambda call: _product(call.shape("self"), call.shape("other")),
    "bmm.default": lambda call: _matrices(call, "self", 3),
    "t.default": _transposed,
    "permute.default": _permuted,
    "transpose.int": _exchanged,
    "view.default": _reshaped,
    "reshape.default": _reshaped,
    "flatten.using_ints": _flattened,
    "unflatten.int": _unflattened,
    "unsqueeze.default": _unsqueezed,
    "squeeze.dim": _squeezed,
    "expand.default": _expanded,
    "select.int": _selected,
    "slice.Tensor": _sliced,
    "cat.default": _joined,
    **dict.fromkeys(("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor"), _combined),
    **dict.fromkeys(("mean.dim", "sum.dim_IntList"), _reduced),
    **dict.fromkeys(
        ("contiguous.default", "alias.default", "clone.default", "relu.default", "tanh.default", "sigmoid.default",
         "silu.default", "exp.default", "gelu.default", "elu.default", "leaky_relu.default"),
        _same,
    ),
    **dict.fromkeys(("softmax.int", "log_softmax.int"), _softmax),
    "layer_norm.default": _layer_norm,
    "group_norm.default": _group_norm,
    "instance_norm.default": _instance_norm,
    "prelu.default": _slopes,
    **{f"conv{axes}d.default": _convolution(axes) for axes in (1, 2, 3)},
    **{f"{kind}_pool{axes}d.default": _pooled(axes) for kind in ("max", "avg") for axes in (1, 2, 3)},
    **{f"adaptive_avg_pool{axes}d.default": _adaptive(axes) for axes in (1, 2, 3)},
    "scaled_dot_product_attention.default": _attention,
}  # fmt: skip
