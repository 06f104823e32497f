"""How tables are drawn and said; knows no study."""
