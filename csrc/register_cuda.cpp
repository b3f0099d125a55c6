// Puts the CUDA kernels under the schemas that Python defines. Nothing else.
#include <torch/csrc/stable/library.h>

#include "glue/ops_cuda.h"

// The emulation of the tests puts the same functions under names and a key of its own.
#ifndef ROME_FAST_LIBRARY
#define ROME_FAST_LIBRARY rome_fast
#define ROME_FAST_DISPATCH_KEY CUDA
#endif

// One more level, so that the two macros are expanded.
#define ROME_FAST_REGISTER(library, key, m) STABLE_TORCH_LIBRARY_IMPL(library, key, m)

ROME_FAST_REGISTER(ROME_FAST_LIBRARY, ROME_FAST_DISPATCH_KEY, m) {
  m.impl("second_moment_update_", TORCH_BOX(&rome_fast::second_moment_update_cuda));
  m.impl("rank_one_update_", TORCH_BOX(&rome_fast::rank_one_update_cuda));
  m.impl("rank_one_solve_apply_", TORCH_BOX(&rome_fast::rank_one_solve_apply_cuda));
  m.impl("cholesky_update_", TORCH_BOX(&rome_fast::cholesky_update_cuda));
  m.impl("value_loss", TORCH_BOX(&rome_fast::value_loss_cuda));
  m.impl("value_step_", TORCH_BOX(&rome_fast::value_step_cuda));
}
