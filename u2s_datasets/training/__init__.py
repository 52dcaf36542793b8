"""Training an editor on triplets: the pairs, and fine-tuning on them."""
