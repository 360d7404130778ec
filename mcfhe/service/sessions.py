"""Registered evaluation keys: bounded, forgotten when unused."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from threading import Lock

from mcfhe.lattice.evaluation_key import LatticeEvaluationKey
from mcfhe.modular.evaluation_key import EvaluationKey

Key = EvaluationKey | LatticeEvaluationKey


class Sessions:
    """Evaluation keys by owner and id. Thread-safe.

    A key is forgotten ``session_s`` seconds after its last use. Beyond ``max_keys``, or ``max_bytes`` of them, the
    owner with the most (keys or bytes) loses the one it used longest ago, so that no owner drives out the keys of
    others. An owner (a token) never finds another's key.
    """

    def __init__(
        self,
        max_keys: int,
        session_s: float,
        max_bytes: int = 1 << 30,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.session_s = session_s
        self._max_keys = max_keys
        self._max_bytes = max_bytes
        self._clock = clock
        self._keys: OrderedDict[tuple[str, str], tuple[Key, float]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        with self._lock:
            self._expire()
            return len(self._keys)

    def register(self, owner: str, key: Key) -> None:
        """Remember ``key`` or renew its session."""
        with self._lock:
            self._expire()
            self._touch((owner, key.key_id), key)
            while len(self._keys) > self._max_keys:
                self._shed(Counter(other for other, _ in self._keys))
            while len(self._keys) > 1 and sum(self._bytes().values()) > self._max_bytes:
                self._shed(self._bytes())

    def _bytes(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for (owner, _), (key, _) in self._keys.items():
            held[owner] += key.nbytes
        return held

    def _shed(self, held: Counter[str]) -> None:
        """Forget the oldest key of the owner with the most."""
        ((most, _),) = held.most_common(1)
        del self._keys[next(slot for slot in self._keys if slot[0] == most)]

    def find(self, owner: str, key_id: str) -> Key | None:
        """The key, its session renewed; None if it is not there (any more)."""
        with self._lock:
            self._expire()
            found = self._keys.get((owner, key_id))
            if found is None:
                return None
            self._touch((owner, key_id), found[0])
            return found[0]

    def _touch(self, slot: tuple[str, str], key: Key) -> None:
        self._keys[slot] = (key, self._clock() + self.session_s)
        self._keys.move_to_end(slot)

    def _expire(self) -> None:
        # Every use moves a key to the end with the same session length, so the order is that of expiry.
        now = self._clock()
        while self._keys and next(iter(self._keys.values()))[1] <= now:
            self._keys.popitem(last=False)
