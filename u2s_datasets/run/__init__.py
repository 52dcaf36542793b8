"""Runs: where rows come from, how they are cut into shards, and the demo."""
