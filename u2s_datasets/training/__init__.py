"""Training: classifiers for utility, pairs and editors."""
