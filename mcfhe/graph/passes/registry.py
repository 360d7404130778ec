"""The table of graph passes: pure functions from graph to graph, each with a name, a flag and a test of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mcfhe.errors import ParameterError
from mcfhe.graph.nodes import Graph

Transform = Callable[[Graph], Graph]
_T = TypeVar("_T", bound=Transform)  # which may take more


@dataclass(frozen=True, slots=True)
class GraphPass:
    """``transform`` must keep the function that the graph computes, exactly or up to float rounding of constants."""

    name: str
    transform: Transform
    default: bool  # is it in the preset "default"?
    letter: bool  # is it in the preset "letter", the patent's own plan? Then it must not touch any constant.


_PASSES: dict[str, GraphPass] = {}


def graph_pass(name: str, *, default: bool, letter: bool = False) -> Callable[[_T], _T]:
    """Register a pass. Passes run in the order in which they were registered."""

    def register(transform: _T) -> _T:
        if name in _PASSES:
            raise ValueError(f"pass {name!r} is registered twice")
        _PASSES[name] = GraphPass(name, transform, default, letter)
        return transform

    return register


def available_passes() -> tuple[GraphPass, ...]:
    """Every registered pass, in the order in which they run."""
    return tuple(_PASSES.values())


def select_passes(names: Sequence[str] | None) -> tuple[str, ...]:
    """The passes to run, in registration order, of a list of names or of a preset.

    Args:
        names: a list of names, or "letter" or "default"; None stands for "letter".

    Raises:
        ParameterError: an unknown name.
    """
    if names is None or names == "letter":
        return tuple(p.name for p in _PASSES.values() if p.letter)
    if names == "default":
        return tuple(p.name for p in _PASSES.values() if p.default)
    if isinstance(names, str):
        raise ParameterError(f"passes: {names!r} is no preset; give letter, default or a list of names")
    if not isinstance(names, Iterable):
        raise ParameterError(f"passes: {names!r} is no list of names; give letter, default or a list of names")
    unknown = next((name for name in names if name not in tuple(_PASSES)), None)
    if unknown is not None:
        raise ParameterError(f"passes: no pass {unknown!r}; there are {', '.join(_PASSES)}")
    return tuple(name for name in _PASSES if name in names)


def apply_passes(graph: Graph, names: Sequence[str] | None = None) -> Graph:
    """Run the passes that :func:`select_passes` selects, one after the other."""
    for name in select_passes(names):
        graph = _PASSES[name].transform(graph)
    return graph
