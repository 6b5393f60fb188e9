"""One private step: per-patient gradients, clipping, Poisson sampling, noise. The engines
need torch; `per_patient`, `clipping`, `sampling`, `noise` and `step` do not.
"""
