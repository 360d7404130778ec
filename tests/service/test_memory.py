"""The allocator's limits hold, and a dynamic one would not."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

from mcfhe.service.memory import settle_allocator

# After a freed block of 24 MiB glibc by itself would take the next one of 12 MiB from an arena.
CODE = """
import ctypes, sys
import torch
from mcfhe.service.memory import settle_allocator
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keep")]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
if sys.argv[1] == "settled":
    assert settle_allocator()
torch.empty(24 << 20, dtype=torch.uint8)
before = libc.mallinfo2().hblks
x = torch.empty(12 << 20, dtype=torch.uint8)
print(libc.mallinfo2().hblks - before)
"""


@pytest.mark.parametrize(("how", "blocks"), [("settled", "1"), ("default", "0")])
def test_large_blocks_go_back_to_the_system(how: str, blocks: str) -> None:
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("this C library has no mallinfo2 (glibc 2.33)")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == blocks


def test_elsewhere_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    assert not settle_allocator()
