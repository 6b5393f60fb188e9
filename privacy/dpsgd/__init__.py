"""One private step: per-patient gradients, clipping, Poisson sampling, noise. Only `module_gradients`
needs torch.
"""
