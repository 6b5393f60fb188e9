"""The federation's policy as this site knows it: verified, compared with its own, never laxer."""
