// The CPU kernels compiled for avx512. Everything below the pragma lives in an unnamed namespace, so the linker has no
// chance to give this code to a processor that lacks the instructions.
#include <immintrin.h>

#include "../kernels/blake2xb.h"
#include "../kernels/modmath.h"
#include "kernels.h"

#if defined(__x86_64__)
// GCC 12 warns about its own AVX-512 header (GCC bug 105593).
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

namespace mcfhe::cpu {
namespace {

#include "simd_avx512.h"

#include "conv_body.h"

#include "conv_task_body.h"

#include "pointwise_body.h"

#include "tensor_square_body.h"

#include "square_pool_body.h"

#include "words_avx512.h"

#include "word_layouts.h"

#include "ntt_body.h"

#include "key_switch_body.h"

#include "expand_body.h"

}  // namespace

const KernelTable kAvx512Kernels = {
    "avx512",           kHasInt16, kHasDouble,     kTile,          pack_weight,           conv2d_task,
    sum_pool2d_task,    poly_task, align_add_task, add_const_task, count_out_of_range_in, kLattice,
    expand_uniform_task};

}  // namespace mcfhe::cpu

#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif
