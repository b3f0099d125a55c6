#include "glue/ops_cpu.h"
#include "glue/tensors_cpu.h"
#include "kernels/cpu/cholesky_solve.h"
#include "kernels/cpu/rank_one.h"
#include "kernels/cpu/symmetric_matvec.h"

namespace rome_fast {
namespace {

ScalarType compute_type(const Tensor& weight) {
  return weight.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class Weight>
RankOneUpdateParams<Weight> update_params(const Tensor& weight, const Tensor& u, const Tensor& v) {
  using Value = Compute<Weight>;
  return {data<Weight>(weight), weight.stride(0), weight.stride(1), weight.size(0),
          weight.size(1),       data<Value>(u),   data<Value>(v)};
}

template <class T>
void solve_with(const Tensor& factor, double* x) {
  const CholeskySolveParams<T> params{data<T>(factor), factor.stride(0), factor.stride(1),
                                      factor.size(0), x};
  cholesky_solve(params, torch_pool());
}

// x <- C^-1 x
void solve(const Tensor& factor, double* x) {
  if (factor.scalar_type() == ScalarType::Double) {
    solve_with<double>(factor, x);
  } else {
    STD_TORCH_CHECK(factor.scalar_type() == ScalarType::Float, "factor must be float64 or float32");
    solve_with<float>(factor, x);
  }
}

template <class T>
void multiply_with(const Tensor& inverse, const double* x, double* y) {
  symmetric_matvec(SymmetricMatvecParams<T>{data<T>(inverse), inverse.stride(0), inverse.stride(1),
                                            inverse.size(0), x, y});
}

// y = inverse x
void multiply(const Tensor& inverse, const double* x, double* y) {
  if (inverse.scalar_type() == ScalarType::Double) {
    multiply_with<double>(inverse, x, y);
  } else {
    STD_TORCH_CHECK(inverse.scalar_type() == ScalarType::Float,
                    "inverse must be float64 or float32");
    multiply_with<float>(inverse, x, y);
  }
}

void check_rounded(const std::optional<Tensor>& rounded, const Tensor& weight) {
  if (rounded) check_shape(*rounded, "rounded", weight.size(0), weight.size(1));
}

Tensor new_vector(const Tensor& like, int64_t size, ScalarType type) {
  return torch::stable::new_empty(like, {size}, type);
}

}  // namespace

void rank_one_update_cpu(Tensor weight, const Tensor& u, const Tensor& v,
                         std::optional<Tensor> rounded) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight must have 2 dimensions");
  check_size(u, "u", weight.size(1));
  check_size(v, "v", weight.size(0));
  check_rounded(rounded, weight);
  const Tensor u_compute = as_vector(u, compute_type(weight));
  const Tensor v_compute = as_vector(v, compute_type(weight));
  dispatch_float(weight, "weight", [&](auto tag) {
    using Weight = typename decltype(tag)::type;
    rank_one_update(update_params<Weight>(weight, u_compute, v_compute), torch_pool());
  });
  if (rounded) torch::stable::copy_(*rounded, weight);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rank_one_solve_apply_cpu(
    Tensor weight, std::optional<Tensor> factor, const Tensor& key, const Tensor& denominator_key,
    const Tensor& residual, double min_denominator, double max_norm, std::optional<Tensor> inverse,
    std::optional<Tensor> rounded) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight must have 2 dimensions");
  const int64_t d_value = weight.size(0);
  const int64_t d_key = weight.size(1);
  check_size(key, "key", d_key);
  check_size(denominator_key, "denominator_key", d_key);
  check_size(residual, "residual", d_value);
  check_rounded(rounded, weight);

  const Tensor key_f64 = as_vector(key, ScalarType::Double);
  const Tensor denominator_key_f64 = as_vector(denominator_key, ScalarType::Double);
  const Tensor residual_f64 = as_vector(residual, ScalarType::Double);
  const Tensor w = torch::stable::clone(key_f64);
  if (factor) {
    check_shape(*factor, "factor", d_key, d_key);
    solve(*factor, data<double>(w));
  } else if (inverse) {
    check_shape(*inverse, "inverse", d_key, d_key);
    multiply(*inverse, data<double>(key_f64), data<double>(w));
  }

  const RankOneSolveParams params{data<double>(key_f64),
                                  data<double>(denominator_key_f64),
                                  data<double>(residual_f64),
                                  data<double>(w),
                                  min_denominator,
                                  max_norm};
  const Tensor u = new_vector(weight, d_key, compute_type(weight));
  const Tensor v = new_vector(weight, d_value, compute_type(weight));
  const RankOneResult result = dispatch_float(weight, "weight", [&](auto tag) {
    using Weight = typename decltype(tag)::type;
    return rank_one_apply_solution(params, update_params<Weight>(weight, u, v),
                                   data<Compute<Weight>>(u), data<Compute<Weight>>(v),
                                   torch_pool());
  });
  if (rounded && result.applied) torch::stable::copy_(*rounded, weight);
  return {u, v, new_scalar(weight, result.denominator, ScalarType::Double),
          new_scalar(weight, result.update_norm, ScalarType::Double),
          new_scalar(weight, result.applied, ScalarType::Bool)};
}

}  // namespace rome_fast
