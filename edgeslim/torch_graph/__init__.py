"""An ONNX graph run by PyTorch, so that gradients reach its values and its weights.

Whatever the model came from, after export it is an ONNX graph; this gives a technique the gradients of that very graph:
which values matter for the output (allocation of bits, Fisher pruning), and training of weights (distillation)::

    graph = TorchGraph(model)
    outputs = graph.run(feed, weights={"encoder.weight": candidate}, keep=("hidden",))
    for gradients in output_gradients(graph, feeds, ("hidden",)): ...

``output_gradients`` projects the output onto a random vector r and goes backwards: with r of unit covariance, the mean
of (Jᵀr)(Jᵀr)ᵀ is JᵀJ, J the derivative of the output by a value. So the square of the gradient of one random number
estimates the sum of the squares of all outputs' gradients (Hutchinson 1990), and one backward pass serves all values.

Operators follow ONNX, opsets 11 to 22: what transformer encoders and decoders and small convolutional networks consist
of, one function an operator. A setting that isn't covered is an error that names it, never an approximation. torch is
imported when a graph is made, not before.
"""

from edgeslim.torch_graph.graph import Objective, TorchGraph, output_gradients

__all__ = ["Objective", "TorchGraph", "output_gradients"]
