"""The site as a witness: it mirrors the transparency log and cosigns only what follows from all it has seen."""
