"""From an ordinary network to one that can run encrypted: fitted polynomials, and training on."""
