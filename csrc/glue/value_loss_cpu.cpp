#include "glue/ops_cpu.h"
#include "glue/tensors_cpu.h"
#include "kernels/cpu/value_loss.h"

namespace rome_fast {
namespace {

void check_ids(const Tensor& ids, const char* name, int64_t size, int64_t end) {
  STD_TORCH_CHECK(ids.scalar_type() == ScalarType::Long, name, " must be int64");
  check_size(ids, name, size);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t id = data<int64_t>(ids)[i];
    STD_TORCH_CHECK(id >= 0 && id < end, name, " must be in [0, ", end, ")");
  }
}

void check_init(const Tensor& init, int64_t n_edits, int64_t vocabulary, ScalarType compute) {
  check_shape(init, "log_probs_init", n_edits, vocabulary);
  STD_TORCH_CHECK(init.scalar_type() == compute,
                  "log_probs_init must be of the type that the loss is computed in");
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> value_loss_cpu(const Tensor& logits,
                                                          const Tensor& target_ids,
                                                          const Tensor& edit_of_read,
                                                          std::optional<Tensor> log_probs_init,
                                                          double kl_factor) {
  STD_TORCH_CHECK(logits.dim() == 2, "logits must have 2 dimensions");
  const Tensor rows = logits.stride(1) == 1 ? logits : torch::stable::contiguous(logits);
  const Tensor targets = torch::stable::contiguous(target_ids);
  const Tensor edits = torch::stable::contiguous(edit_of_read);
  const int64_t n_reads = targets.size(0), vocabulary = rows.size(1);
  const int64_t n_rows = rows.size(0), n_edits = n_rows - n_reads;
  STD_TORCH_CHECK(n_edits > 0 && vocabulary > 0, "logits must have a row for each read and edit");
  check_ids(targets, "target_ids", n_reads, vocabulary);
  check_ids(edits, "edit_of_read", n_reads, n_edits + 1);
  const bool is_first = !log_probs_init;
  const bool wide = rows.scalar_type() == ScalarType::Double;
  const ScalarType compute = wide ? ScalarType::Double : ScalarType::Float;
  if (!is_first) check_init(*log_probs_init, n_edits, vocabulary, compute);
  const Tensor init = is_first ? rows : torch::stable::contiguous(*log_probs_init);

  const auto new_tensor = [&](std::initializer_list<int64_t> shape, ScalarType type) {
    return torch::stable::new_empty(rows, shape, type);
  };
  const Tensor losses = new_tensor({n_edits}, compute);
  const Tensor gradient = new_tensor({n_rows, vocabulary}, rows.scalar_type());
  const Tensor right = new_tensor({n_edits}, ScalarType::Bool);
  const Tensor now = new_tensor({is_first ? n_edits : 0, vocabulary}, compute);
  const Tensor row_loss = new_tensor({n_rows}, compute);
  const Tensor row_right = new_tensor({n_reads}, ScalarType::Bool);
  dispatch_float(rows, "logits", [&](auto tag) {
    using Logit = typename decltype(tag)::type;
    using T = Compute<Logit>;
    const ValueLossParams<Logit> params{data<Logit>(rows),
                                        rows.stride(0),
                                        data<int64_t>(targets),
                                        data<int64_t>(edits),
                                        is_first ? nullptr : data<T>(init),
                                        n_reads,
                                        n_edits,
                                        vocabulary,
                                        kl_factor,
                                        data<Logit>(gradient),
                                        data<T>(row_loss),
                                        data<bool>(row_right),
                                        data<T>(losses),
                                        data<bool>(right),
                                        data<T>(now)};
    value_loss(params, torch_pool());
  });
  return {losses, gradient, right, now};
}

}  // namespace rome_fast
