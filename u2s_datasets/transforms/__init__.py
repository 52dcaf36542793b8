"""Transforms: what `Dataset.map` calls, one group of columns a file."""
