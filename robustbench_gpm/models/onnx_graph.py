"""A network from an ONNX graph, freed from the batch size it was exported with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core import UserError, frozen
from .checks import in_short, require_file
from .external import optional
from .options import ModelOptions


def onnx_network(path: Path) -> nn.Module:
    """The graph in `path` as a module that takes batches of any size.

    Raises UserError where onnx2torch is absent, or the file is not a graph it can convert.
    """
    onnx, onnx2torch = optional("onnx", "onnx"), optional("onnx2torch", "onnx")
    require_file(path, "ONNX")
    try:
        proto = onnx.load(str(path))
    except Exception as error:  # protobuf and external data have errors of their own
        raise UserError(f"'{path}' is not a readable ONNX file: {in_short(error)}") from error
    if not proto.graph.node:
        raise UserError(f"'{path}' holds no ONNX graph: export the model again")
    free_batch_size(proto, onnx)
    try:
        network: nn.Module = onnx2torch.convert(proto)
    except Exception as error:
        raise UserError(f"onnx2torch cannot convert '{path}': {in_short(error)}") from error
    return network


def free_batch_size(proto: Any, onnx: Any) -> None:
    """Rewrite the graph, in place, where exporting it baked the batch size in.

    The batch dimensions of inputs and outputs become symbolic. A Reshape of something that depends
    on the image to a constant shape that begins with the batch size begins with -1 instead, which
    in ONNX means: whatever is left; or, where the shape has a -1 already, with 0, which means: as
    it is.
    """
    graph = proto.graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    images = [value for value in graph.input if value.name not in constants]
    sizes = [_batch_dimension(value).dim_value for value in images if _has_batch(value)]
    baked = max(sizes, default=0) or 1
    for value in (*images, *graph.output):
        if _has_batch(value):
            _batch_dimension(value).dim_param = "batch"
    del graph.value_info[:]  # shapes in between, which were worked out for the old batch size

    dependent = {value.name for value in images}
    for node in graph.node:
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(node, onnx)
        if dependent.isdisjoint(node.input):
            continue
        dependent.update(node.output)
        if node.op_type == "Reshape" and _starts_with(constants.get(node.input[1]), baked):
            freed = constants[node.input[1]].copy()
            freed[0] = 0 if -1 in freed else -1
            name = f"{node.output[0]}/shape_of_any_batch"
            graph.initializer.append(onnx.numpy_helper.from_array(freed, name))
            node.input[1] = name


def _has_batch(value: Any) -> bool:
    return len(value.type.tensor_type.shape.dim) > 0


def _batch_dimension(value: Any) -> Any:
    return value.type.tensor_type.shape.dim[0]


def _constant(node: Any, onnx: Any) -> Any:
    held = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if "value" in held:
        return onnx.numpy_helper.to_array(held["value"])
    return None  # scalars, lists and strings are no shapes that exporters write


def _starts_with(shape: Any, batch: int) -> bool:
    return shape is not None and shape.ndim == 1 and len(shape) > 1 and shape[0] == batch


def check_batches(model: nn.Module, options: ModelOptions, path: Path) -> None:
    """Raise UserError unless two images together give what each gives alone."""
    shape = (2, options.channels, options.image_size, options.image_size)
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad(), frozen(model):
            together = model(images)
            alone = torch.cat([model(images[:1]), model(images[1:])])
    except Exception as error:
        raise UserError(
            f"'{path}' takes only the batch size it was exported with: export it with a dynamic "
            f"batch axis ({in_short(error)})"
        ) from error
    scale = float(alone.abs().max()) + 1e-6
    if together.shape != alone.shape or float((together - alone).abs().max()) > 1e-3 * scale:
        raise UserError(
            f"'{path}' mixes the images of a batch, as it gives other logits for two images "
            "together than for each alone: export it with a dynamic batch axis"
        )
