// The rows of the loss for one instruction set (included by value_loss.cpp through foreach_isa.h).

#include "kernels/cpu/exp_body.h"

namespace rome_fast::ROME_FAST_ISA {

// A row, and its logarithm of the sum of exponentials in two parts: their sum would lose digits
// where logits are far from 0.
template <class Logit>
struct Row {
  using T = Compute<Logit>;

  const Logit* logits;
  T max;
  T log_sum;  // of e^(x - max)

  T log_prob(T x) const { return (x - max) - log_sum; }
};

// Widens n words, and fills the last vector with words that cannot come.
template <class T, class From>
ROME_FAST_TARGET ROME_FAST_INLINE void load_block(const From* words, int64_t n, T* block) {
  for (int64_t i = 0; i < n; ++i) block[i] = widen(words[i]);
  for (int64_t i = n; i % kLanes<T> != 0; ++i) block[i] = kLowest<T>;
}

template <class To, class T>
ROME_FAST_TARGET ROME_FAST_INLINE void store_block(const T* block, int64_t n, To* words) {
  for (int64_t i = 0; i < n; ++i) words[i] = narrow<To>(block[i]);
}

template <class T>
ROME_FAST_TARGET T max_of_block(const T* block, int64_t n) {
  Vec<T> max = Vec<T>{} + kLowest<T>;
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const Vec<T> x = load<Vec<T>>(block + i);
    max = x > max ? x : max;
  }
  T largest = max[0];
  for (int lane = 1; lane < kLanes<T>; ++lane) largest = std::max(largest, T(max[lane]));
  return largest;
}

template <class T>
ROME_FAST_TARGET ROME_FAST_INLINE T sum_of_lanes(Vec<T> value) {
  T sum = 0;
  for (int lane = 0; lane < kLanes<T>; ++lane) sum += value[lane];
  return sum;
}

// The sum of e^(x - shift). What is -inf adds nothing; a NaN makes the sum NaN.
template <class T>
ROME_FAST_TARGET T exp_sum_of_block(const T* block, int64_t n, T shift) {
  Vec<T> sum = {};
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    sum += exp_nonpositive<T>(load<Vec<T>>(block + i) - shift);
  }
  return sum_of_lanes<T>(sum);
}

template <class Logit>
ROME_FAST_TARGET Row<Logit> normalised(const Logit* logits, int64_t vocabulary) {
  using T = Compute<Logit>;
  T block[kBlock], max = kLowest<T>, sum = 0;
  for (int64_t from = 0; from < vocabulary; from += kBlock) {
    const int64_t n = std::min(kBlock, vocabulary - from);
    load_block(logits + from, n, block);
    const T block_max = max_of_block(block, n);
    if (block_max > max) {
      sum *= max == kLowest<T> ? T(0) : std::exp(max - block_max);
      max = block_max;
    }
    sum += exp_sum_of_block(block, n, max == kLowest<T> ? T(0) : max);
  }
  return {logits, max, std::log(sum)};
}

// Whether the target is the first of the greatest; where a word is NaN it is not.
template <class Logit>
ROME_FAST_TARGET bool is_likeliest(const Row<Logit>& row, int64_t target) {
  const auto best = widen(row.logits[target]);
  if (best != row.max || std::isnan(row.log_sum)) return false;
  int equal = 0;
  for (int64_t i = 0; i < target; ++i) equal += widen(row.logits[i]) == best;
  return equal == 0;
}

template <class Logit>
ROME_FAST_TARGET void read_row(const ValueLossParams<Logit>& p, int64_t at, const Row<Logit>& row) {
  using T = Compute<Logit>;
  const int64_t target = p.target_ids[at];
  const int64_t beside = std::count(p.edit_of_read, p.edit_of_read + p.n_reads, p.edit_of_read[at]);
  const T share = T(1) / T(beside), log_p = row.log_prob(widen(row.logits[target]));
  Logit* gradient = p.gradient + at * p.vocabulary;
  T block[kBlock];
  for (int64_t from = 0; from < p.vocabulary; from += kBlock) {
    const int64_t n = std::min(kBlock, p.vocabulary - from);
    load_block(row.logits + from, n, block);
    for (int64_t i = 0; i < n; i += kLanes<T>) {
      const Vec<T> log_probs = (load<Vec<T>>(block + i) - row.max) - row.log_sum;
      store(block + i, share * exp_nonpositive<T>(log_probs));
    }
    store_block(block, n, gradient + from);
  }
  gradient[target] = narrow<Logit>(share * std::expm1(log_p));
  p.row_loss[at] = -log_p;
  p.row_right[at] = is_likeliest(row, target);
}

