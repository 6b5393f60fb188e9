"""What one site computes of its own patients in one attempt: a clipped, noised sum, or a noised histogram."""
