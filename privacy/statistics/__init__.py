"""Counts, means, histograms and quantiles of a cohort: one bounded vector per patient, summed and noised once."""
