"""A drawn street world: a simulator's frames and photographs, for demonstration and tests."""

from pipeline.toyworld.writing import write_toy_world

__all__ = ["write_toy_world"]
