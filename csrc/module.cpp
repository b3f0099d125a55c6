// rome_fast._facts: how the native library was built. No torch here, so it opens with any torch.
#include <pybind11/pybind11.h>

#include "kernels/cpu/isa.h"

namespace py = pybind11;

namespace {

const char* compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

py::dict build_facts() {
  py::dict facts;
  facts["compiler"] = compiler();
  facts["torch"] = ROME_FAST_TORCH_VERSION;
  facts["simd"] = rome_fast::isa_name(rome_fast::active_isa());
#ifdef ROME_FAST_CUDA_ARCHS
  facts["nvcc"] = ROME_FAST_NVCC_VERSION;
  facts["cuda_archs"] = ROME_FAST_CUDA_ARCHS;
#endif
  return facts;
}

}  // namespace

PYBIND11_MODULE(_facts, m) {
  m.doc() = "Facts of the native build.";
  m.def(
      "build_facts", &build_facts,
      "compiler, torch at build, SIMD variant in use; nvcc and architectures where CUDA was built");
}
