// Checks of the lattice ops (ntt, tensor_square, relinearise, rescale, expand_uniform), CPU and CUDA; messages as in
// checks.h.
#pragma once

#include "checks.h"

namespace mcfhe {

// Shapes and dtypes; tables is int32 [L, 4, n] (relinearise: [L + 1, 4, n]).
RingParams ntt_params(const char* op, const Tensor& x, const Tensor& tables, const Tensor& moduli);
RingParams rescale_params(const char* op, const Tensor& x, const Tensor& tables, const Tensor& moduli);
RelineariseParams relinearise_params(const char* op, const Tensor& x, const Tensor& keys, const Tensor& tables,
                                     const Tensor& moduli);
// x [L, C, ..., 2 n]; [L, 2 n] has C = 1. With a pool [L, C, H, W, 2 n].
TensorSquareParams tensor_square_params(const char* op, const Tensor& x, const std::optional<Tensor>& shift,
                                        const std::optional<Tensor>& coefficients, const Tensor& moduli,
                                        const std::optional<IntList>& pool);
// Of what comes out.
IntList tensor_square_shape(const Tensor& x, const TensorSquareParams& p);
// seeds uint8 [count, 64], moduli [L], n 1..32768.
ExpandParams expand_params(const char* op, const Tensor& seeds, const Tensor& moduli, int64_t n);

// 2 <= q < 2^31 and q = 1 mod 2n for every modulus. Host memory only.
void check_ring_moduli(const char* op, const int64_t* moduli, int64_t count, int64_t n);
// No two moduli share a factor, as divisions by one of them need. Host memory only.
void check_coprime_to(const char* op, const int64_t* moduli, int64_t count, int64_t divisor);
// The tables belong to these moduli: first entries 1 and n^-1, entry 1 a square root of -1, its inverse beside it.
// Host memory only.
void check_ring_tables(const char* op, const int32_t* tables, const int64_t* moduli, int64_t count, int64_t n);

}  // namespace mcfhe
