"""A network of the same function out of other layers: the same tree, or a graph where `torch.fx` can trace it.

The tree is cloned (containers and convolutions, never parameters), so a network with an odd forward keeps it, layer by
layer. Where the forward can be traced, the graph shows more: a BatchNorm in eval mode is folded into the convolution
or linear layer before it, or taken together with the ReLU behind it; dropout and identities go; a ReLU overwrites what
nobody else reads. What cannot be traced is a leaf of the graph, and treated as a tree.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from epsball.acceleration.layers import Affine, Convolution, clone, rewritable
from epsball.acceleration.trial import Different

Choose = Callable[[str, nn.Conv2d, bool], Convolution]
"""(name, layer, whether a ReLU is part of it) -> the convolution that stands for it."""

NOTHING_IN_EVAL = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
RELUS = (F.relu, torch.relu, F.relu_, torch.relu_)


class Untraceable(Different):
    """`torch.fx` cannot follow this forward."""


def tree(
    module: nn.Module,
    choose: Choose,
    name: str = "",
    *,
    frozen: bool = True,
    seen: dict[nn.Module, nn.Module] | None = None,
) -> nn.Module:
    """`module` with every plain convolution replaced; a layer that is used twice is one layer still.

    Not `frozen`, layers that are not replaced are the module's own: their statistics and modes are shared.
    """
    seen = {} if seen is None else seen
    if module not in seen:
        if rewritable(module):
            assert isinstance(module, nn.Conv2d), "that is what rewritable asks"
            seen[module] = choose(name, module, False)
        elif not frozen and not any(module.children()):
            seen[module] = module
        else:
            seen[module] = made = clone(module, frozen=frozen)
            for child, part in module._modules.items():
                if part is not None:
                    path = f"{name}.{child}" if name else child
                    made._modules[child] = tree(part, choose, path, frozen=frozen, seen=seen)
            if not frozen and type(made) is nn.Sequential and "forward" not in vars(made):
                _rectify_in_place(made)
    return seen[module]


def _rectify_in_place(made: nn.Sequential) -> None:
    """A ReLU right behind a convolution overwrites what nobody else reads: fresh memory costs more than the ReLU."""
    parts = list(made._modules.items())
    for (_, before), (name, after) in pairwise(parts):
        plain = type(after) is nn.ReLU and not after.inplace and "forward" not in vars(after)
        if isinstance(before, Convolution) and plain and not _hooked(before) and not _hooked(after):
            made._modules[name] = own = cast(nn.ReLU, clone(after, frozen=False))
            own.inplace = True


def graph(model: nn.Module, choose: Choose, x: Tensor, *, channels_last: bool = False) -> fx.GraphModule:
    """`model`, in eval mode, as a graph of fewer and cheaper layers for examples of x's shape.

    Raises `Untraceable` where its forward cannot be followed.
    """
    if any(_hooked(part) for part in model.modules()):
        raise Untraceable("it has hooks")
    traced = _traced(model)
    layers: dict[str, nn.Module] = dict(traced.named_modules(remove_duplicate=False))
    _drop_what_does_nothing(traced, layers)
    _fold_norms(traced, layers)
    _join_rectifiers(traced, layers, choose)
    if channels_last:
        _as_channels_last(traced, layers, x)
    _mark_fresh(layers, traced)
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()
    return traced


def _hooked(part: nn.Module) -> bool:
    forward, backward = part._forward_hooks or part._forward_pre_hooks, part._backward_hooks or part._backward_pre_hooks
    return bool(forward or backward)


class _Tracer(fx.Tracer):
    """torch's layers and modules that cannot be traced are leaves."""

    def __init__(self, leaves: set[nn.Module]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m in self.leaves or super().is_leaf_module(m, module_qualified_name)


def _traced(model: nn.Module) -> fx.GraphModule:
    leaves: set[nn.Module] = set()
    known, root, found = fx.Tracer(), model, fx.Graph()
    if known.is_leaf_module(model, ""):
        raise Untraceable("it is one of torch's layers")
    for part in reversed(list(model.modules())):  # children come before those that hold them
        if known.is_leaf_module(part, ""):
            continue
        root = clone(part, frozen=True)  # fx keeps the constants that it meets in attributes of the root
        try:
            found = _Tracer(leaves).trace(root)
        except Exception as error:  # fx raises what the forward raises on its proxies
            if part is model:
                raise Untraceable(str(error)) from error
            leaves.add(part)
    owned: dict[str, Any] = {}
    seen: dict[nn.Module, nn.Module] = {}
    for node in found.nodes:
        if node.op in ("call_module", "get_attr"):
            owned[node.target] = _owned(attrgetter(node.target)(root), seen)
    return fx.GraphModule(owned, found).eval()


def _owned(part: Any, seen: dict[nn.Module, nn.Module]) -> Any:
    """A layer, or a parameter or buffer that the forward itself names, frozen; its tensors are the same memory."""
    if isinstance(part, nn.Module):
        return tree(part, lambda _, layer, __: cast(Convolution, clone(layer, frozen=True)), seen=seen)
    return nn.Parameter(part.detach(), False) if isinstance(part, nn.Parameter) else part


def _sole_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _layer(node: fx.Node | None, layers: dict[str, nn.Module]) -> nn.Module | None:
    plain = node is not None and node.op == "call_module" and len(node.args) == 1 and not node.kwargs
    return layers[str(node.target)] if plain and node is not None else None


def _source(node: fx.Node) -> fx.Node | None:
    """The node whose result is the first argument, where that is given by place."""
    return node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None


def _is_relu(node: fx.Node | None, layers: dict[str, nn.Module]) -> bool:
    if node is None:
        return False
    if node.op == "call_module":
        return type(_layer(node, layers)) is nn.ReLU
    if node.op == "call_method":
        return node.target in ("relu", "relu_") and len(node.args) == 1
    return node.op == "call_function" and node.target in RELUS and _source(node) is not None


def _put(traced: fx.GraphModule, layers: dict[str, nn.Module], node: fx.Node, layer: nn.Module) -> None:
    """Make `node` a call of `layer` on what it is called on."""
    name = f"fast_{node.name}"
    traced.add_submodule(name, layer)
    layers[name] = layer
    node.op, node.target, node.args, node.kwargs = "call_module", name, (node.args[0],), {}


def _skip(node: fx.Node, source: Any) -> None:
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def _drop_what_does_nothing(traced: fx.GraphModule, layers: dict[str, nn.Module]) -> None:
    for node in list(traced.graph.nodes):
        if type(_layer(node, layers)) in NOTHING_IN_EVAL:
            _skip(node, node.args[0])


def _fold_norms(traced: fx.GraphModule, layers: dict[str, nn.Module]) -> None:
    for node in list(traced.graph.nodes):
        norm = _layer(node, layers)
        if not (
            isinstance(norm, NORMS) and type(norm) in NORMS and norm.running_mean is not None and not norm.training
        ):
            continue
        before = node.args[0]
        layer = _layer(before, layers) if _sole_reader(before) is node else None
        if type(layer) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            _put(traced, layers, before, fuse_conv_bn_eval(layer, norm).requires_grad_(False))
        elif type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d:
            _put(traced, layers, before, fuse_linear_bn_eval(layer, norm).requires_grad_(False))
        else:
            reader = _sole_reader(node)
            rectified = _is_relu(reader, layers)
            _put(traced, layers, node, Affine(norm, rectified=rectified))
            if rectified and reader is not None:
                _skip(reader, node)
            continue
        _skip(node, before)


def _join_rectifiers(traced: fx.GraphModule, layers: dict[str, nn.Module], choose: Choose) -> None:
    for node in list(traced.graph.nodes):
        layer = _layer(node, layers)
        if layer is None:
            continue
        reader = _sole_reader(node)
        rectified = _is_relu(reader, layers)
        if rewritable(layer):
            assert isinstance(layer, nn.Conv2d), "that is what rewritable asks"
            _put(traced, layers, node, choose(str(node.target), layer, rectified))
            if rectified and reader is not None:
                _skip(reader, node)
        elif any(layer.children()):  # it cannot be traced
            _put_tree(traced, layers, node, tree(layer, choose, str(node.target)))
        elif rectified and reader is not None and isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            reader.op, reader.target, reader.args, reader.kwargs = "call_function", F.relu_, (node,), {}


def _put_tree(traced: fx.GraphModule, layers: dict[str, nn.Module], node: fx.Node, layer: nn.Module) -> None:
    name = f"fast_{node.name}"
    traced.add_submodule(name, layer)
    layers[name], node.target = layer, name


def _as_channels_last(traced: fx.GraphModule, layers: dict[str, nn.Module], x: Tensor) -> None:
    """Images go in with their channels last; a view, which cannot be had of them, becomes a reshape.

    What is flattened on its way to a linear layer stays in the order of memory; the layer's columns are put in it.
    """
    ShapeProp(traced).propagate(x[:2])
    for node in list(traced.graph.nodes):
        if node.op == "placeholder":
            with traced.graph.inserting_after(node):
                laid = traced.graph.call_function(laid_out, (node,))
            node.replace_all_uses_with(laid)
            laid.args = (node,)
        elif node.op == "call_method" and node.target == "view" and torch.dtype not in map(type, node.args):
            node.target = "reshape"
    for node in list(traced.graph.nodes):
        reader = _sole_reader(node)
        linear = _layer(reader, layers)
        if reader is None or type(linear) is not nn.Linear or not _flattens(node, layers):
            continue
        c, h, w = node.args[0].meta["tensor_meta"].shape[1:]
        sorted_columns = linear.weight.detach().reshape(-1, c, h, w).permute(0, 2, 3, 1).flatten(1)
        made = clone(linear, frozen=True)
        made.weight = nn.Parameter(sorted_columns.contiguous(), False)
        node.op, node.target, node.args, node.kwargs = "call_function", flat_as_laid_out, (node.args[0],), {}
        _put(traced, layers, reader, made)


FLATTENING = ("flatten", "view", "reshape")


def _flattens(node: fx.Node, layers: dict[str, nn.Module]) -> bool:
    """Whether a node makes rows (n, c h w) of images (n, c, h, w), seen on two examples."""
    named = node.op == "call_method" and node.target in FLATTENING
    named |= node.op == "call_function" and node.target in (torch.flatten, torch.reshape)
    source = _source(node)
    if not (named or type(_layer(node, layers)) is nn.Flatten) or source is None:
        return False
    before, after = (part.meta.get("tensor_meta") for part in (source, node))
    if not isinstance(before, TensorMetadata) or not isinstance(after, TensorMetadata) or len(before.shape) != 4:
        return False
    return tuple(after.shape) == (before.shape[0], before.shape[1:].numel())


def flat_as_laid_out(x: Tensor) -> Tensor:
    """Images (n, c, h, w) as rows (n, h w c): a view where the channels are last in memory."""
    return x.permute(0, 2, 3, 1).flatten(1)


def _mark_fresh(layers: dict[str, nn.Module], traced: fx.GraphModule) -> None:
    """Where what comes back to a ReLU was made for it alone, it may be overwritten."""
    for node in traced.graph.nodes:
        layer = _layer(node, layers)
        if not isinstance(layer, Convolution | Affine) or not layer.rectified:
            continue
        reader = _sole_reader(node)
        if reader is not None and reader.op == "call_function" and reader.target is flat_as_laid_out:
            reader = _sole_reader(reader)
        layer.fresh = isinstance(_layer(reader, layers), Convolution | Affine) or type(_layer(reader, layers)) in (
            nn.Linear,
            nn.Conv2d,
        )


class LaidOut(nn.Module):
    """`laid_out` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return laid_out(x)


def laid_out(x: Tensor) -> Tensor:
    """Images (n, c, h, w) with the channels last in memory; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
