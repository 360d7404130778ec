"""TenSEAL (https://github.com/OpenMined/TenSEAL, extra ``mcfhe[peers]``) on the two small networks, in CKKS.

``packed``: one image a request, as in its tutorial 4 "Encrypted Convolution on MNIST": the windows of the image side by
side in one ciphertext (im2col), then vector times matrix by rotations. ``batched``: ``CKKSTensor`` with one image in
every slot, one ciphertext for each pixel of each window, and no rotation at all.

Parameters are the tutorial's: primes of 31, 26 x 6 and 31 bits, 218 in all, scale 2^26, ring dimension 8,192, where the
homomorphic encryption standard (Albrecht et al., 2018, table 1) allows 218 bits at 128 bits of security. The windows
of the 5 x 5 network need 5,408 slots, more than 4,096, and so a ring of 16,384.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np

from benchmarks.peer_nets import Measured, SquareNet

PRIMES = (31, *[26] * 6, 31)
SCALE = 2.0**26
RING = 8192
TINY = 2.0**-20  # 64 at the scale
SECURITY = "128-bit lattice (RLWE, CKKS)"


def packed(net: SquareNet) -> Measured:
    import tenseal as ts

    kernel = net.kernels.shape[1]
    windows = net.windows(net.images[:1]).shape[1]
    needed = windows << (kernel * kernel - 1).bit_length()
    context = _context(max(RING, 2 << (needed - 1).bit_length()), galois=True)
    kernels, biases = net.kernels.tolist(), net.biases.tolist()
    matrix1, matrix2 = net.matrix1.T.tolist(), net.matrix2.T.tolist()
    seconds, scores = [], []
    sizes = (0, 0)
    for image in net.images:
        t0 = time.perf_counter()
        x, count = ts.im2col_encoding(context, image.tolist(), kernel, kernel, net.stride)
        t1 = time.perf_counter()
        maps = [x.conv2d_im2col(rows, count) + bias for rows, bias in zip(kernels, biases, strict=True)]
        y = ts.CKKSVector.pack_vectors(maps)
        y.square_()
        y = y.mm(matrix1) + net.bias1.tolist()
        y.square_()
        y = y.mm(matrix2) + net.bias2.tolist()
        t2 = time.perf_counter()
        scores.append(y.decrypt())
        seconds.append((t1 - t0, t2 - t1, time.perf_counter() - t2))
        sizes = (len(x.serialize()), len(y.serialize()))
    encrypt, evaluate, decrypt = (statistics.median(step) for step in zip(*seconds, strict=True))
    return _measured(net, np.array(scores), 1, (encrypt, evaluate, decrypt), sizes, _key_bytes(context))


def batched(net: SquareNet) -> Measured:
    import tenseal as ts

    context = _context(RING, galois=False)
    windows = net.windows(net.images)
    kernels = net.kernels.reshape(len(net.kernels), -1).T
    # CKKSTensor has no way to put channels first before a flatten: the matrix takes its columns window by window
    places = windows.shape[1]
    matrix1 = net.matrix1.reshape(len(net.matrix1), len(net.kernels), places).transpose(0, 2, 1)
    t0 = time.perf_counter()
    x = ts.ckks_tensor(context, _plain(windows), batch=True)
    t1 = time.perf_counter()
    y = x.mm(_plain(kernels)) + _plain(np.tile(net.biases, (places, 1)))
    y = (y * y).reshape([1, matrix1[0].size])
    y = y.mm(_plain(matrix1.reshape(len(matrix1), -1).T)) + _plain(net.bias1[None])
    y = (y * y).mm(_plain(net.matrix2.T)) + _plain(net.bias2[None])
    t2 = time.perf_counter()
    scores = np.array(y.decrypt().tolist()).reshape(len(windows), -1)
    times = (t1 - t0, t2 - t1, time.perf_counter() - t2)
    # one ciphertext of each shape stands for all: serialising thousands at once would double the memory
    one = ts.ckks_tensor(context, _plain(windows[:, :1, :1]), batch=True)
    sizes = (len(one.serialize()) * windows[0].size, len(y.serialize()))
    return _measured(net, scores, len(windows), times, sizes, _key_bytes(context))


def _context(ring: int, galois: bool) -> Any:
    import tenseal as ts

    context = ts.context(ts.SCHEME_TYPE.CKKS, poly_modulus_degree=ring, coeff_mod_bit_sizes=list(PRIMES))
    context.global_scale = SCALE
    if galois:
        context.generate_galois_keys()
    return context


def _plain(values: np.ndarray) -> Any:
    """A plain tensor without zeros: a product by an encoded 0 becomes, in TenSEAL, a fresh ciphertext of another level,
    which cannot be added to the others."""
    import tenseal as ts

    usable = np.where(np.abs(values) < TINY, TINY, values)
    return ts.plain_tensor(usable.reshape(-1).tolist(), list(values.shape))


def _key_bytes(context: Any) -> int:
    return len(context.serialize(save_secret_key=False))


def _measured(
    net: SquareNet,
    scores: np.ndarray,
    batch: int,
    seconds: tuple[float, float, float],
    sizes: tuple[int, int],
    key_bytes: int,
) -> Measured:
    found = scores.argmax(1)
    return Measured(
        batch=batch,
        images=len(scores),
        latency=seconds[1],
        encrypt=seconds[0],
        decrypt=seconds[2],
        accuracy=float((found == net.labels.numpy()).mean()),
        agreement=float((found == net.scores(net.images).argmax(1)).mean()),
        bytes_up=sizes[0],
        bytes_down=sizes[1],
        key_bytes=key_bytes,
    )
