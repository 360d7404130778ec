"""``nn.Module`` -> float graph, through torch.export.

The module is exported for a batch of two and its ATen operations are run on symbolic values (see
:mod:`mcfhe.graph.symbolic`); what is constant is computed, in float64. The result is then checked against the module
itself on a batch of another size, so that an operation read wrongly, a dependence on the batch or a random one ends
in a refusal and never in a program that computes something else.
"""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Node as FxNode

from mcfhe.errors import ParameterError, UnsupportedLayerError
from mcfhe.graph import import_layers, import_polynomials, import_shapes, refusals
from mcfhe.graph.floats import evaluate_floats
from mcfhe.graph.import_context import HANDLERS, Context
from mcfhe.graph.import_errors import cycle, failing_layer
from mcfhe.graph.nodes import MAX_ELEMENTS, Graph
from mcfhe.graph.symbolic import IDENTITY, GraphBuilder, Value

__all__ = ["check_shape", "import_module"]

_BATCH = 2
_REGISTERED = (import_layers, import_polynomials, import_shapes)  # imported for the handlers they register
_NO_RESULT = frozenset({"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range"})


def import_module(model: nn.Module, input_shape: tuple[int, int, int]) -> Graph:
    """The float graph of a module in eval mode.

    Args:
        model: from normalised floats ``[batch, C, H, W]`` to scores ``[batch, labels]``; any floating dtype and device.
        input_shape: (C, H, W).

    Raises:
        UnsupportedLayerError: an operation that exact residue arithmetic does not run; names the layer by its path in
            the model and says what to use instead.
        ParameterError: a model in train mode, a weight that is not finite, an input shape the model does not take.
    """
    shape = check_shape(input_shape)
    _check_model(model)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    example = torch.zeros(_BATCH, *shape, dtype=like.dtype, device=like.device)
    _check_forward(model, example)
    graph = _Importer(model, shape).run(_export(model, example))
    _check_result(model, graph, like)
    return graph


def check_shape(input_shape: Sequence[int]) -> tuple[int, int, int]:
    """(C, H, W) as three ints of 1..65536; ParameterError otherwise."""
    try:
        shape = tuple(input_shape)
    except TypeError:
        shape = ()
    if len(shape) != 3 or any(not isinstance(v, int | np.integer) or not 1 <= v <= 1 << 16 for v in shape):
        raise ParameterError(f"input_shape: {input_shape!r} is not (C, H, W) with fixed sizes of 1..65536")
    if math.prod(map(int, shape)) > MAX_ELEMENTS:
        raise ParameterError(f"input_shape: {shape} has more than {MAX_ELEMENTS} elements")
    return (int(shape[0]), int(shape[1]), int(shape[2]))


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise ParameterError(f"model: {type(model).__name__} is not a torch.nn.Module")
    if (found := cycle(model)) is not None:
        what = f"layer {found[1]!r}" if found[1] else "the model"
        raise ParameterError(f"layer {found[0]!r}: is {what}, which contains it; a module must not contain itself")
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        what = f"its layer {training!r}" if training else "it"
        raise ParameterError(f"model: {what} is in train mode; call model.eval() first")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            raise ParameterError(f"parameter {name!r}: is on the meta device, without values; load them first")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ParameterError(f"parameter {name!r}: holds NaN or infinity; train again or repair the checkpoint")


def _check_forward(model: nn.Module, example: Tensor) -> None:
    shape = tuple(example.shape[1:])
    try:
        with torch.no_grad():
            output = model(example)
    except Exception as error:  # whatever the user's forward() raises
        where = failing_layer(model, lambda: model(example))
        raise ParameterError(
            f"input_shape: the model does not run on [batch, {str(shape)[1:-1]}]: {where}{_first_line(error)}"
        ) from error
    if not isinstance(output, Tensor):
        raise UnsupportedLayerError(f"model: returns {type(output).__name__}; it must return one tensor of scores")
    if output.dim() != 2 or output.shape[0] != example.shape[0]:
        raise UnsupportedLayerError(
            f"model: returns shape {tuple(output.shape)} for a batch of {example.shape[0]}; it must be (batch, labels)"
        )


