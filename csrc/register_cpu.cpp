// Puts the CPU kernels under the schemas that Python defines. Nothing else.
#include <torch/csrc/stable/library.h>

#include "glue/ops_cpu.h"

STABLE_TORCH_LIBRARY_IMPL(rome_fast, CPU, m) {
  m.impl("second_moment_update_", TORCH_BOX(&rome_fast::second_moment_update_cpu));
  m.impl("rank_one_update_", TORCH_BOX(&rome_fast::rank_one_update_cpu));
  m.impl("rank_one_solve_apply_", TORCH_BOX(&rome_fast::rank_one_solve_apply_cpu));
  m.impl("cholesky_update_", TORCH_BOX(&rome_fast::cholesky_update_cpu));
  m.impl("value_loss", TORCH_BOX(&rome_fast::value_loss_cpu));
}
