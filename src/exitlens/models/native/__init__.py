"""Our own forward pass: blocks apart, rows apart."""
