#include "glue/ops_cuda.h"
#include "glue/tensors_cuda.h"
#include "kernels/cuda/chosen.h"
#include "kernels/cuda/value_loss.h"

namespace rome_fast {
namespace {

void check(const Tensor& logits, const Tensor& target_ids, const Tensor& edit_of_read,
           const std::optional<Tensor>& log_probs_init) {
  STD_TORCH_CHECK(logits.dim() == 2, "logits must have 2 dimensions");
  const int64_t n_reads = target_ids.size(0);
  const int64_t n_edits = logits.size(0) - n_reads;
  STD_TORCH_CHECK(n_edits > 0, "logits must have a row for each read and each edit");
  check_size(target_ids, "target_ids", n_reads);
  check_size(edit_of_read, "edit_of_read", n_reads);
  for (const Tensor* ids : {&target_ids, &edit_of_read}) {
    STD_TORCH_CHECK(ids->scalar_type() == ScalarType::Long, "ids must be int64");
  }
  if (log_probs_init) {
    check_shape(*log_probs_init, "log_probs_init", n_edits, logits.size(1));
    const bool wide = logits.scalar_type() == ScalarType::Double;
    STD_TORCH_CHECK(
        log_probs_init->scalar_type() == (wide ? ScalarType::Double : ScalarType::Float),
        "log_probs_init must be of the type that the loss is computed in");
  }
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor> value_loss_cuda(const Tensor& logits,
                                                           const Tensor& target_ids,
                                                           const Tensor& edit_of_read,
                                                           std::optional<Tensor> log_probs_init,
                                                           double kl_factor) {
  check(logits, target_ids, edit_of_read, log_probs_init);
  const OnDeviceOf on(logits);
  const Tensor rows = logits.stride(1) == 1 ? logits : torch::stable::contiguous(logits);
  const Tensor targets = torch::stable::contiguous(target_ids);
  const Tensor edits = torch::stable::contiguous(edit_of_read);
  const int64_t n_reads = targets.size(0), vocabulary = rows.size(1);
  const int64_t n_rows = rows.size(0), n_edits = n_rows - n_reads;
  const bool is_first = !log_probs_init;
  const bool wide = rows.scalar_type() == ScalarType::Double;
  const ScalarType compute = wide ? ScalarType::Double : ScalarType::Float;
  const Tensor init = is_first ? rows : torch::stable::contiguous(*log_probs_init);

  const Tensor losses = new_tensor(rows, {n_edits}, compute);
  const Tensor gradient = new_tensor(rows, {n_rows, vocabulary}, rows.scalar_type());
  const Tensor right = new_tensor(rows, {n_edits}, ScalarType::Bool);
  const Tensor now = new_tensor(rows, {is_first ? n_edits : 0, vocabulary}, compute);
  const Tensor row_loss = new_tensor(rows, {n_rows}, compute);
  const Tensor row_right = new_tensor(rows, {n_reads}, ScalarType::Int);
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
                                        data<int>(row_right),
                                        data<T>(losses),
                                        data<bool>(right),
                                        data<T>(now)};
    (naive_is_chosen() ? value_loss_naive<Logit> : value_loss<Logit>)(params, on.stream());
  });
  return {losses, gradient, right, now};
}

}  // namespace rome_fast
