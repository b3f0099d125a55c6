// The CPU kernels as the dispatcher calls them; schemas are in rome_fast/ops/_schema.py.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

namespace rome_fast {

using torch::stable::Tensor;

void second_moment_update_cpu(Tensor moment_sum,                   // [d, d]
                              const Tensor& keys,                  // [n, d]
                              std::optional<Tensor> mask,          // [n] bool
                              std::optional<Tensor> compensation,  // [d, d]
                              bool allow_tf32);                    // not used

void rank_one_update_cpu(Tensor weight,                   // [d_value, d_key]
                         const Tensor& u,                 // [d_key]
                         const Tensor& v,                 // [d_value]
                         std::optional<Tensor> rounded);  // [d_value, d_key]

// Returns u, v, denominator, update_norm, applied.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rank_one_solve_apply_cpu(
    Tensor weight,                  // [d_value, d_key]
    std::optional<Tensor> factor,   // [d_key, d_key]
    const Tensor& key,              // [d_key]
    const Tensor& denominator_key,  // [d_key]
    const Tensor& residual,         // [d_value]
    double min_denominator, double max_norm,
    std::optional<Tensor> inverse,   // [d_key, d_key]
    std::optional<Tensor> rounded);  // [d_value, d_key]

// Returns applied.
Tensor cholesky_update_cpu(Tensor factor,         // [d, d]
                           const Tensor& vector,  // [d]
                           bool downdate);

// Returns losses, gradient, right, log_probs_now.
std::tuple<Tensor, Tensor, Tensor, Tensor> value_loss_cpu(
    const Tensor& logits,                  // [n_reads + n_edits, vocabulary]
    const Tensor& target_ids,              // [n_reads]
    const Tensor& edit_of_read,            // [n_reads]
    std::optional<Tensor> log_probs_init,  // [n_edits, vocabulary]
    double kl_factor);

}  // namespace rome_fast
