"""Evaluation from one labelled score histogram: the only thing that leaves a site about its held-out patients."""
