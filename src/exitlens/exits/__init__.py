"""What can be skipped, and at what risk."""
