"""Runs integer programs on residues: knows limbs, streams and constants, nothing of lanes, keys or schemes."""

from mcfhe.engine.engine import Engine, RingBinding

__all__ = ["Engine", "RingBinding"]
