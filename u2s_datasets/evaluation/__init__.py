"""From columns of scores to the four metrics: reduction, `evaluate` modules, a report on a run."""
