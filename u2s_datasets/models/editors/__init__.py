"""Editors: each file is one adapter with `edit(requests) -> images`."""
