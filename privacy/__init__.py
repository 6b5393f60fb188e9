"""Patient-level differential privacy and secure aggregation: a library without I/O that imports nothing of
ours.
"""
