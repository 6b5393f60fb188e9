"""What people run. Its verifying parts import `protocol` alone, so they work with nothing but a bundle."""
