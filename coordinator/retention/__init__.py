"""Retention: what is kept until when, what must go, and its erasure, which the log tells of."""
