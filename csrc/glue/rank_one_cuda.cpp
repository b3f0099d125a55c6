#include "glue/ops_cuda.h"
#include "glue/tensors_cuda.h"
#include "kernels/cuda/cholesky_solve.h"
#include "kernels/cuda/rank_one.h"
#include "kernels/cuda/symmetric_matvec.h"

namespace rome_fast {
namespace {

ScalarType compute_type(const Tensor& weight) {
  return weight.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

AnyVector any_vector(const Tensor& tensor, const char* name) {
  const Element element = dispatch_float(tensor, name, [](auto tag) {
    using T = typename decltype(tag)::type;
    if (std::is_same_v<T, double>) return Element::kDouble;
    if (std::is_same_v<T, float>) return Element::kFloat;
    return std::is_same_v<T, BFloat16> ? Element::kBFloat16 : Element::kHalf;
  });
  return {tensor.data_ptr(), tensor.stride(0), element};
}

// f(TypeTag<float or double>) with the type of the factor or the inverse.
template <class F>
void dispatch_matrix(const Tensor& matrix, const char* name, const F& f) {
  if (matrix.scalar_type() == ScalarType::Double) return f(TypeTag<double>{});
  STD_TORCH_CHECK(matrix.scalar_type() == ScalarType::Float, name, " must be float64 or float32");
  f(TypeTag<float>{});
}

// w = C^-1 key
void solve(const Tensor& factor, const AnyVector& key, const Tensor& w, cudaStream_t stream) {
  const int64_t d = w.size(0);
  check_shape(factor, "factor", d, d);
  const Tensor memory = workspace(factor, cholesky_solve_bytes(d));
  dispatch_matrix(factor, "factor", [&](auto tag) {
    using T = typename decltype(tag)::type;
    cholesky_solve(CholeskySolveParams<T>{data<T>(factor), factor.stride(0), factor.stride(1), d,
                                          key, data<double>(w), data<void>(memory)},
                   stream);
  });
}

void multiply(const Tensor& inverse, const AnyVector& key, const Tensor& w, cudaStream_t stream) {
  const int64_t d = w.size(0);
  check_shape(inverse, "inverse", d, d);
  const Tensor partials = workspace(inverse, symmetric_matvec_bytes(d));
  dispatch_matrix(inverse, "inverse", [&](auto tag) {
    using T = typename decltype(tag)::type;
    symmetric_matvec(
        SymmetricMatvecParams<T>{data<T>(inverse), inverse.stride(0), inverse.stride(1), d, key,
                                 data<double>(w), data<double>(partials)},
        stream);
  });
}

template <class Half16>
void update_rounded(const RankOneUpdateParams<float>& params, const Tensor& rounded,
                    cudaStream_t stream) {
  rank_one_update(
      params, RoundedWeight<Half16>{data<Half16>(rounded), rounded.stride(0), rounded.stride(1)},
      stream);
}

// weight += v u^T where `applied` is null or true, and its rounding.
void update(const Tensor& weight, const Tensor& u, const Tensor& v, const bool* applied,
            const std::optional<Tensor>& rounded, cudaStream_t stream) {
  dispatch_float(weight, "weight", [&](auto tag) {
    using Weight = typename decltype(tag)::type;
    using Value = Compute<Weight>;
    const RankOneUpdateParams<Weight> params{
        data<Weight>(weight), weight.stride(0), weight.stride(1), weight.size(0),
        weight.size(1),       data<Value>(u),   data<Value>(v),   applied};
    if (!rounded) return rank_one_update(params, stream);
    check_shape(*rounded, "rounded", weight.size(0), weight.size(1));
    if constexpr (std::is_same_v<Weight, float>) {
      if (rounded->scalar_type() == ScalarType::BFloat16) {
        return update_rounded<BFloat16>(params, *rounded, stream);
      }
      STD_TORCH_CHECK(rounded->scalar_type() == ScalarType::Half,
                      "rounded must be bfloat16 or float16");
      update_rounded<Half>(params, *rounded, stream);
    } else {
      STD_TORCH_CHECK(false, "rounded needs a float32 weight");
    }
  });
}

}  // namespace

void rank_one_update_cuda(Tensor weight, const Tensor& u, const Tensor& v,
                          std::optional<Tensor> rounded) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight must have 2 dimensions");
  check_size(u, "u", weight.size(1));
  check_size(v, "v", weight.size(0));
  const OnDeviceOf on(weight);
  const Tensor u_compute = as_vector(u, compute_type(weight));
  const Tensor v_compute = as_vector(v, compute_type(weight));
  update(weight, u_compute, v_compute, nullptr, rounded, on.stream());
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> rank_one_solve_apply_cuda(
    Tensor weight, std::optional<Tensor> factor, const Tensor& key, const Tensor& denominator_key,
    const Tensor& residual, double min_denominator, double max_norm, std::optional<Tensor> inverse,
    std::optional<Tensor> rounded) {
  STD_TORCH_CHECK(weight.dim() == 2, "weight must have 2 dimensions");
  const int64_t d_value = weight.size(0), d_key = weight.size(1);
  check_size(key, "key", d_key);
  check_size(denominator_key, "denominator_key", d_key);
  check_size(residual, "residual", d_value);
  const OnDeviceOf on(weight);

  const AnyVector key_vector = any_vector(key, "key");
  const Tensor w = new_tensor(weight, {d_key}, ScalarType::Double);
  if (factor) {
    solve(*factor, key_vector, w, on.stream());
  } else if (inverse) {
    multiply(*inverse, key_vector, w, on.stream());
  }

  const Tensor u = new_tensor(weight, {d_key}, compute_type(weight));
  const Tensor v = new_tensor(weight, {d_value}, compute_type(weight));
  const Tensor denominator = new_tensor(weight, {}, ScalarType::Double);
  const Tensor update_norm = new_tensor(weight, {}, ScalarType::Double);
  const Tensor applied = new_tensor(weight, {}, ScalarType::Bool);
  const Tensor key_sums = workspace(weight, rank_one_solution_bytes());
  dispatch_matrix(u, "u", [&](auto tag) {
    using Value = typename decltype(tag)::type;
    rank_one_solution(
        RankOneSolutionParams<Value>{factor || inverse ? any_vector(w, "w") : key_vector,
                                     key_vector, any_vector(denominator_key, "denominator_key"),
                                     any_vector(residual, "residual"), d_key, d_value,
                                     min_denominator, max_norm, data<Value>(u), data<Value>(v),
                                     data<double>(denominator), data<double>(update_norm),
                                     data<bool>(applied), data<KeySums>(key_sums)},
        on.stream());
  });
  update(weight, u, v, data<bool>(applied), rounded, on.stream());
  return {u, v, denominator, update_norm, applied};
}

}  // namespace rome_fast
