"""The plain words on security, in one place, so that no message says more than SECURITY.md."""

from __future__ import annotations

SECURITY_LINE = (
    "The modular scheme is a fast obfuscation without semantic security: a curious server can recover the image. "
    "See SECURITY.md."
)

LATTICE_LINE = (
    "The lattice scheme (RNS-CKKS) hides images from the server: IND-CPA under RLWE, 128 bits by the standard's table. "
    "Do not hand it decrypted scores. See SECURITY.md."
)
