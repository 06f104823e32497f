"""What each layer would have answered."""
