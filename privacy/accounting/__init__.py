"""What a computation costs in (epsilon, delta), and the ledgers that refuse to spend more than was agreed."""
