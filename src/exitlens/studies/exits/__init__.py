"""What exiting early would save."""