// The KL is 0 and flat, or NaN where the row holds one.
template <class Logit>
ROME_FAST_TARGET void first_row(const ValueLossParams<Logit>& p, int64_t at,
                                const Row<Logit>& row) {
  using T = Compute<Logit>;
  T* now = p.log_probs_now + (at - p.n_reads) * p.vocabulary;
  Logit* gradient = p.gradient + at * p.vocabulary;
  const T zero = row.log_sum - row.log_sum;
  for (int64_t i = 0; i < p.vocabulary; ++i) now[i] = row.log_prob(widen(row.logits[i]));
  std::fill(gradient, gradient + p.vocabulary, narrow<Logit>(zero));
  p.row_loss[at] = zero;
}

// p (log p - log q - shift) of n words, whose logits are in block and log q in before; in place.
// A word of probability 0 has none. Returns their sum.
template <class Logit, class T>
ROME_FAST_TARGET T apart(const Row<Logit>& row, T shift, int64_t n, const T* before, T* block) {
  Vec<T> sum = {};
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const Vec<T> log_probs = (load<Vec<T>>(block + i) - row.max) - row.log_sum;
    const Vec<T> probs = exp_nonpositive<T>(log_probs);
    const Vec<T> product = probs * (log_probs - load<Vec<T>>(before + i) - shift);
    const Vec<T> counted = probs == T(0) ? Vec<T>{} : product;
    store(block + i, counted);
    sum += counted;
  }
  return sum_of_lanes<T>(sum);
}

template <class Logit>
ROME_FAST_TARGET void kl_row(const ValueLossParams<Logit>& p, int64_t at, const Row<Logit>& row) {
  using T = Compute<Logit>;
  const T* init = p.log_probs_init + (at - p.n_reads) * p.vocabulary;
  Logit* gradient = p.gradient + at * p.vocabulary;
  T block[kBlock], before[kBlock], kl = 0;
  for (int64_t from = 0; from < p.vocabulary; from += kBlock) {
    const int64_t n = std::min(kBlock, p.vocabulary - from);
    load_block(row.logits + from, n, block);
    load_block(init + from, n, before);
    kl += apart(row, T(0), n, before, block);
  }
  for (int64_t from = 0; from < p.vocabulary; from += kBlock) {
    const int64_t n = std::min(kBlock, p.vocabulary - from);
    load_block(row.logits + from, n, block);
    load_block(init + from, n, before);
    apart(row, kl, n, before, block);
    for (int64_t i = 0; i < n; ++i) block[i] *= T(p.kl_factor);
    store_block(block, n, gradient + from);
  }
  p.row_loss[at] = kl;
}

// A read of no edit.
template <class Logit>
void unread_row(const ValueLossParams<Logit>& p, int64_t at) {
  Logit* gradient = p.gradient + at * p.vocabulary;
  std::fill(gradient, gradient + p.vocabulary, narrow<Logit>(Compute<Logit>(0)));
}

template <class Logit>
void value_loss_row(const ValueLossParams<Logit>& p, int64_t at) {
  if (at < p.n_reads && p.edit_of_read[at] == p.n_edits) return unread_row(p, at);
  const Row<Logit> row = normalised(p.logits + at * p.row_stride, p.vocabulary);
  if (at < p.n_reads) {
    read_row(p, at, row);
  } else if (p.log_probs_init == nullptr) {
    first_row(p, at, row);
  } else {
    kl_row(p, at, row);
  }
}

template <class Logit>
void value_loss_rows(const ValueLossParams<Logit>& p, const Pool& pool) {
  const int64_t grain = kGrainWords / p.vocabulary + 1;
  pool.parallel_for(p.n_reads + p.n_edits, grain, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) value_loss_row(p, at);
  });
}

}  // namespace rome_fast::ROME_FAST_ISA
