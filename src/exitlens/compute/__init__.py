"""How this machine multiplies fastest, exactly."""
