"""What a compiled network has in every scheme, planned or not."""

from __future__ import annotations

from mcfhe.errors import ParameterError
from mcfhe.graph.nodes import Graph
from mcfhe.graph.settings import Settings


class Compiled:
    """Layers and settings.

    Attributes:
        graph: the layers, constants rounded to the grids of their scales.
        settings: normalisation, scales, labels.
    """

    __slots__ = ()
    graph: Graph
    settings: Settings

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.graph.input_shape

    @property
    def labels(self) -> tuple[str, ...]:
        """Name of each score."""
        return self.settings.labels


def check_ends(graph: Graph, settings: Settings) -> None:
    """ParameterError unless the settings have a label for each score and a mean for each channel."""
    if graph.output_shape != (len(settings.labels),) or graph.input_shape[0] != len(settings.mean):
        raise ParameterError(
            f"program: output {graph.output_shape} for {len(settings.labels)} labels, "
            f"{graph.input_shape[0]} channels for {len(settings.mean)} means"
        )
