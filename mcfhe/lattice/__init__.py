"""The lattice scheme: RNS-CKKS ciphertexts as residue tensors, one image a slot."""
