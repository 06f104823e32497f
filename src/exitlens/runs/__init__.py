"""How work is cut up, mapped and resumed."""
