"""Drop what the output does not need."""

from __future__ import annotations

from dataclasses import replace

from mcfhe.graph.nodes import Graph, Node
from mcfhe.graph.passes.registry import graph_pass


@graph_pass("eliminate_dead_nodes", default=True, letter=True)
def eliminate_dead_nodes(graph: Graph) -> Graph:
    """The same graph without the nodes from which no path leads to the output. Exact: no constant is touched."""
    needed = {0, len(graph.nodes) - 1}
    for index in range(len(graph.nodes) - 1, 0, -1):
        if index in needed:
            needed.update(graph.nodes[index].inputs)
    position: dict[int, int] = {}
    nodes: list[Node] = []
    for index in sorted(needed):
        node = graph.nodes[index]
        position[index] = len(nodes)
        nodes.append(replace(node, inputs=tuple(position[i] for i in node.inputs)))
    return Graph(tuple(nodes))
