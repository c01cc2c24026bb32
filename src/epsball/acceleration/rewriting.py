"""A network of the same function, made of other layers: the same tree, or a graph where `torch.fx` can trace it.

The tree is cloned (containers and convolutions, never parameters), so that a network keeps its forward, and its layers
are replaced one by one. Where the forward can be traced, the graph allows more: a BatchNorm in eval mode is folded into
the convolution or linear layer before it, or fused with the ReLU after it; dropout and identities are removed; a ReLU
overwrites what no other layer reads. A module that cannot be traced is a leaf of the graph, and rewritten as a tree.
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

from epsball.acceleration.layers import Convolution, FoldedBatchNorm, clone, rewritable
from epsball.acceleration.trial import Different

Choose = Callable[[str, nn.Conv2d, bool], Convolution]
"""(name, layer, whether a ReLU is fused with it) -> the convolution that replaces it."""

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
    """`module` with every plain convolution replaced; a layer that is used twice remains one layer.

    If not `frozen`, layers that are not replaced are the module's own: their statistics and modes are shared.
    """
    seen = {} if seen is None else seen
    if module not in seen:
        if rewritable(module):
            assert isinstance(module, nn.Conv2d), "rewritable has checked it"
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
    """A ReLU right after a convolution overwrites its input: new memory costs more than the ReLU."""
    parts = list(made._modules.items())
    for (_, before), (name, after) in pairwise(parts):
        plain = type(after) is nn.ReLU and not after.inplace and "forward" not in vars(after)
        if isinstance(before, Convolution) and plain and not _hooked(before) and not _hooked(after):
            made._modules[name] = own = cast(nn.ReLU, clone(after, frozen=False))
            own.inplace = True


def graph(model: nn.Module, choose: Choose, x: Tensor, *, channels_last: bool = False) -> fx.GraphModule:
    """`model`, in eval mode, as a graph of fewer and cheaper layers for examples of x's shape.

    Raises `Untraceable` where its forward cannot be traced.
    """
    if any(_hooked(part) for part in model.modules()):
        raise Untraceable("it has hooks")
    rewriting = _GraphRewriting(_traced(model))
    rewriting.drop_identities()
    rewriting.fold_norms()
    rewriting.fuse_rectifiers(choose)
    if channels_last:
        rewriting.lay_out_channels_last(x)
    rewriting.mark_exclusive_gradients()
    traced = rewriting.traced
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
    tracer, root, found = fx.Tracer(), model, fx.Graph()
    if tracer.is_leaf_module(model, ""):
        raise Untraceable("it is one of torch's layers")
    for part in reversed(list(model.modules())):  # children come before their parents
        if tracer.is_leaf_module(part, ""):
            continue
        root = clone(part, frozen=True)  # fx writes the constants that it meets into attributes of the root
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


FLATTENING = ("flatten", "view", "reshape")


class _GraphRewriting:
    """The changes of a traced network, one method each; `layers` are its modules by name."""

    def __init__(self, traced: fx.GraphModule) -> None:
        self.traced = traced
        self.layers: dict[str, nn.Module] = dict(traced.named_modules(remove_duplicate=False))

    def drop_identities(self) -> None:
        """Remove the layers that do nothing in eval mode."""
        for node in list(self.traced.graph.nodes):
            if type(self._layer(node)) in NOTHING_IN_EVAL:
                _replace(node, node.args[0])

    def fold_norms(self) -> None:
        """Fold each BatchNorm into the layer before it, or else fuse it with the ReLU after it."""
        for node in list(self.traced.graph.nodes):
            norm = self._layer(node)
            if not isinstance(norm, NORMS) or type(norm) not in NORMS or norm.running_mean is None or norm.training:
                continue
            before = node.args[0]
            layer = self._layer(before) if _sole_reader(before) is node else None
            if type(layer) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
                self._put(before, fuse_conv_bn_eval(layer, norm).requires_grad_(False))
            elif type(layer) is nn.Linear and type(norm) is nn.BatchNorm1d:
                self._put(before, fuse_linear_bn_eval(layer, norm).requires_grad_(False))
            else:
                relu = self._relu_after(node)
                self._put(node, FoldedBatchNorm(norm, rectified=relu is not None))
                if relu is not None:
                    _replace(relu, node)
                continue
            _replace(node, before)

    def fuse_rectifiers(self, choose: Choose) -> None:
        """Replace convolutions, with the ReLU after them; other ReLUs right after a layer work in place."""
        for node in list(self.traced.graph.nodes):
            layer = self._layer(node)
            if layer is None:
                continue
            relu = self._relu_after(node)
            if rewritable(layer):
                assert isinstance(layer, nn.Conv2d), "rewritable has checked it"
                self._put(node, choose(str(node.target), layer, relu is not None))
                if relu is not None:
                    _replace(relu, node)
            elif any(layer.children()):  # it cannot be traced
                self._put(node, tree(layer, choose, str(node.target)))
            elif relu is not None and isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
                relu.op, relu.target, relu.args, relu.kwargs = "call_function", F.relu_, (node,), {}

    def lay_out_channels_last(self, x: Tensor) -> None:
        """Images enter with their channels last; a view, which is impossible in that layout, becomes a reshape.

        What is flattened for a linear layer stays in the order of memory; the layer's columns are put in that order.
        """
        graph = self.traced.graph
        ShapeProp(self.traced).propagate(x[:2])
        for node in list(graph.nodes):
            if node.op == "placeholder":
                with graph.inserting_after(node):
                    laid_out = graph.call_function(channels_last, (node,))
                node.replace_all_uses_with(laid_out)
                laid_out.args = (node,)
            elif node.op == "call_method" and node.target == "view" and torch.dtype not in map(type, node.args):
                node.target = "reshape"
        for node in list(graph.nodes):
            reader = _sole_reader(node)
            linear = self._layer(reader)
            if reader is None or type(linear) is not nn.Linear or not self._flattens(node):
                continue
            c, h, w = node.args[0].meta["tensor_meta"].shape[1:]
            sorted_columns = linear.weight.detach().reshape(-1, c, h, w).permute(0, 2, 3, 1).flatten(1)
            made = clone(linear, frozen=True)
            made.weight = nn.Parameter(sorted_columns.contiguous(), False)
            node.op, node.target, node.args, node.kwargs = "call_function", flat_channels_last, (node.args[0],), {}
            self._put(reader, made)

    def mark_exclusive_gradients(self) -> None:
        """Mark the fused ReLUs whose incoming gradient is read by nothing else: they may overwrite it."""
        for node in self.traced.graph.nodes:
            layer = self._layer(node)
            if not isinstance(layer, Convolution | FoldedBatchNorm) or not layer.rectified:
                continue
            reader = _sole_reader(node)
            if reader is not None and reader.op == "call_function" and reader.target is flat_channels_last:
                reader = _sole_reader(reader)
            after = self._layer(reader)
            layer.exclusive = isinstance(after, Convolution | FoldedBatchNorm) or type(after) in (nn.Linear, nn.Conv2d)

    def _layer(self, node: fx.Node | None) -> nn.Module | None:
        """The layer that a node calls on one argument; None where it does anything else."""
        if node is None or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
            return None
        return self.layers[str(node.target)]

    def _put(self, node: fx.Node, layer: nn.Module) -> None:
        """Make `node` a call of `layer` on its first argument."""
        name = f"fast_{node.name}"
        self.traced.add_submodule(name, layer)
        self.layers[name] = layer
        node.op, node.target, node.args, node.kwargs = "call_module", name, (node.args[0],), {}

    def _relu_after(self, node: fx.Node) -> fx.Node | None:
        """The ReLU that alone reads a node, if there is one."""
        reader = _sole_reader(node)
        if reader is None:
            return None
        if reader.op == "call_module":
            found = type(self._layer(reader)) is nn.ReLU
        elif reader.op == "call_method":
            found = reader.target in ("relu", "relu_") and len(reader.args) == 1
        else:
            found = reader.op == "call_function" and reader.target in RELUS and _first_argument(reader) is not None
        return reader if found else None

    def _flattens(self, node: fx.Node) -> bool:
        """Whether a node makes rows (n, c h w) of images (n, c, h, w), judged by two examples."""
        named = node.op == "call_method" and node.target in FLATTENING
        named |= node.op == "call_function" and node.target in (torch.flatten, torch.reshape)
        source = _first_argument(node)
        if not (named or type(self._layer(node)) is nn.Flatten) or source is None:
            return False
        before, after = (part.meta.get("tensor_meta") for part in (source, node))
        if not isinstance(before, TensorMetadata) or not isinstance(after, TensorMetadata) or len(before.shape) != 4:
            return False
        return tuple(after.shape) == (before.shape[0], before.shape[1:].numel())


def _sole_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _first_argument(node: fx.Node) -> fx.Node | None:
    """The node whose result is the first positional argument."""
    return node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None


def _replace(node: fx.Node, source: Any) -> None:
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def flat_channels_last(x: Tensor) -> Tensor:
    """Images (n, c, h, w) as rows (n, h w c): a view where the channels are last in memory."""
    return x.permute(0, 2, 3, 1).flatten(1)


class ChannelsLast(nn.Module):
    """`channels_last` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        return channels_last(x)


def channels_last(x: Tensor) -> Tensor:
    """Images (n, c, h, w) with the channels last in memory; anything else unchanged."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
