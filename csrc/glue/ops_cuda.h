// The CUDA kernels as the dispatcher calls them; schemas are in rome_fast/ops/_schema.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace rome_fast {

using torch::stable::Tensor;

void rank_one_update_cuda(Tensor weight,                   // [d_value, d_key]
                          const Tensor& u,                 // [d_key]
                          const Tensor& v,                 // [d_value]
                          std::optional<Tensor> rounded);  // [d_value, d_key]

// Returns u, v, denominator, update_norm, applied.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rank_one_solve_apply_cuda(
    Tensor weight,                  // [d_value, d_key]
    std::optional<Tensor> factor,   // [d_key, d_key]
    const Tensor& key,              // [d_key]
    const Tensor& denominator_key,  // [d_key]
    const Tensor& residual,         // [d_value]
    double min_denominator, double max_norm,
    std::optional<Tensor> inverse,   // [d_key, d_key]
    std::optional<Tensor> rounded);  // [d_value, d_key]

// Returns applied.
Tensor cholesky_update_cuda(Tensor factor,         // [d, d]
                            const Tensor& vector,  // [d]
                            bool downdate);

void second_moment_update_cuda(Tensor moment_sum,                   // [d, d]
                               const Tensor& keys,                  // [n, d]
                               std::optional<Tensor> mask,          // [n] bool
                               std::optional<Tensor> compensation,  // [d, d]
                               bool allow_tf32);

// Returns losses, gradient, right, log_probs_now.
std::tuple<Tensor, Tensor, Tensor, Tensor> value_loss_cuda(
    const Tensor& logits,                  // [n_reads + n_edits, vocabulary]
    const Tensor& target_ids,              // [n_reads]
    const Tensor& edit_of_read,            // [n_reads]
    std::optional<Tensor> log_probs_init,  // [n_edits, vocabulary]
    double kl_factor);

void value_step_cuda(Tensor deltas,            // [n_edits, d_value]
                     Tensor mean,              // [n_edits, d_value]
                     Tensor square,            // [n_edits, d_value]
                     Tensor n_steps,           // []
                     Tensor history,           // [max_steps, n_edits]
                     Tensor active,            // [n_edits]
                     const Tensor& gradients,  // [n_edits, d_value]
                     const Tensor& losses,     // [n_edits]
                     const Tensor& right,      // [n_edits]
                     const Tensor& radii,      // [n_edits]
                     const Tensor& decays,     // [n_edits]
                     double lr, double stop_loss, bool mean_loss_suffices);

}  // namespace rome_fast
