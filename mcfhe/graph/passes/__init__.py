"""Graph passes. A new one is a module here that registers itself, imported below in the order in which it runs."""

from mcfhe.graph.passes import dead_nodes
from mcfhe.graph.passes.registry import GraphPass, apply_passes, available_passes, graph_pass, select_passes

__all__ = ["GraphPass", "apply_passes", "available_passes", "dead_nodes", "graph_pass", "select_passes"]
