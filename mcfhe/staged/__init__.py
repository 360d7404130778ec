"""Client refresh: programs cut into stages between which the client decrypts and encrypts again."""
