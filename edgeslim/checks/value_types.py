"""The element type of every value of an ONNX graph, without its weights.

``onnx.shape_inference`` stops at the first operator of another domain than ONNX's own and needs a whole model. Here
only types matter, and one pass in node order finds them:

1. an output whose type parameter is bound by an input has that input's type;
2. a type parameter with a single allowed type has that one;
3. If, Loop, Scan and functions of the model take what their bodies give;
4. ONNX's own inference of one node (``Cast``, ``Constant``, sequences ...), and three rules for com.microsoft;
5. what the file states for the value.

What is still open has the type ``None``; a value that a node leaves out has ``""``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import shape_inference

from edgeslim.checks.kernel_table import ABSENT, Signature, bind
from edgeslim.errors import BadInputError

__all__ = ["TypedNode", "type_text", "walk_model"]

MAX_DEPTH = 64

SchemaOf = Callable[[str, str, int], Signature | None]
"""The schema of (domain, operator, opset), or None."""

Types = dict[str, str | None]


@dataclass(frozen=True, kw_only=True)
class TypedNode:
    """A node with the types of its inputs and outputs; ``path`` names the graphs and functions around it."""

    path: str
    node: onnx.NodeProto
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    opsets: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class _Scope:
    """Where the walk is: ``types`` of the values that are visible, ``stated`` ones of the file."""

    path: str
    opsets: Mapping[str, int]
    types: Types
    stated: Types = field(default_factory=dict)
    attributes: Mapping[str, onnx.AttributeProto] = field(default_factory=dict)
    depth: int = 0


def walk_model(model: onnx.ModelProto, schema_of: SchemaOf) -> Iterator[TypedNode]:
    """All nodes that run: those of the graph, of subgraphs, and of the model's functions where they are called.

    Raises:
        BadInputError: graphs or functions nested deeper than 64.
    """
    walker = _Walker(model, schema_of)
    opsets = {item.domain: item.version for item in model.opset_import}
    if "ai.onnx" in opsets:
        opsets.setdefault("", opsets["ai.onnx"])
    yield from walker.graph(model.graph, _Scope(path="", opsets=opsets, types={}))


def type_text(proto: onnx.TypeProto) -> str | None:
    """A type as ONNX writes it, ``tensor(float)``, or None if it is left open."""
    kind = proto.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        number = (proto.tensor_type if kind == "tensor_type" else proto.sparse_tensor_type).elem_type
        name = _element(number)
        return name if name is None or kind == "tensor_type" else f"sparse_{name}"
    if kind in ("sequence_type", "optional_type"):
        inner = type_text(proto.sequence_type.elem_type if kind == "sequence_type" else proto.optional_type.elem_type)
        return inner and f"{'seq' if kind == 'sequence_type' else 'optional'}({inner})"
    if kind == "map_type":
        key, value = _element(proto.map_type.key_type), type_text(proto.map_type.value_type)
        return f"map({key.removeprefix('tensor(')[:-1]},{value})" if key and value else None
    return None


class _Walker:
    def __init__(self, model: onnx.ModelProto, schema_of: SchemaOf) -> None:
        self._schema_of = schema_of
        self._functions = {(item.domain, item.name, item.overload): item for item in model.functions}
        self._ir_version = model.ir_version

    def graph(self, graph: onnx.GraphProto, scope: _Scope) -> Iterator[TypedNode]:
        """The nodes of ``graph``, whose values are entered into ``scope.types``."""
        for value in graph.input:
            scope.types[value.name] = type_text(value.type) or scope.types.get(value.name)
        scope.types.update({item.name: _element(item.data_type) for item in graph.initializer})
        scope.types.update({item.values.name: _element(item.values.data_type) for item in graph.sparse_initializer})
        scope.stated.update({value.name: type_text(value.type) for value in (*graph.value_info, *graph.output)})
        yield from self._nodes(graph.node, scope)

    def _nodes(self, nodes: Iterable[onnx.NodeProto], scope: _Scope) -> Iterator[TypedNode]:
        if scope.depth > MAX_DEPTH:
            raise BadInputError(scope.path, f"graphs and functions nested more than {MAX_DEPTH} deep")
        for raw in nodes:
            node = _resolve(raw, scope.attributes)
            inputs = tuple(scope.types.get(name) if name else ABSENT for name in node.input)
            domain = "" if node.domain == "ai.onnx" else node.domain
            function = self._functions.get((node.domain, node.op_type, node.overload))
            if function is not None:
                inner = yield from self._call(function, node, inputs, scope)
                scope.types.update(zip(node.output, inner, strict=False))
                continue
            bodies = yield from self._bodies(node, inputs, scope)
            opset = scope.opsets.get(domain, 1 if domain else 0)
            signature = self._schema_of(domain, node.op_type, opset)
            found = self._outputs(node, domain, inputs, signature, bodies, scope)
            scope.types.update({name: item for name, item in zip(node.output, found, strict=True) if name})
            outputs = tuple(item if name else ABSENT for name, item in zip(node.output, found, strict=True))
            yield TypedNode(path=scope.path, node=node, inputs=inputs, outputs=outputs, opsets=scope.opsets)

    def _call(
        self, function: onnx.FunctionProto, node: onnx.NodeProto, inputs: Sequence[str | None], scope: _Scope
    ) -> Generator[TypedNode, None, list[str | None]]:
        attributes = {item.name: item for item in (*function.attribute_proto, *node.attribute)}
        inner = _Scope(
            path=f"{scope.path}{node.name or node.op_type}/",
            opsets={item.domain: item.version for item in function.opset_import},
            types=dict(zip(function.input, inputs, strict=False)),
            stated={value.name: type_text(value.type) for value in function.value_info},
            attributes=attributes,
            depth=scope.depth + 1,
        )
        yield from self._nodes(function.node, inner)
        return [inner.types.get(name) for name in function.output]

    def _bodies(
        self, node: onnx.NodeProto, inputs: Sequence[str | None], scope: _Scope
    ) -> Generator[TypedNode, None, list[str | None] | None]:
        """Walks the graphs in a node's attributes, and gives the types of the first one's outputs."""
        first: list[str | None] | None = None
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs) if attribute.type in _GRAPHS else ():
                if attribute.type == onnx.AttributeProto.GRAPHS and graph is attribute.g:
                    continue
                inner = _Scope(
                    path=f"{scope.path}{node.name or node.op_type}.{attribute.name}/",
                    opsets=scope.opsets,
                    types={**scope.types, **_body_inputs(node, graph, inputs)},
                    stated=dict(scope.stated),
                    attributes=scope.attributes,
                    depth=scope.depth + 1,
                )
                yield from self.graph(graph, inner)
                given = [inner.types.get(value.name) or type_text(value.type) for value in graph.output]
                first = given if first is None else [a or b for a, b in zip(first, given, strict=False)]
        return first

    def _outputs(
        self,
        node: onnx.NodeProto,
        domain: str,
        inputs: Sequence[str | None],
        signature: Signature | None,
        bodies: Sequence[str | None] | None,
        scope: _Scope,
    ) -> list[str | None]:
        found: list[str | None] = [None] * len(node.output)
        if bodies is not None:
            given = bodies[1:] if node.op_type == "Loop" else bodies
            if node.op_type == "SequenceMap":
                given = [item and f"seq({item})" for item in given]
            if node.op_type in ("If", "Loop", "Scan", "SequenceMap"):
                found = [given[number] if number < len(given) else None for number in range(len(found))]
        elif signature is not None:
            found = _by_schema(signature, inputs, len(node.output))
        if None in found and domain == "com.microsoft":
            found = [item or _by_rule(node.op_type, number, inputs) for number, item in enumerate(found)]
        elif None in found and bodies is None:
            inferred = self._by_onnx(node, inputs, scope)
            found = [item or inferred.get(name) for name, item in zip(node.output, found, strict=True)]
        return [item or scope.stated.get(name) for name, item in zip(node.output, found, strict=True)]

    def _by_onnx(self, node: onnx.NodeProto, inputs: Sequence[str | None], scope: _Scope) -> Types:
        domain = "" if node.domain == "ai.onnx" else node.domain
        try:
            schema = onnx.defs.get_schema(node.op_type, scope.opsets.get(domain, 1), domain)
            known = {name: _proto(item) for name, item in zip(node.input, inputs, strict=True) if name and item}
            imports = [onnx.helper.make_opsetid(key, version) for key, version in scope.opsets.items()]
            inferred = shape_inference.infer_node_outputs(
                schema, node, known, opset_imports=imports, ir_version=self._ir_version
            )
        except _NOT_INFERRED:
            return {}
        return {name: type_text(proto) for name, proto in inferred.items()}


_NOT_INFERRED = (
    onnx.checker.ValidationError,
    onnx.defs.SchemaError,
    shape_inference.InferenceError,
    KeyError,
    RuntimeError,
    ValueError,
)
"""What onnx raises for a node that it doesn't know, finds wrong, or needs more than types for."""

