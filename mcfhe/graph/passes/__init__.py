"""Graph passes. A new one is a module here that registers itself, loaded below in the order in which it runs."""

from importlib import import_module

from mcfhe.graph.passes.registry import GraphPass, apply_passes, available_passes, graph_pass, select_passes

__all__ = ["GraphPass", "apply_passes", "available_passes", "graph_pass", "select_passes"]

# A list and not import statements, whose order a formatter would change.
for _module in (
    "batch_norm",
    "dead_orders",  # no identities between what is merged next
    "merge_linear",
    "pool_factors",  # before the activations take over what they leave
    "sums_of_squares",  # only where asked for; completes squares in what it makes next
    "squares",
    "leading_coefficients",
    "regroup_sums",
    "dead_nodes",
):
    import_module(f"{__name__}.{_module}")