def _export(model: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    try:
        with torch.no_grad(), _quiet("torch.fx.experimental.symbolic_shapes"):
            exported = torch.export.export(model, (example,))
            schemas = [getattr(node.target, "_schema", None) for node in exported.graph.nodes]
            if any(schema is not None and schema.is_mutable for schema in schemas):
                # an empty table decomposes nothing, but turns in-place operations into plain ones
                exported = exported.run_decompositions({})
            return exported
    except Exception as error:  # torch.export has no common base for what it raises
        with torch.no_grad(), _quiet("torch.fx.experimental.symbolic_shapes"):
            where = failing_layer(model, lambda: torch.export.export(model, (example,)))
        raise UnsupportedLayerError(
            f"{where or 'model: '}torch.export cannot trace it; control flow must not depend on the image, and shapes "
            f"must be fixed ({_first_line(error)})"
        ) from error


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Without torch's own report of what is about to become one clear error."""
    target = logging.getLogger(logger)
    disabled, target.disabled = target.disabled, True
    try:
        yield
    finally:
        target.disabled = disabled


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


class _Importer:
    """Runs the exported graph once on symbolic values."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
        self.model = model
        self.builder = GraphBuilder(input_shape)
        self.values: dict[FxNode, Any] = {}

    def run(self, exported: torch.export.ExportedProgram) -> Graph:
        signature = exported.graph_signature
        if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
            changed = next(iter({**signature.buffers_to_mutate, **signature.user_inputs_to_mutate}.values()))
            raise UnsupportedLayerError(f"model: forward() changes {changed!r}; it must compute and keep nothing")
        exported.graph.eliminate_dead_code()
        state = {**exported.state_dict, **exported.constants}
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        for node in exported.graph.nodes:
            if node.op == "placeholder":
                is_image = node.name in signature.user_inputs
                self.values[node] = Value(0, IDENTITY) if is_image else _exact(state[names[node.name]])
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            elif node.op == "output":
                return self._finish(node.args[0][0])
        raise UnsupportedLayerError("model: the exported graph has no output")

    def _finish(self, node: Any) -> Graph:
        output = self.values.get(node)
        if not isinstance(output, Value):
            raise UnsupportedLayerError("model: the scores do not depend on the image")
        if output.view is not None:
            raise UnsupportedLayerError("model: the scores are not of shape (batch, labels); end with a Flatten")
        return self.builder.finish(self.builder.materialise(output))

    def _call(self, node: FxNode) -> Any:
        args: Any = torch.fx.node.map_arg(node.args, self.values.__getitem__)
        kwargs: Any = torch.fx.node.map_arg(node.kwargs, self.values.__getitem__)
        depends = any(isinstance(self.values[source], Value | tuple) for source in node.all_input_nodes)
        if node.target is operator.getitem:
            return args[0][args[1]]
        name, where = self._names(node)
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            raise UnsupportedLayerError(
                f"{where} is control flow, which must not depend on the image; use a straight line of layers"
            )
        operation = schema.name.split("::")[-1]
        if operation in _NO_RESULT:
            return None
        if not depends:
            return self._fold(node, args, kwargs)
        shape = getattr(node.meta.get("val"), "shape", None)
        context = Context(self.builder, name, where, None if shape is None else tuple(shape), _BATCH)
        handler = HANDLERS.get(operation)
        if handler is None:
            context.refuse(refusals.advice(operation))
        named = dict(zip((argument.name for argument in schema.arguments), args, strict=False))
        return handler(context, **named, **kwargs)

    def _fold(self, node: FxNode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation on constants: run it, on the CPU and in float64."""
        if "device" in kwargs:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        with torch.no_grad():
            return _exact(node.target(*args, **kwargs))  # type: ignore[operator]

    def _names(self, node: FxNode) -> tuple[str, str]:
        """The layer's name in the graph, and how a message calls it."""
        schema = getattr(node.target, "_schema", None)
        operation = (schema.name.split("::")[-1] if schema is not None else str(node.target)).strip("_")
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path = stack[-1][0].split("@")[0] if stack else ""  # "act@1" is the second run of the shared module "act"
        if not path:
            return operation, f"forward() of {type(self.model).__name__}: {operation}"
        module = self.model.get_submodule(path)
        leaf = not any(True for _ in module.children())
        return path if leaf else f"{path}.{operation}", f"layer {path!r} ({type(module).__name__}): {operation}"


def _exact(value: Any) -> Any:
    """Constants in float64, so that folding them adds no rounding of its own worth speaking of."""
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        return value.to(torch.float64) if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return [_exact(item) for item in value]
    return value


def _check_result(model: nn.Module, graph: Graph, like: Tensor) -> None:
    """Run graph and module on three images that the export has not seen; UnsupportedLayerError if they differ.

    The tolerance is that of the module's own precision, 4 * sqrt(eps) of the largest score. Images on which the
    module itself overflows prove nothing and are passed over.
    """
    images = np.random.default_rng(0).uniform(-1, 1, (_BATCH + 1, *graph.input_shape))
    try:
        with torch.no_grad():
            output = model(torch.from_numpy(images).to(like.device, like.dtype))
    except Exception as error:  # whatever the user's forward() raises
        raise UnsupportedLayerError(f"model: runs on {_BATCH} images but not on 3: {_first_line(error)}") from error
    expected = output.detach().cpu().to(torch.float64).numpy()
    found = evaluate_floats(graph, images)
    tolerance = 4 * math.sqrt(torch.finfo(like.dtype).eps) * max(1e-30, float(np.abs(expected).max()))
    if found.shape != expected.shape or (np.isfinite(expected).all() and np.abs(found - expected).max() > tolerance):
        raise UnsupportedLayerError(
            "model: its own scores differ from those of the imported graph; forward() must be a fixed function of one "
            "image, without dependence on the batch size and without random numbers"
        )
