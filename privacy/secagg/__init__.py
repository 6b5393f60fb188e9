"""Secure aggregation by pairwise masks, sans I/O: one message a round, nothing to recover, retry on a
smaller cohort.
"""
