"""Evidence: documents that somebody vouches for, with their dates, and what policy makes of them."""
