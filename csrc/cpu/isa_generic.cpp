// The CPU kernels compiled for generic. Everything below the pragma lives in an unnamed namespace, so the linker has no
// chance to give this code to a processor that lacks the instructions.
#include "../kernels/blake2xb.h"
#include "../kernels/modmath.h"
#include "kernels.h"

namespace mcfhe::cpu {
namespace {

#include "simd_generic.h"

#include "conv_body.h"

#include "conv_task_body.h"

#include "pointwise_body.h"

#include "tensor_square_body.h"

#include "square_pool_body.h"

#include "words_generic.h"

#include "word_layouts.h"

#include "ntt_body.h"

#include "key_switch_body.h"

#include "expand_body.h"

}  // namespace

const KernelTable kGenericKernels = {
    "generic",          kHasInt16, kHasDouble,     kTile,          pack_weight,           conv2d_task,
    sum_pool2d_task,    poly_task, align_add_task, add_const_task, count_out_of_range_in, kLattice,
    expand_uniform_task};

}  // namespace mcfhe::cpu