_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


def _by_schema(signature: Signature, inputs: Sequence[str | None], count: int) -> list[str | None]:
    bound = bind(signature, inputs, ())
    found: list[str | None] = []
    for number in range(count):
        if not signature.outputs or isinstance(bound, str):
            found.append(None)
            continue
        formal = signature.outputs[min(number, len(signature.outputs) - 1)]
        allowed = signature.allowed.get(formal.type)
        known = next((item for item in bound.get(formal.type, ()) if item), None)
        if allowed is None:
            found.append(formal.type)
        elif known and formal.kind != "mixed":
            found.append(known)
        else:
            found.append(next(iter(allowed)) if len(allowed) == 1 else None)
    return found


def _by_rule(name: str, output: int, inputs: Sequence[str | None]) -> str | None:
    """com.microsoft operators whose output type no input binds when an optional one is left out."""
    if name == "QuantizeLinear":
        return "tensor(uint8)"
    if name == "QGemm":
        zero_point = inputs[8] if len(inputs) > 8 else ABSENT
        return "tensor(float)" if zero_point == ABSENT else zero_point
    if name == "GroupQueryAttention" and output in (1, 2):
        return inputs[0]
    return None


def _body_inputs(node: onnx.NodeProto, graph: onnx.GraphProto, inputs: Sequence[str | None]) -> Types:
    names = [value.name for value in graph.input]
    given: list[str | None] = []
    if node.op_type == "Loop":
        given = ["tensor(int64)", "tensor(bool)", *inputs[2:]]
    elif node.op_type == "Scan":
        given = list(inputs)
    elif node.op_type == "SequenceMap":
        given = [item[4:-1] if item and item.startswith("seq(") else item for item in inputs]
    return dict(zip(names, given, strict=False))


