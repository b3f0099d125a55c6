// The threads of whoever calls the kernels: torch's pool in the library, none in a unit test.
#pragma once

#include <cstdint>

namespace rome_fast {

struct Pool {
  using Body = void (*)(int64_t begin, int64_t end, void* context);
  using Run = void (*)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);

  Run run = nullptr;

  // Calls f(begin, end) on ranges that together cover [0, size), each at least `grain` long
  // where the size allows it; returns when all are done.
  template <class F>
  void parallel_for(int64_t size, int64_t grain, const F& f) const {
    if (size <= 0) return;
    if (run == nullptr || size <= grain) {
      f(int64_t{0}, size);
      return;
    }
    Body body = [](int64_t begin, int64_t end, void* context) {
      (*static_cast<const F*>(context))(begin, end);
    };
    run(0, size, grain, body, const_cast<void*>(static_cast<const void*>(&f)));
  }
};

}  // namespace rome_fast
