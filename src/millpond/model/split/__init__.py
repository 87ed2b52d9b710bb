"""One model in several processes: which models can be split, and how their ranks work together."""