def _resolve(node: onnx.NodeProto, attributes: Mapping[str, onnx.AttributeProto]) -> onnx.NodeProto:
    """The node with the attributes that refer to its function's filled in; an absent one falls away."""
    if not any(item.ref_attr_name for item in node.attribute):
        return node
    resolved = onnx.NodeProto()
    resolved.CopyFrom(node)
    del resolved.attribute[:]
    for item in node.attribute:
        if not item.ref_attr_name:
            resolved.attribute.append(item)
        elif item.ref_attr_name in attributes:
            copy = resolved.attribute.add()
            copy.CopyFrom(attributes[item.ref_attr_name])
            copy.name = item.name
    return resolved


def _element(number: int) -> str | None:
    if number == onnx.TensorProto.UNDEFINED or number not in onnx.TensorProto.DataType.values():
        return None
    return f"tensor({onnx.TensorProto.DataType.Name(number).lower()})"


def _proto(text: str) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    outer, _, rest = text.partition("(")
    inner = rest[:-1]
    if outer in ("tensor", "sparse_tensor"):
        number = onnx.TensorProto.DataType.Value(inner.upper())
        (proto.tensor_type if outer == "tensor" else proto.sparse_tensor_type).elem_type = number
    elif outer in ("seq", "optional"):
        (proto.sequence_type if outer == "seq" else proto.optional_type).elem_type.CopyFrom(_proto(inner))
    elif outer == "map":
        key, _, value = inner.partition(",")
        proto.map_type.key_type = onnx.TensorProto.DataType.Value(key.upper())
        proto.map_type.value_type.CopyFrom(_proto(value))
    else:
        raise ValueError(text)
    return proto
