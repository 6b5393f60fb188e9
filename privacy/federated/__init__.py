"""Federated optimisation over model deltas: several private steps at each site, and the server rules that follow."""
